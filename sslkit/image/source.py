"""Images as a source: canvases of one size, decoded once."""

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.options import DataSpec
from sslkit.contract.source import ReadSeed, Rows
from sslkit.contract.task import Batch, DataInfo
from sslkit.data.index import Index
from sslkit.data.indexed_source import IndexedSource
from sslkit.image.canvas import Canvases, choose_folder
from sslkit.image.decode import short_sides
from sslkit.image.options import IMAGES
from sslkit.image.transforms import center_view

SIZES = (32, 64, 96, 128, 160, 224)


class ImageSource(IndexedSource):
    """Hold images; a batch has `image`, float32 `[B, C, canvas, canvas]` in [0, 1]."""

    kind: ClassVar = IMAGES
    accepts: ClassVar = IMAGES.accepts
    called: ClassVar = IMAGES.noun

    def __init__(self, index: Index, size: int, canvases: Canvases, settled: dict[str, tuple[Any, str]]) -> None:
        self.index, self.canvases, self.settled = index, canvases, settled
        self.location = index.source
        self.info = DataInfo(len(index), size, index.channels)

    @classmethod
    def of(cls, index: Index, spec: DataSpec, size: int | None = None, canvas: int | None = None) -> Self:
        """Return the images of an index at a size, by default the spec's, on the canvas that training at it has."""
        settled: dict[str, tuple[Any, str]] = {}
        side = int(np.median(short_sides(index)))
        if size is None and spec.size == "auto":
            size = choose_size(side)
            settled["size"] = size, f"images have {side} px on the short side"
        size = int(spec.size) if size is None else size
        given: Any = getattr(spec, "canvas", "auto")  # an evaluation has no say in it
        if canvas is None and given == "auto":
            canvas, why = choose_canvas(size, side)
            settled["canvas"] = canvas, why
        canvas = canvas or int(given)
        folder, settled["cache"] = choose_folder(index, canvas, spec.cache, spec.cache_limit)
        return cls(index, size, Canvases(index, canvas, folder), settled)

    @classmethod
    def shown(cls, index: Index, spec: DataSpec, encoder: Encoder, size: int, like: Self | None = None) -> Self:
        """Return images at a size, on the canvas that suits both, or on that of `like`."""
        return cls.of(index, spec, size, None if like is None else like.canvases.canvas)

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
        return f"{self.index.key()} {self.canvases.canvas} {self.info.size}"

    def read(self, rows: Rows, draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Return `image`, uint8 `[B, canvas, canvas, C]`; a broken one is black."""
        images, broken = self.canvases.read(rows)
        return {"image": images}, broken

    def prepare(self, batch: Batch) -> Batch:
        """Return `image` as float32 `[B, C, canvas, canvas]` in [0, 1]."""
        image = batch["image"].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return {**batch, "image": image.div_(255)}

    def view(self, batch: Batch) -> Tensor:
        """Return the middle of each canvas at the training size."""
        return center_view(batch["image"], self.info.size)

    def choose_encoder(self, reads: tuple[str, ...], on_cpu: bool) -> tuple[str, str]:
        """Return one that trains on a CPU, or the usual one on a GPU; with tokens where the task reads them."""
        return choose_encoder(self.info.size, reads, on_cpu)

    def workers(self, asked: int | str) -> tuple[int, str]:
        """Return how many processes decode."""
        return self.canvases.workers(asked)

    def cache_bytes(self) -> int:
        """Return the bytes of all canvases."""
        return self.canvases.bytes if self.canvases.folder is not None else 0


def choose_size(side: int) -> int:
    """Return the training size for the images' median short side in pixels."""
    return max((known for known in SIZES if known <= side), default=SIZES[0])


def choose_canvas(size: int, side: int) -> tuple[int, str]:
    """Return the canvas for a training size and the images' median short side in pixels."""
    if side <= 64:
        return max(side, 8), "small images are kept whole"
    return max(min(side, round(size * 8 / 7)), 8), "8/7 of the size leaves room for crops"


def choose_encoder(size: int, reads: tuple[str, ...], on_cpu: bool) -> tuple[str, str]:
    """Return the encoder for images of a size, and why: with tokens where the task reads them."""
    tokens = "tokens" in reads
    tail = ", has tokens" if tokens else ""
    if size <= 64 or on_cpu:
        why = "images up to 64 px" if size <= 64 else "trains on a CPU"
        return "vit_micro" if tokens else "resnet_micro", why + tail
    return "vit_small_patch16_224" if tokens else "resnet50", f"the usual one on a GPU{tail}"
