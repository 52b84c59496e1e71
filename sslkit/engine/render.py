"""Previews: pictures of a task's inputs, targets and predictions."""

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

_AT_ONCE = 64  # images per forward pass

_IMAGES, _ROWS = 32, 6  # of a picture saved during training: images the task gets, and rows that are drawn


@torch.no_grad()
def render_previews(stepper: Stepper, samples: int, trained: bool) -> tuple[Tensor | None, dict[str, float]]:
    """Return a task's pictures `[N, columns, C, H, W]` of samples at seeded places in the data, and its metrics.

    The metrics, and the columns of predictions, are there only if the task is `trained`.
    """
    task, raw = stepper.task, stepper.batch(samples)
    training = task.training
    task.eval()
    try:
        seed_stage(stepper.spec.seed, "preview", 0)
        batch = task.transform(raw)
        output = _predict_batch(stepper, batch) if trained else None
        metrics = {} if output is None else task.metrics(output, batch)
        original = load_modality(stepper.settings.data.modality).original(raw, stepper.settings.data)
        if original is not None:
            batch = {**batch, "original": original}
        return task.preview(batch, output), {name: round(float(value.float().mean()), 4) for name, value in metrics.items()}
    finally:
        task.train(training)


def _predict_batch(stepper: Stepper, batch: Batch) -> Any:
    """Return the predictions for a batch, computed a few rows at a time."""
    samples = next(len(value) for value in batch.values() if isinstance(value, Tensor))
    starts = range(0, samples, _AT_ONCE)
    output = concatenate([as_dict(stepper.task.predict(rows(batch, start, start + _AT_ONCE))) for start in starts])
    return output.get("", output)


def save_previews(stepper: Stepper, folder: RunFolder) -> None:
    """Write a picture of a few samples, with the task's predictions, for the current step."""
    step = stepper.clock.step
    pictures, _ = render_previews(stepper, _IMAGES, trained=True)
    if pictures is None or not len(pictures):
        return
    file = folder.file(PREVIEWS) / f"step-{step}.png"
    with folder.writing():
        file.parent.mkdir(exist_ok=True)
        known = {earlier.read_bytes() for earlier in file.parent.iterdir() if earlier != file}
        with write_atomically(file, new_folder=False) as stream:
            draw_previews(pictures[:_ROWS], stepper.task.preview_columns, stream)
        if file.read_bytes() in known:
            file.unlink()  # a task whose pictures show no prediction
