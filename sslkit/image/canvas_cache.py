"""Which cache canvases get: raw, compact or none, by their size and the room there is."""

import shutil
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
import torch

from sslkit.contract.errors import SslkitError
from sslkit.data.cache import cache_error, cache_folder, make_room
from sslkit.data.decode import inspect_samples
from sslkit.data.index import Index
from sslkit.image.decode import CanvasFormat, read_canvas
from sslkit.image.jpeg import QUALITY, SUBSAMPLING, encode_jpeg
from sslkit.image.targets import Masks

# What decides the content of a canvas beside the image and its format.
VERSION = f"3, Pillow {PIL.__version__}, torch {torch.__version__}, torchvision {version('torchvision')}"


_DECODERS = ("tifffile", "imagecodecs", "pydicom", "nibabel")  # of images that Pillow does not keep


def decoder_versions(index: Index, form: CanvasFormat) -> str:
    """Return the versions of what decodes images, by which canvases of other versions are told apart."""
    if form.scale is None and index.channels in (1, 3) and index.pages is None:
        return VERSION
    installed = [name for name in _DECODERS if find_spec(name) is not None]
    return ", ".join([VERSION, *(f"{name} {version(name)}" for name in installed)])


Kind = Literal["on", "off", "compact"]


@dataclass(frozen=True)
class CanvasCache:
    """The cache that was chosen for canvases, and why."""

    folder: Path | None  # None: no cache
    kind: Kind
    reason: str
    bytes: int = 0  # of all canvases, in a compact cache by estimate
    limit: int = 0  # bytes that it may take


def raw_bytes(index: Index, form: CanvasFormat, masks: Masks | None) -> int:
    """Return the bytes of all canvases and masks."""
    values = index.channels * np.dtype(form.dtype).itemsize + (masks is not None)
    return len(index) * form.side**2 * values


def choose_cache(
    index: Index, form: CanvasFormat, mode: str, limit_gigabytes: float, masks: Masks | None = None
) -> CanvasCache:
    """Return the cache for these canvases, making room for it.

    `auto` is raw if that fits the limit and the disk, else compact if that does, else none; evaluations are never compact.
    Raises SslkitError for `on` and `compact` that do not fit, and for `compact` of images that it can't hold.
    """
    if mode == "off":
        return CanvasCache(None, "off", "as given")
    if index.array is not None and form.scale is None and index.array.shape[1:3] == (form.side, form.side):
        return CanvasCache(None, "off", "the array is its own cache")
    limit, raw = int(limit_gigabytes * 1e9), raw_bytes(index, form, masks)
    training = form.geometry == "whole"
    compressible = index.array is None and form.scale is None and index.channels in (1, 3) and masks is None
    if mode == "compact" and training and not compressible:
        raise SslkitError("a compact cache holds images of 8 bits with 1 or 3 channels, without masks", flag="cache")
    problems = []
    if mode != "compact" or not training:
        problem = claim_folder(_folder(index, form, masks, ""), "canvases.npy", raw, limit)
        if problem is None:
            return CanvasCache(_folder(index, form, masks, ""), "on", f"{raw / 1e6:.0f} MB in {cache_folder()}", raw, limit)
        problems.append(f"{raw / 1e9:.1f} GB of canvases {problem}")
    if mode in ("auto", "compact") and training and compressible:
        folder, needed = _folder(index, form, masks, f"JPEG {QUALITY} {SUBSAMPLING}"), _estimate_compact(index, form)
        problem = claim_folder(folder, "canvases.bin", needed, limit)
        if problem is None:
            reason = f"about {needed / 1e9:.1f} GB of JPEG in {cache_folder()}: training sees canvases as JPEG keeps them"
            return CanvasCache(folder, "compact", "; ".join([*problems, reason]), needed, limit)
        problems.append(f"about {needed / 1e9:.1f} GB of compact ones {problem}")
    if mode != "auto" and (training or mode == "on"):
        raise SslkitError(", ".join(problems), "raise --cache-limit, or use --cache auto", flag="cache")
    return CanvasCache(None, "off", ", ".join(problems))


def _folder(index: Index, form: CanvasFormat, masks: Masks | None, encoding: str) -> Path:
    content = f"{decoder_versions(index, form)} {index.channels} {form.scale} {masks and masks.key()} {encoding}"
    digest = blake2b(content.encode(), digest_size=4).hexdigest()
    return cache_folder() / "canvases" / f"{index.key()}-{form.geometry}-{form.side}-{digest}"


def claim_folder(folder: Path, files: str, needed: int, limit: int) -> str | None:
    """Make room for a folder of the cache, and create it; return why it does not fit, None if it does.

    What its `files`, a pattern, have already, the disk need not have left.
    """
    if needed > limit:
        return f"exceed --cache-limit {limit / 1e9:g}"
    try:
        make_room(needed, limit, folder)
        folder.touch()  # its modification time says when it was last used
    except OSError as error:
        raise cache_error(error) from error
    present = sum(file.stat().st_size for file in folder.glob(files))
    free = shutil.disk_usage(folder).free
    return f"do not fit the disk, which has {free / 1e9:.1f} GB left" if needed - present > 0.9 * free else None


_TRIED = 32  # images whose encoded size stands for all: within a few percent


def _estimate_compact(index: Index, form: CanvasFormat) -> int:
    """Return about how many bytes all canvases take as JPEG."""
    sizes = inspect_samples(index, lambda row: len(encode_jpeg(read_canvas(index, row, form).canvas)), "image", _TRIED)
    return round(len(index) * float(np.mean(sizes)))
