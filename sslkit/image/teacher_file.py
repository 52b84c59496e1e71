"""Checkpoints that an encoder of images learns from: `--teacher`."""

from pathlib import Path

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.engine.checkpoint import Checkpoint, read_model


def read_teacher(path: Path | str, channels: int) -> Checkpoint:
    """Read a checkpoint of images with so many channels; raises SslkitError, naming `--teacher`, for any other."""
    teacher = read_model(path, "teacher")
    teacher.check_modality("image", "teacher")
    if teacher.channels != channels:
        raise SslkitError(f"the teacher expects {teacher.channels}-channel images, the data has {channels}", flag="teacher")
    return teacher


def build_teacher(teacher: Checkpoint, size: int) -> Encoder:
    """Build a teacher's encoder; raises SslkitError, naming `--teacher`, if it takes no images of `size` pixels."""
    encoder = teacher.build_encoder()
    if encoder.nearest_valid_size(size) != size:
        raise SslkitError(f"the teacher takes no images of {size} px", f"use --size {teacher.size}", flag="teacher")
    return encoder
