"""`sslkit export`: a file for other programs, proven by a process that reads it without sslkit."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.console import say
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import RunFailedError, SslkitError
from sslkit.contract.options import DataSpec
from sslkit.data.loader import Loader
from sslkit.data.locations import find_parts
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.run_folder import holds_run, read_spec
from sslkit.engine.stepper import to_device
from sslkit.evaluation.models import weights_hash
from sslkit.evaluation.predict import classifier
from sslkit.exporting import formats
from sslkit.exporting.card import write_card
from sslkit.exporting.formats import Network
from sslkit.image.demo import some_digits
from sslkit.image.encoders.base import PatchEncoder
from sslkit.image.source import ImageSource
from sslkit.image.transforms import center_view
from sslkit.specs.use import ExportSpec

TOLERANCE = 1e-3  # largest difference of a feature, relative to the largest feature


_TINY = 1e-6  # of features that are all smaller, that much


_IMAGES = 7  # run alone and all together: a graph that had a batch size written into it fails on one of both


Writer = Callable[[Network, Checkpoint, Tensor, dict[int, Any], Path], formats.Settings]


_FORMATS: dict[str, tuple[str, Writer]] = {
    "pt2": (".pt2", formats.pt2),
    "onnx": (".onnx", formats.onnx),
    "timm": (".timm.safetensors", formats.timm),
    "torchvision": (".torchvision.safetensors", formats.torchvision),
}


@dataclass(frozen=True)
class ExportResult:
    """Hold what `sslkit export --json` prints."""

    path: str
    card: str
    format: str
    max_abs_diff: float
    mean_abs_diff: float
    tolerance: float
    images: str


def export(spec: ExportSpec) -> ExportResult:
    """Write an encoder, or a fine-tuned classifier, for other programs, and check that they compute the same.

    A process of its own reads the file by the target's loader and runs it on real images, one alone and seven together. pt2
    and ONNX take images in [0, 1], normalization inside. Raises RunFailedError, and leaves no file, if the largest difference is
    above the tolerance; SslkitError for what can't be written.
    """
    checkpoint = read_model(spec.ckpt)
    if spec.to == "word2vec":
        return _export_words(spec, checkpoint)
    checkpoint.check_images()
    encoder = checkpoint.build_encoder(allowed=spec.encoder)
    classes, head = classifier(checkpoint) if checkpoint.part("head") else ([], None)
    network = Network(encoder, head).eval()
    size = checkpoint.size if spec.size == "auto" else spec.size
    suffix, write = _FORMATS[spec.to]
    path = _path(spec, checkpoint, suffix)
    images, source = _real_images(checkpoint, size)
    if not spec.dynamic_batch:
        images = images[:1]
    shown = [images]
    if spec.dynamic_size:
        shown.append(F.interpolate(images, size=(encoder.nearest_valid_size(2 * size), encoder.nearest_valid_size(size + 8))))
    expected = _computed(network, shown, size)
    temporary = path.with_name(f"{path.stem}.tmp{os.getpid()}{suffix}")  # torch wants the suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # torch and safetensors have their own words for a folder one may not write to
        settings = write(network, checkpoint, images, _shapes(spec, encoder, size), temporary)
        difference = (_read_back(spec, temporary, settings, shown) - expected).abs()
        largest, tolerance = difference.max().item(), TOLERANCE * max(_TINY, expected.abs().max().item())
        if not largest <= tolerance:
            raise RunFailedError(f"the {spec.to} file computes features that differ by {largest:.2g}", "it was removed")
        result = ExportResult(str(path), f"{path}.md", spec.to, largest, difference.mean().item(), tolerance, source)
        write_card(result.card, path, spec, checkpoint, settings, size, classes, largest, weights_hash(encoder))
        os.replace(temporary, path)
    except OSError as error:
        raise SslkitError(f"cannot write {path}: {error.strerror or error}", flag="out") from error
    finally:
        if temporary.exists():
            temporary.unlink()
    return result


def _export_words(spec: ExportSpec, checkpoint: Checkpoint) -> ExportResult:
    """Write word vectors, and read them again."""
    from sslkit.text.export import write_words

    path = _path(spec, checkpoint, ".word2vec.txt")
    try:
        difference = write_words(checkpoint, path, f"{path}.md")
    except OSError as error:
        raise SslkitError(f"cannot write {path}: {error.strerror or error}", flag="out") from error
    return ExportResult(str(path), f"{path}.md", spec.to, difference, difference, 0.0, "words of the checkpoint")


def _path(spec: ExportSpec, checkpoint: Checkpoint, suffix: str) -> Path:
    """Return the file to write; raises SslkitError for one that can't be."""
    path = Path(spec.out) if spec.out else _beside(checkpoint.path, suffix)
    if path.is_dir() or path.resolve() == checkpoint.path.resolve():
        raise SslkitError(
            f"{path} is {'a folder' if path.is_dir() else 'the checkpoint itself'}", "name a new file", flag="out"
        )
    return path


