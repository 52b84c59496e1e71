"""What segmentation needs: whole images with masks, feature maps of them, and how well predicted masks cover true ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.contract.result import Comparison, Metric
from sslkit.contract.source import OpenSpec
from sslkit.contract.task import Batch
from sslkit.data.index import Index
from sslkit.engine.precision import Machine
from sslkit.evaluation.statistics import compare_resamples, interval_of_resamples, resample_counts
from sslkit.image.decode import image_sizes
from sslkit.image.feature_maps import extract_every
from sslkit.image.options import ImageOptions
from sslkit.image.source import ImageSource
from sslkit.image.specs import SegmentSpec
from sslkit.image.targets import Masks, find_targets
from sslkit.image.transforms import resize

_PART = 64  # images whose feature maps are in memory at once
_LONGEST = 2.0  # proportions of which a canvas holds the whole image

MapReader = Callable[[Tensor], Tensor]  # images [B, C, S, S] -> feature maps [B, D, h, w]


class WholeImages(ImageSource):
    """Images as wholes: stretched to squares, nothing is cut off."""

    @classmethod
    def whole(cls, index: Index, spec: OpenSpec, side: int, like: Self | None = None) -> Self:
        """Return the images of an index, `side` pixels wide and high; on the canvas of others, with their range of values."""
        return cls._at(index, spec, side, like, "whole")

    def view(self, batch: Batch, encodes: str) -> Tensor:
        """Return the images, `[B, C, S, S]`."""
        return resize(batch["canvas"], self.info.size)


@dataclass(frozen=True)
class MaskedImages:
    """Images with a mask each: the number of the class at each pixel."""

    name: str
    index: Index
    masks: Masks
    pretrained: bool = False  # whether the images were part of pretraining

    def __len__(self) -> int:
        return len(self.index)

    def mask(self, row: int) -> NDArray[np.uint8]:
        """Return the mask of an image, `[H, W]`; raises SslkitError for one that can't be read."""
        try:
            return self.masks.read_whole(row)
        except UnreadableSampleError as error:
            raise SslkitError(str(error), "each image needs one", flag="targets") from error

    def fingerprint(self) -> str:
        """Return a hash of images and masks."""
        return blake2b(f"{self.index.fingerprint()} {self.masks.key()}".encode(), digest_size=8).hexdigest()

    def maps(
        self, read: MapReader, encoder: Encoder, spec: SegmentSpec, side: int, machine: Machine
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the row of each image and its feature map `[D, h, w]`, on the CPU; raises SslkitError for unreadable images."""
        every = WholeImages.whole(self.index, spec, side)
        for start in range(0, len(self), _PART):
            rows = np.arange(start, min(start + _PART, len(self)))
            images = WholeImages.whole(self.index.subset(rows), spec, side, every)
            features = extract_every(encoder, images, machine, spec, lambda view: {"last": read(view)})
            yield from zip(rows.tolist(), features, strict=True)


def find_masked(index: Index, name: str, spec: OpenSpec, pretrained: bool) -> MaskedImages:
    """Return the images of an index with their masks; raises SslkitError without masks, and for images that are too long."""
    pattern = spec.table(ImageOptions).targets
    if pattern is None:
        raise SslkitError("missing", "masks beside images, such as --targets ../masks/{stem}.png", flag="targets")
    targets = find_targets(index, pattern)
    if not isinstance(targets, Masks):
        raise SslkitError(f"{pattern} are boxes", "masks are needed, such as ../masks/{stem}.png", flag="targets")
    check_proportions(index, name)
    return MaskedImages(name, index, targets, pretrained)


def check_proportions(index: Index, name: str, flag: str = "data") -> None:
    """Raise SslkitError for images that are too long to be kept whole."""
    sizes = image_sizes(index)
    if (sizes.max(axis=1) > _LONGEST * sizes.min(axis=1)).any():
        raise SslkitError(f"images of {name} are longer than 2:1", "cut them into parts first", flag=flag)


def count_numbers(images: MaskedImages, ignore: int) -> NDArray[np.int64]:
    """Return how many pixels have each number, `[256]`, without the one that counts for nothing."""
    counts = np.zeros(256, dtype=np.int64)
    for row in range(len(images)):
        counts += np.bincount(images.mask(row).flatten(), minlength=256)
    counts[ignore] = 0
    return counts


def class_places(mask: NDArray[np.uint8], numbers: list[int], ignore: int, name: str) -> NDArray[np.int64]:
    """Return of each pixel the place of its class in `numbers`, `[H, W]`, -1 for what counts for nothing.

    Raises SslkitError for a number that is neither.
    """
    places = np.full(256, -2)
    places[numbers], places[ignore] = np.arange(len(numbers)), -1
    result: NDArray[np.int64] = places[mask]
    if (result == -2).any():
        unknown = sorted({int(number) for number in np.unique(mask[result == -2])})
        problem = f"mask {name} has {', '.join(map(str, unknown[:5]))}, which no mask of the training part has"
        raise SslkitError(problem, "name void pixels by --ignore", flag="targets")
    return result


def class_shares(places: NDArray[np.int64], classes: int, grid: tuple[int, int]) -> Tensor:
    """Return which share of the pixels of each place of a grid `h, w` each class has, `[classes, h, w]`; void has the rest."""
    single = F.one_hot(torch.from_numpy(places) + 1, classes + 1)[..., 1:].permute(2, 0, 1).float()
    return F.adaptive_avg_pool2d(single, grid)


def predict_mask(scores: Tensor, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return the class of each pixel, `[H, W]`, from scores `[classes, h, w]`, enlarged bilinearly."""
    enlarged = F.interpolate(scores[None], size=shape, mode="bilinear")
    return enlarged[0].argmax(dim=0).numpy()


@dataclass(frozen=True)
class Overlaps:
    """Pixels of each image and class, `[N, classes]`: that are predicted rightly, that are predicted, and that are true."""

    right: NDArray[np.int64]
    predicted: NDArray[np.int64]
    true: NDArray[np.int64]

    @classmethod
    def of(cls, pairs: Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]], classes: int) -> "Overlaps":
        """Count the pixels of predicted and true masks; those of -1 count for nothing."""
        counts = np.stack([count_pixels(predicted, true, classes) for predicted, true in pairs], axis=1)
        return cls(*counts)

    def iou(self, weights: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Return intersection over union of each class over all images, `[..., classes]`; NaN for one that never is true.

        `weights` `[R, N]` tells how often each image counts.
        """
        right, predicted, true = (
            counts.sum(axis=0) if weights is None else weights @ counts for counts in (self.right, self.predicted, self.true)
        )
        union = predicted + true - right
        shares: NDArray[np.float64] = np.where(true > 0, right / np.maximum(union, 1), np.nan)
        return shares

    def resample(self, seed: int = 0) -> NDArray[np.float64]:
        """Return the mean over classes in 2,000 resamples of images, the same ones for all models."""
        rng, count = np.random.default_rng(seed), len(self.right)
        weights = np.stack(list(resample_counts(count, rng)))
        means: NDArray[np.float64] = np.nanmean(self.iou(weights), axis=1)
        return means

    def metrics(self) -> list[Metric]:
        """Return the mean over classes, with its interval over images, and the accuracy over pixels."""
        low, high, method = interval_of_resamples(self.resample(), "images")
        accuracy = float(self.right.sum() / max(1, self.true.sum()))
        count = len(self.right)
        return [
            Metric("mIoU", float(np.nanmean(self.iou())), low, high, method, n=count, unit_of_n="images"),
            Metric("pixel accuracy", accuracy, n=count, unit_of_n="images"),
        ]

    def compare(self, other: "Overlaps") -> Comparison:
        """Return by how much this mean exceeds another over the same images."""
        difference = float(np.nanmean(self.iou()) - np.nanmean(other.iou()))
        return compare_resamples(self.resample(), other.resample(), difference, "images")


def count_pixels(predicted: NDArray[np.int64], true: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return, by class, how many pixels are predicted rightly, are predicted and are true, `[3, classes]`."""
    known = true >= 0
    predicted, true = predicted[known], true[known]
    right = np.bincount(true[predicted == true], minlength=classes)
    return np.stack([right, np.bincount(predicted, minlength=classes), np.bincount(true, minlength=classes)])
