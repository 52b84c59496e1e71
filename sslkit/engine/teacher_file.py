"""Checkpoints that another network learns from: `--teacher`."""

from pathlib import Path

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.task import DataInfo
from sslkit.engine.checkpoint import Checkpoint, read_model


def read_teacher(path: Path | str, data: DataInfo) -> Checkpoint:
    """Read a checkpoint of samples like those of `data`; raises SslkitError, naming `--teacher`, for any other."""
    teacher = read_model(path, "teacher")
    teacher.check_modality(data.modality, "teacher")
    if teacher.channels != data.channels:
        raise SslkitError(f"the teacher expects {teacher.channels} channels, the data has {data.channels}", flag="teacher")
    return teacher


def build_teacher(teacher: Checkpoint, data: DataInfo) -> Encoder:
    """Build a teacher's encoder; raises SslkitError, naming `--teacher`, if it takes no samples of this size."""
    encoder = teacher.build_encoder()
    if encoder.nearest_valid_size(data.size) != data.size:
        raise SslkitError(f"the teacher takes no images of {data.size} px", f"use --size {teacher.size}", flag="teacher")
    return encoder