@torch.no_grad()
def _computed(network: Network, shown: list[Tensor], size: int) -> Tensor:
    """Return what the network says of batches, each one's first image alone and all."""
    try:
        return torch.cat([torch.cat([network(batch[:1]), network(batch)]) for batch in shown])
    except (RuntimeError, AssertionError, ValueError) as error:  # what architectures say of a size that they do not take
        reason = str(error).partition("\n")[0]
        raise SslkitError(f"the encoder does not take images of {size} px: {reason}", "leave it out", flag="size") from error


def _shapes(spec: ExportSpec, encoder: Encoder, size: int) -> dict[int, Any]:
    """Return which sides of `[B, C, H, W]` may differ from those that are exported: heights and widths upwards only."""
    found: dict[int, Any] = {0: torch.export.Dim("batch")} if spec.dynamic_batch else {}
    if spec.dynamic_size:
        step = encoder.patch if isinstance(encoder, PatchEncoder) else 1
        for side, name in ((2, "rows"), (3, "columns")):
            count = torch.export.Dim(name, min=size // step)
            found[side] = step * count if step > 1 else count
    return found


def _read_back(spec: ExportSpec, file: Path, settings: formats.Settings, shown: list[Tensor]) -> Tensor:
    """Return what a process without sslkit computes with the file of batches, each one's first image alone and all."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "images.npz"), Path(folder, "out.npz")
        np.savez(given, *(images.numpy() for images in shown))
        program = Path(__file__).with_name("read.py")
        command = [sys.executable, str(program), spec.to, str(file), json.dumps(settings), str(given), str(out)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"the process that read it ended with {done.returncode}"])[-1]
            hint = "the encoder may want one size: leave out --dynamic-size" if spec.dynamic_size else "it was removed"
            raise RunFailedError(f"the {spec.to} file cannot be read back: {said}", hint)
        with np.load(out) as found:
            return torch.from_numpy(np.concatenate([found[name] for name in found]))


def _real_images(checkpoint: Checkpoint, size: int) -> tuple[Tensor, str]:
    """Return images `[7, C, size, size]` of the run's own data, or else digits, and where they are from."""
    folder = checkpoint.path.parent
    data = read_spec(folder).get("data") if holds_run(folder) and checkpoint.samples == "image" else None
    if isinstance(data, str):
        try:
            index = ImageSource.read_index(find_parts(data, ImageSource.kind)["train"], None, False)
        except SslkitError as error:
            say(f"the run's images are not used: {error}")
        else:
            if index.channels == checkpoint.channels:
                rows = np.arange(_IMAGES) % len(index)
                source = ImageSource.of(index, DataSpec(cache="off", workers=0), size)
                raw = next(Loader(source, 0, substitute=True)([rows]))
                return center_view(to_device(raw, source, torch.device("cpu"))["image"], size), data
    return some_digits(_IMAGES, checkpoint.channels, size), "handwritten digits"


def _beside(checkpoint: Path, suffix: str) -> Path:
    """Return `runs/NAME.pt2` for `runs/NAME/model.safetensors` (a run folder holds the run only), else beside the file."""
    stem = checkpoint.parent if holds_run(checkpoint.parent) else checkpoint.with_suffix("")
    return stem.with_name(stem.name + suffix)


__all__ = ["ExportResult", "export"]
