"""`resume.pt`: everything a bit-equal resume needs, written atomically, read without unpickling objects."""

import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from sslkit.contract.errors import SslkitError
from sslkit.engine.checkpoint import FORMAT
from sslkit.files import write_atomically

_DAMAGED = (
    ArithmeticError,
    AssertionError,
    struct.error,
    OSError,
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    pickle.UnpicklingError,
    UserWarning,
)


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Write `resume.pt` atomically: the previous one stays until the new one is on disk. Raises OSError."""
    with write_atomically(path, new_folder=False) as stream:
        recorder = _ErrorRecorder(stream)
        try:
            torch.save({"format": FORMAT, **state}, cast(BinaryIO, recorder))
        except RuntimeError:
            if recorder.error is not None:
                raise recorder.error from None
            raise


def read_resume(path: Path, device: torch.device) -> dict[str, Any]:
    """Read `resume.pt`; raises SslkitError if it is damaged or of a newer format."""
    try:
        if not zipfile.is_zipfile(path):
            raise pickle.UnpicklingError("it is damaged or not a checkpoint")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # torch found something unusual, which our own files never have
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except _DAMAGED as error:
        raise SslkitError(f"{path} cannot be read: {str(error).partition(chr(10))[0]}", flag="resume") from error
    kinds = {
        "format": int,
        "task": dict,
        "optimizer": dict,
        "scaler": dict,
        "step": int,
        "steps": int,
        "schedule_start": int,
        "data": str,
    }
    fits = isinstance(state, dict) and all(isinstance(state.get(name), kind) for name, kind in kinds.items())
    if not fits or state["format"] > FORMAT or "weights" not in state:
        raise SslkitError(f"{path} is not a checkpoint of this version of sslkit", flag="resume")
    return state


class _ErrorRecorder(io.RawIOBase):
    """Keep the error of the disk, which torch replaces by one about positions in a file."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, and keep the error if that fails."""
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise
