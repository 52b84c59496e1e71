"""Checkpoints that tasks on images learn from: `--teacher`."""

from pathlib import Path

from sslkit.contract.errors import SslkitError
from sslkit.engine.checkpoint import Checkpoint, read_model


def read_teacher(path: Path, channels: int) -> Checkpoint:
    """Read a checkpoint of images with so many channels; raises SslkitError, naming `--teacher`, for any other."""
    teacher = read_model(path, "teacher")
    teacher.check_modality("image", "teacher")
    if teacher.channels != channels:
        raise SslkitError(f"the teacher expects {teacher.channels}-channel images, the data has {channels}", flag="teacher")
    return teacher
