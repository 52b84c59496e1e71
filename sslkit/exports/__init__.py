"""`sslkit export`: a file for other programs, proven by reading it back."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sslkit.encoders import Encoder
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.folder import holds_run
from sslkit.errors import SslkitError
from sslkit.exports import formats
from sslkit.specs import ExportSpec

TOLERANCE = 1e-3  # largest difference in a feature, relative to the largest feature

_FORMATS: dict[str, tuple[str, Callable[[Encoder, Checkpoint, Tensor, Path], Tensor]]] = {
    "pt2": (".pt2", formats.pt2),
    "onnx": (".onnx", formats.onnx),
    "timm": (".timm.safetensors", formats.timm),
}


@dataclass(frozen=True)
class ExportResult:
    """Hold what `sslkit export --json` prints."""

    path: str
    format: str
    max_abs_diff: float


def export(spec: ExportSpec) -> ExportResult:
    """Write an encoder for other programs and check that what they read computes the same; all `sslkit export` does.

    pt2 and ONNX take images `[B, C, size, size]` in [0, 1], any batch size, normalisation inside. A file appears only
    if it computes the same; otherwise an SslkitError says by how much it was off.
    """
    checkpoint = read_model(spec.ckpt)
    checkpoint.check_images()
    encoder = checkpoint.build_encoder(allowed=spec.encoder)
    size = checkpoint.size if spec.size == "auto" else spec.size
    suffix, write_and_run = _FORMATS[spec.to]
    path = Path(spec.out) if spec.out else _beside(checkpoint.path, suffix)
    if path.is_dir() or path.resolve() == checkpoint.path.resolve():
        raise SslkitError(f"--out: {path} is {'a folder' if path.is_dir() else 'the checkpoint itself'}", "name a new file")
    temporary = path.with_name(f"{path.stem}.tmp{os.getpid()}{suffix}")  # torch wants the suffix
    # Batch sizes 2 and 7: a graph that had the first one written into it fails on the second.
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(7, checkpoint.channels, size, size, generator=generator)
    with torch.no_grad():
        expected = encoder(images)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # torch and safetensors have their own words for a folder one may not write to
        difference = (write_and_run(encoder, checkpoint, images, temporary) - expected).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
            raise SslkitError(f"the {spec.to} file computes features that differ by {difference:.2g}", "nothing was written")
        os.replace(temporary, path)
    except OSError as error:
        raise SslkitError(f"--out: cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary.exists():
            temporary.unlink()
    return ExportResult(str(path), spec.to, difference)


def _beside(checkpoint: Path, suffix: str) -> Path:
    """Return `runs/NAME.pt2` for `runs/NAME/model.safetensors` (a run folder holds the run only), else beside the file."""
    stem = checkpoint.parent if holds_run(checkpoint.parent) else checkpoint.with_suffix("")
    return stem.with_name(stem.name + suffix)


__all__ = ["ExportResult", "export"]
