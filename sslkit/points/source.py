"""Point clouds as a source: so many points of each, centered and scaled to the unit ball."""

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import UnreadableSampleError
from sslkit.contract.source import OpenSpec, ReadSeed, Rows
from sslkit.contract.task import Batch, DataInfo
from sslkit.data.decode import decoding, inspect_samples
from sslkit.data.index import Index
from sslkit.data.indexed_source import IndexedSource
from sslkit.points.options import CLOUDS, PointOptions
from sslkit.points.reading import Cloud, Values, check_cloud, read_cloud

_POINTS = 1024


class PointSource(IndexedSource):
    """Point clouds; a batch has `points`, float32 `[B, N, 3 + F]`: coordinates in the unit ball, and further values.

    In training other points of a cloud are sampled in every epoch, in evaluations the same ones. `info.details` has
    `point_features`, F.
    """

    kind: ClassVar = CLOUDS
    noun: ClassVar = CLOUDS.noun

    def __init__(self, index: Index, size: int, features: int, resolved: dict[str, tuple[Any, str]]) -> None:
        self.index, self.resolved, self.location = index, resolved, index.source
        self.features = features
        self.info = DataInfo(len(index), size, 3 + features, "points", {"point_features": features})

    @classmethod
    def for_training(cls, index: Index, spec: OpenSpec) -> Self:
        """Return as many points as were asked for, or as half of the clouds have."""
        options, resolved = spec.table(PointOptions), dict[str, tuple[Any, str]]()
        counts = inspect_samples(index, lambda row: _count(index, row, options.point_features), "point cloud")
        size = max(16, min(_POINTS, int(np.median(counts)))) if options.point_count == "auto" else options.point_count
        if options.point_count == "auto":
            resolved["point_count"] = size, "points of a cloud" if size == _POINTS else "as many as half of the clouds have"
        resolved["cache"] = "off", "points are read directly from the files"
        return cls(index, size, options.point_features, resolved)

    @classmethod
    def for_evaluation(cls, index: Index, spec: OpenSpec, encoder: Encoder, size: int, like: Self | None = None) -> Self:
        """Return so many points of each cloud, with the values that an encoder takes."""
        return cls(index, size, encoder.in_channels - 3, {})

    @classmethod
    def example(cls, folder: Path, samples: int) -> str:
        """Write boxes of random proportions, 256 points of the surface of each, as .npy files."""
        random, place = np.random.default_rng(0), folder / "clouds"
        place.mkdir(exist_ok=True)
        for number in range(samples):
            points = random.uniform(-1, 1, (256, 3))
            points[np.arange(256), random.integers(3, size=256)] = random.choice([-1, 1], 256)
            np.save(place / f"{number:04}.npy", (points * random.uniform(0.2, 1, 3)).astype(np.float32))
        return str(place)

    def key(self) -> str:
        """Return the data's own key, the number of points and of further values."""
        return f"{self.index.key()} {self.info.size} {self.features}"

    def read(self, rows: Rows, draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Return `points`, float32 `[n, N, 3 + F]`; a broken cloud has all points in the middle."""
        points = np.zeros((len(rows), self.info.size, 3 + self.features), dtype=np.float32)
        broken: dict[int, str] = {}
        for place, row in enumerate(rows):
            random = np.random.default_rng(int(row)) if draw is None else draw.generator(int(row))
            try:
                cloud = read_row(self.index, int(row), self.features)
                points[place] = _normalize(cloud.sample(self.info.size, random), cloud.points)
            except UnreadableSampleError as reason:
                broken[place] = str(reason)
        return {"points": points}, broken

    def view(self, batch: Batch, encodes: str) -> Tensor:
        """Return the points."""
        points: Tensor = batch["points"]
        return points

    def sample_details(self) -> dict[str, Any]:
        """Return the number of values beside the coordinates."""
        return {"point_features": self.features}


def read_row(index: Index, row: int, features: int) -> Cloud:
    """Return the cloud of a row; raises UnreadableSampleError."""
    if index.array is not None:
        return check_cloud(Cloud(index.array[row]), features)
    with decoding(index, row), index.open(row) as stream:
        return read_cloud(stream, index.name(row), features)


def _count(index: Index, row: int, features: int) -> int:
    """Return how many points a cloud has; of a mesh any number can be sampled."""
    cloud = read_row(index, row, features)
    return len(cloud.points) if cloud.triangles is None else _POINTS


def _normalize(sampled: Values, points: Values) -> Values:
    """Return sampled points in the unit ball around the middle of the cloud's bounds; raises UnreadableSampleError."""
    low, high = points[:, :3].min(axis=0), points[:, :3].max(axis=0)
    center = (low + high) / 2
    radius = float(np.linalg.norm(points[:, :3] - center, axis=1).max())
    if not radius > 0:
        raise UnreadableSampleError("all points are in one place")
    result = sampled.copy()
    result[:, :3] = (sampled[:, :3] - center) / radius
    return result
