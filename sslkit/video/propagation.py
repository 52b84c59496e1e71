"""Labels carried from frame to frame by similar features, and how well they fit (Pont-Tuset et al., 2017)."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from torch import Tensor

Mask = NDArray[np.uint8]  # [H, W], the number of the object at each pixel

_CHUNK = 2**24  # similarities computed at once
_TOLERANCE = 0.008  # of a boundary, as a fraction of the diagonal of a frame


@dataclass(frozen=True)
class Propagation:
    """Where labels come from: as in the evaluation of DINO (Caron et al., 2021, section 4.2.2; eval_video_segmentation.py)."""

    context: int  # frames before, besides the first
    radius: int  # places
    neighbors: int
    temperature: float

    def run(self, maps: Iterable[Tensor], first: Tensor) -> Iterator[Tensor]:
        """Yield the labels `[K, h, w]` of each frame but the first, given feature maps `[D, h, w]` and the first's labels.

        A place takes those of the most similar places of the first frame and the last ones, within a square around it,
        weighted by exp(cosine / temperature).
        """
        memory: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.context)
        start: tuple[Tensor, Tensor] | None = None
        for features in maps:
            shape = features.shape[1:]
            vectors = F.normalize(features.flatten(1).T.float(), dim=1)  # [h * w, D]
            if start is None:
                start = vectors, first.flatten(1).T
                continue
            sources = [start, *memory]
            labels = self._labels(vectors, sources, (int(shape[0]), int(shape[1])))
            memory.append((vectors, labels))
            yield labels.T.unflatten(1, shape)

    def _labels(self, vectors: Tensor, sources: list[tuple[Tensor, Tensor]], shape: tuple[int, int]) -> Tensor:
        """Return labels `[h * w, K]` of places from those of other frames."""
        places = vectors.shape[0]
        known = torch.cat([features for features, _ in sources])
        known_labels = torch.cat([labels for _, labels in sources])
        number = torch.arange(places, device=vectors.device)
        row, column = number // shape[1], number % shape[1]
        result = []
        for some in number.split(max(1, _CHUNK // len(known))):
            far = (row[some, None] - row).abs().maximum((column[some, None] - column).abs()) > self.radius
            similar = (vectors[some] @ known.T).masked_fill_(far.repeat(1, len(sources)), -torch.inf)
            values, nearest = similar.topk(min(self.neighbors, len(known)), dim=1)
            weights = torch.softmax(values / self.temperature, dim=1)
            result.append((weights[..., None] * known_labels[nearest]).sum(dim=1))
        return torch.cat(result)


def to_labels(mask: Mask, objects: list[int], shape: tuple[int, int]) -> Tensor:
    """Return the share of background and of each object at each place of a map, `[1 + objects, h, w]`."""
    layers = np.stack([~np.isin(mask, objects), *(mask == number for number in objects)]).astype(np.float32)
    return F.interpolate(torch.from_numpy(layers)[None], size=shape, mode="area")[0]


def to_mask(labels: Tensor, objects: list[int], shape: tuple[int, int]) -> Mask:
    """Return the object at each pixel of labels `[1 + objects, h, w]`, each of which is scaled to 0 to 1 before."""
    large = F.interpolate(labels[None], size=shape, mode="bilinear")[0]
    low, high = large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True)
    scaled = torch.where(high > 0, (large - low) / (high - low).clamp(min=1e-6), 0.0)
    mask: Mask = np.array([0, *objects], dtype=np.uint8)[scaled.argmax(dim=0).cpu().numpy()]
    return mask


def region_similarity(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """Return J, the intersection over union of two masks `[H, W]`; 1 if both are empty."""
    union = int((predicted | true).sum())
    return float((predicted & true).sum() / union) if union else 1.0


def boundary_accuracy(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """Return F of the boundaries of two masks `[H, W]`: points count that are near one of the other; 1 if both are empty."""
    ours, theirs = _boundary(predicted), _boundary(true)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    disk = _disk(math.ceil(_TOLERANCE * math.hypot(*true.shape)))
    precision = float((ours & binary_dilation(theirs, disk)).sum() / ours.sum())
    recall = float((theirs & binary_dilation(ours, disk)).sum() / theirs.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels that differ from the one to the right, below, or both, as the benchmark's seg2bmap does."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    result: NDArray[np.bool_] = (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])
    return result


def _disk(radius: int) -> NDArray[np.bool_]:
    place = np.arange(-radius, radius + 1)
    disk: NDArray[np.bool_] = place[:, None] ** 2 + place**2 <= radius**2
    return disk
