"""The training loop."""

from sslkit.console import show_progress
from sslkit.engine.session import Session


def train(session: Session) -> None:
    """Take the steps that are left, in the order in which things happen.

    Raises RunInterruptedError after a checkpoint if a signal came, and RunFailedError after one if features collapse and the
    run is to stop then, or if too many samples are unreadable.
    """
    clock, stepper = session.clock, session.stepper
    session.start()
    with show_progress("training", clock.steps, done=clock.step) as progress:
        while clock.step < clock.steps:
            session.begin_epoch()
            for raw in session.batches():
                stepper.step(raw)
                session.finish_step()
                health = session.health.maybe_check()
                session.logs.maybe_write(health)
                session.previews.maybe_render()
                session.stop_if_collapsed(health)
                progress.advance(1, *session.progress_texts(), left=session.time_left())
                session.checkpoints.maybe_save()
                session.answer_signals()
                session.maybe_show_profile()
            session.end_epoch()
    session.checkpoints.save()
    session.maybe_show_profile(finished=True)
