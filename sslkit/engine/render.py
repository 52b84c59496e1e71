"""Render what a task makes of samples, as pictures."""

from typing import Any

import torch
from torch import Tensor

from sslkit.contract.task import Batch, rows
from sslkit.engine.micro_batches import as_dict, concatenate
from sslkit.engine.run_folder import PREVIEWS, RunFolder
from sslkit.engine.seeds import seed_stage
from sslkit.engine.stepper import Stepper
from sslkit.files import write_atomically
from sslkit.pictures import draw_previews
from sslkit.registry import load_modality

_AT_ONCE = 64  # images that the networks get at once


@torch.no_grad()
def render_previews(stepper: Stepper, samples: int, trained: bool) -> tuple[Tensor | None, dict[str, float]]:
    """Return a task's pictures `[N, columns, C, H, W]` of so many samples at seeded places in the data, and its metrics."""
    task, raw = stepper.task, stepper.drawn(samples)
    training = task.training
    task.eval()
    try:
        seed_stage(stepper.spec.seed, "preview", 0)
        batch = task.transform(raw)
        output = _predict_batch(stepper, batch) if trained else None
        told = {} if output is None else task.metrics(output, batch)
        original = load_modality(stepper.plan.data.modality).original(raw, stepper.plan.data)
        if original is not None:
            batch = {**batch, "original": original}
        return task.preview(batch, output), {name: round(float(value.float().mean()), 4) for name, value in told.items()}
    finally:
        task.train(training)


def _predict_batch(stepper: Stepper, batch: Batch) -> Any:
    """Return what `predict` says of a batch, a few rows at a time."""
    samples = next(len(value) for value in batch.values() if isinstance(value, Tensor))
    starts = range(0, samples, _AT_ONCE)
    found = concatenate([as_dict(stepper.task.predict(rows(batch, start, start + _AT_ONCE))) for start in starts])
    return found.get("", found)


_PREVIEWED, _PREVIEW_ROWS = 32, 6  # images that a task gets for its pictures while it trains, and how many are drawn


def save_previews(stepper: Stepper, folder: RunFolder) -> None:
    """Write a picture of what the task makes of a few images and says of them; before the first step, so that it is tried."""

    step = stepper.clock.step
    pictures, _ = render_previews(stepper, _PREVIEWED, trained=True)
    if pictures is None or not len(pictures):
        return
    file = folder.file(PREVIEWS) / f"step-{step}.png"
    with folder.writing():
        file.parent.mkdir(exist_ok=True)
        known = {earlier.read_bytes() for earlier in file.parent.iterdir() if earlier != file}
        with write_atomically(file, new_folder=False) as stream:
            draw_previews(pictures[:_PREVIEW_ROWS], stepper.task.preview_columns, stream)
        if file.read_bytes() in known:
            file.unlink()  # a task that says nothing of what it sees
