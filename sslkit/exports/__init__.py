"""`sslkit export`: a file for other programs, proven by reading it back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslkit.encoders import Encoder
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.errors import SslkitError
from sslkit.exports import formats
from sslkit.specs import ExportSpec

TOLERANCE = 1e-3  # largest difference in a feature, relative to the largest feature

_FORMATS: dict[str, tuple[str, Callable[[Encoder, Checkpoint, Tensor, Path], Tensor]]] = {
    "pt2": ("encoder.pt2", formats.pt2),
    "onnx": ("encoder.onnx", formats.onnx),
    "timm": ("timm.safetensors", formats.timm),
}


@dataclass(frozen=True)
class ExportResult:
    """Hold what `sslkit export --json` prints."""

    path: str
    format: str
    max_abs_diff: float


def export(spec: ExportSpec) -> ExportResult:
    """Write an encoder for other programs and check that what they read computes the same; all `sslkit export` does.

    pt2 and ONNX take images `[B, C, size, size]` in [0, 1], any batch size, normalisation inside. A file that
    computes something else is removed, and an SslkitError says by how much it was off.
    """
    checkpoint = read_model(spec.ckpt)
    encoder = checkpoint.build_encoder(allowed=spec.encoder)
    size = checkpoint.size if spec.size == "auto" else spec.size
    name, write_and_run = _FORMATS[spec.to]
    path = Path(spec.out) if spec.out else checkpoint.path.with_name(name)
    # Batch sizes 2 and 7: a graph that had the first one written into it fails on the second.
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(7, checkpoint.recipe["in_channels"], size, size, generator=generator)
    with torch.no_grad():
        expected = encoder(images)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        difference = (write_and_run(encoder, checkpoint, images, path) - expected).abs().max().item()
    except OSError as error:
        raise SslkitError(f"--out: cannot write {path}: {error.strerror or error}") from error
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        path.unlink()
        raise SslkitError(f"the {spec.to} file computed features that differ by {difference:.2g}", "it was removed")
    return ExportResult(str(path), spec.to, difference)


__all__: list[Any] = ["ExportResult", "export"]
