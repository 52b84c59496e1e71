"""Images as a source: canvases of one size, decoded once."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import say_once
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.source import OpenSpec, ReadSeed, Rows
from sslkit.contract.task import Batch, DataInfo
from sslkit.data.index import Index
from sslkit.data.indexed_source import IndexedSource
from sslkit.image.canvas import Canvases
from sslkit.image.canvas_cache import CanvasCache, choose_cache, decoder_versions
from sslkit.image.compact import CompactStore
from sslkit.image.decode import LONGEST, CanvasFormat, Geometry, image_sizes
from sslkit.image.options import IMAGES, ImageOptions
from sslkit.image.pages import choose_channels, with_pages
from sslkit.image.pixel_range import choose_range
from sslkit.image.targets import Boxes, Masks, find_targets, without_targets
from sslkit.image.transforms import center_view

_FEW, _MOST = 4, 64  # channels that are recognized by their number, and that images may have


SMALL = 64  # pixels of the short side up to which an image is not shrunk
SIZES = (32, 48, 64, 96, 128, 160, 224)


class ImageSource(IndexedSource):
    """Images; a batch has `canvas`, float32 `[B, C, side, side]` in [0, 1], and `aspect`, float32 `[B]`.

    In training a canvas holds the whole image, stretched to a square, and `aspect` is width / height before that: crops have
    to read it. In evaluations it holds the middle, and `aspect` is 1.
    """

    kind: ClassVar = IMAGES
    noun: ClassVar = IMAGES.noun

    def __init__(
        self,
        index: Index,
        size: int,
        canvases: Canvases,
        resolved: dict[str, tuple[Any, str]],
        boxes: Boxes | None = None,
        short_side: int | None = None,
    ) -> None:
        self.index, self.canvases, self.resolved, self.boxes = index, canvases, resolved, boxes
        self.location, self.short_side = index.source, short_side
        details = {} if boxes is None else {"box_classes": boxes.classes}
        self.info = DataInfo(len(index), size, index.channels, details=details)
        entries = ("mask",) * (canvases.masks is not None) + ("box", "box_label") * (boxes is not None)
        self.on_request = dict.fromkeys(entries, "targets")

    @classmethod
    def list_samples(cls, location: str, spec: OpenSpec) -> Index:
        """Index one part of the data; of an array, the axes are put in order."""
        index, options = super().list_samples(location, spec), spec.table(ImageOptions)
        if index.array is None:
            if options.targets is not None:
                index = without_targets(index, options.targets)
            index = with_pages(index, spec.reindex)
            return replace(index, range=options.range, file_channels=choose_channels(index, options.channels))
        array = arrange(index.array, options.layout, index.source)
        if options.channels not in ("auto", array.shape[3]):
            raise SslkitError(f"{index.source} has {array.shape[3]} channels", "arrays keep theirs", flag="channels")
        return replace(index, range=options.range, array=array)

    @classmethod
    def for_pretraining(cls, index: Index, spec: OpenSpec) -> Self:
        """Return images as `for_training` does, with masks or boxes if `--targets` names some."""
        return cls._at(index, spec, None, None, "whole", with_targets=True)

    @classmethod
    def for_training(cls, index: Index, spec: OpenSpec) -> Self:
        """Return images at the size and on the canvas that were asked for, or that suit the data."""
        return cls._at(index, spec, None, None, "whole")

    @classmethod
    def for_evaluation(cls, index: Index, spec: OpenSpec, encoder: Encoder, size: int, like: Self | None = None) -> Self:
        """Return images at a size, on the canvas that suits both, or on that of `like`."""
        return cls._at(index, spec, size, like, "center")

    @classmethod
    def channels(cls, index: Index) -> int | None:
        """Return the channels of the images."""
        return index.channels

    @classmethod
    def _at(
        cls, index: Index, spec: OpenSpec, size: int | None, like: Self | None, geometry: Geometry, with_targets: bool = False
    ) -> Self:
        options, resolved = spec.table(ImageOptions), dict[str, tuple[Any, str]]()
        sizes = image_sizes(index if like is None else like.index)
        short = int(np.median(sizes.min(axis=1)))
        if size is None and options.size == "auto":
            size = choose_size(short)
            resolved["size"] = size, f"images have {short} px on the short side"
        elif size is None:
            size = int(options.size)
        canvas, reason = choose_canvas(size, sizes, geometry)
        if like is not None:  # the --canvas of a training is for its crops
            canvas = like.canvases.form.side if like.canvases.form.geometry == geometry else canvas
            scale = like.canvases.form.scale or choose_range(index, index.range)[0]
        else:
            if options.canvas != "auto":
                canvas = int(options.canvas)
            elif geometry == "whole":
                resolved["canvas"] = canvas, reason
            if index.array is not None and index.channels == 1:
                resolved["channels"] = 1, "those of the array"
            elif index.array is None and index.channels not in (1, 3) and options.channels == "auto":
                resolved["channels"] = index.channels, "those of the files"
            scale, reason = choose_range(index, index.range)
            if scale is not None:
                resolved["range"] = str(scale), reason
                if geometry == "center":  # of a training, what was resolved is shown anyway
                    say_once(f"pixels of {index.source} from {scale.low:g} (black) to {scale.high:g} (white): {reason}")
        if index.array is not None and index.array.dtype == np.uint8:
            scale = None
        form = CanvasFormat(canvas, geometry, scale)
        # Evaluations of classes, and fine-tuning, have no use for masks, and should not miss images without them.
        targets = None if options.targets is None or not with_targets else find_targets(index, options.targets)
        masks = targets if isinstance(targets, Masks) else None
        cache = choose_cache(index, form, spec.cache, spec.cache_limit, masks)
        resolved["cache"] = cache.kind, cache.reason
        canvases = _open_canvases(index, form, cache, masks)
        return cls(index, size, canvases, resolved, targets if isinstance(targets, Boxes) else None, short)

    @classmethod
    def example(cls, folder: Path, samples: int) -> str:
        """Write smooth random images of 32 px as an array."""
        coarse = torch.rand(samples, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        images = F.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)
        path = folder / "images.npy"
        np.save(path, (images * 255).byte().permute(0, 2, 3, 1).numpy())
        return str(path)

    def key(self) -> str:
        """Return the data's own key, the canvas and the size."""
        form = self.canvases.form
        return f"{self.index.key()} {self.index.channels} {form} {decoder_versions(self.index, form)} {self.info.size}"

    def training_fingerprint(self) -> str:
        """Return a hash of all that training sees: in a compact cache, pixels are others."""
        fingerprint = super().training_fingerprint()
        return fingerprint if self.canvases.compact is None else f"{fingerprint}-compact"

    def sample_details(self) -> dict[str, Any]:
        """Return the median short side in pixels, which decides how evaluations resize images."""
        return {} if self.short_side is None else {"short_side": self.short_side}

    def read(self, rows: Rows, draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Return `canvas`, uint8 or uint16 `[B, side, side, C]`, and `aspect`, float32 `[B]`; a broken one is black.

        With `--targets`, also `mask`, uint8 `[B, side, side]`, or `box`, float32 `[B, K, 4]`, and `box_label`, int64 `[B, K]`.
        """
        batch, form = self.canvases.read(rows, draw), self.canvases.form
        aspects = batch.aspects if form.geometry == "whole" else np.ones_like(batch.aspects)
        arrays: dict[str, NDArray[Any]] = {"canvas": batch.canvases, "aspect": aspects}
        if batch.masks is not None:
            arrays["mask"] = batch.masks
        if self.boxes is not None:
            arrays["box"], arrays["box_label"] = self.boxes.on_canvas(rows, form, batch.aspects, batch.positions)
        return arrays, batch.broken

    def prepare(self, batch: Batch) -> Batch:
        """Return `canvas` as float32 `[B, C, side, side]` in [0, 1]."""
        canvas = batch["canvas"].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return {**batch, "canvas": canvas.div_(np.iinfo(self.canvases.form.dtype).max)}

    def view(self, batch: Batch, encodes: str) -> Tensor:
        """Return the middle of each image at the training size."""
        whole = self.canvases.form.geometry == "whole"
        return center_view(batch["canvas"], self.info.size, batch["aspect"] if whole else None)

    def workers(self, requested: int | str) -> tuple[int, str]:
        """Return how many processes decode."""
        return self.canvases.workers(requested)

    def cache_bytes(self) -> int:
        """Return the bytes of all canvases, in a compact cache by estimate."""
        return self.canvases.cache_bytes


def _open_canvases(index: Index, form: CanvasFormat, cache: CanvasCache, masks: Masks | None) -> Canvases:
    if cache.folder is not None and cache.kind == "compact":
        return Canvases(index, form, None, masks, CompactStore(cache.folder, len(index), cache.limit), cache.bytes)
    return Canvases(index, form, cache.folder, masks, cache_bytes=cache.bytes)


def arrange(array: NDArray[Any], layout: str, source: str) -> NDArray[Any]:
    """Return images `[N, H, W, C]` of an array in a layout; raises SslkitError where the axis of the channels is not clear."""
    shape = list(array.shape)
    if array.dtype.kind not in "uif" or array.ndim not in (3, 4):
        expected = "expected numbers, as [N, H, W], [N, H, W, C] or [N, C, H, W]"
        raise SslkitError(f"{source} holds {array.dtype} of shape {shape}", expected, flag="data")
    if not all(shape[1:]):
        raise SslkitError(f"{source} holds images without pixels (shape {shape})", flag="data")
    if layout == "auto" and array.ndim == 3:
        layout = "NHW"
    elif layout == "auto":
        few = [name for name, channels in (("NCHW", shape[1]), ("NHWC", shape[3])) if channels <= _FEW]
        if len(few) != 1:
            known = f"channels are the axis of 1 to {_FEW}, if there is one"
            raise SslkitError(f"{source} has shape {shape}, and {known}", "use --layout NCHW or --layout NHWC", flag="data")
        layout = few[0]
    if array.ndim != len(layout):
        raise SslkitError(f"{layout} has {len(layout)} axes, and {source} has shape {shape}", flag="layout")
    images = array[..., None] if layout == "NHW" else array.transpose(0, 2, 3, 1) if layout == "NCHW" else array
    if images.shape[3] > _MOST:
        raise SslkitError(f"{source} has {images.shape[3]} channels", f"at most {_MOST} are expected", flag="data")
    return images


def choose_size(side: int) -> int:
    """Return the training size for the images' median short side in pixels."""
    return max((known for known in SIZES if known <= side), default=SIZES[0])


def choose_canvas(size: int, sizes: NDArray[np.int64], geometry: Geometry) -> tuple[int, str]:
    """Return the side of canvases for a training size and images of `sizes` (width and height, `[n, 2]`), and the reason.

    A training canvas is larger by the square root of 4/3: stretched to it, an image of 4:3 loses nothing that a crop shows.
    """
    short = int(np.median(sizes.min(axis=1)))
    if geometry == "center":
        return max(short if short <= SMALL else min(short, round(size * 8 / 7)), 8), ""
    long = int(np.median(np.minimum(sizes.max(axis=1), LONGEST * sizes.min(axis=1))))
    largest = 16 * math.ceil(size * 8 / 7 * math.sqrt(4 / 3) / 16)
    if short <= SMALL:
        return max(long, 8), "small images are kept whole"
    if long <= largest:
        return long, f"images have {long} px on the long side"
    return largest, f"images are kept larger than {size} px, so that crops of a part have detail"
