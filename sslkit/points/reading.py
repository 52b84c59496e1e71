"""Point clouds and meshes from files: points as they are, or sampled from the surface of a mesh."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sslkit.contract.errors import UnreadableSampleError
from sslkit.data.array_files import find_array, open_arrays
from sslkit.extras import load_extra
from sslkit.points.options import CLOUDS

_LARGEST = 5_000_000  # points, or faces
_COORDINATES = ("x", "y", "z")

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Cloud:
    """Points `[N, 3 + F]`, or the corners of a mesh, whose `triangles` `[M, 3]` are their rows."""

    points: Values
    triangles: NDArray[np.int64] | None = None

    def sample(self, count: int, random: np.random.Generator) -> Values:
        """Return so many points `[count, 3 + F]`: of the surface of a mesh, or of the cloud, all of them at most once.

        A cloud with fewer points repeats some.
        """
        if self.triangles is None:
            chosen = random.permutation(len(self.points))[:count]
            if len(chosen) < count:
                chosen = np.concatenate([chosen, random.integers(len(self.points), size=count - len(chosen))])
            sampled: Values = self.points[chosen]
            return sampled
        corners = self.points[self.triangles].astype(np.float64)  # [M, 3, 3 + F]
        area = np.linalg.norm(np.cross(corners[:, 1, :3] - corners[:, 0, :3], corners[:, 2, :3] - corners[:, 0, :3]), axis=1)
        if not area.sum() > 0:
            raise UnreadableSampleError("its triangles have no area")
        faces = random.choice(len(area), size=count, p=area / area.sum())
        first, second = random.random((2, count, 1))
        root = np.sqrt(first)  # uniform over a triangle (Osada et al., 2002, equation 1)
        chosen_corners = corners[faces]
        sampled = (
            (1 - root) * chosen_corners[:, 0]
            + root * (1 - second) * chosen_corners[:, 1]
            + root * second * chosen_corners[:, 2]
        )
        return sampled.astype(np.float32)


def read_cloud(stream: BinaryIO, name: str, features: int) -> Cloud:
    """Return what a file holds, with so many values after the coordinates; raises UnreadableSampleError.

    Decoders raise anything else on bytes that they cannot read.
    """
    kind = PurePath(name).suffix.lower()
    readers = {".npy": _read_npy, ".off": _read_off, ".ply": _read_ply, ".pcd": _read_pcd}
    return check_cloud(readers[kind](stream) if kind in readers else _read_arrays(stream, name), features)


def check_cloud(cloud: Cloud, features: int) -> Cloud:
    """Return a cloud with so many values after the coordinates; raises UnreadableSampleError for one that can't be used."""
    points, triangles = cloud.points, cloud.triangles
    if points.dtype.kind not in "fiu":
        raise UnreadableSampleError(f"values of type {points.dtype}, expected numbers")
    if points.ndim != 2 or points.shape[1] < 3 or not len(points):
        raise UnreadableSampleError(f"shape {points.shape}, expected [points, 3] or more values per point")
    if points.shape[1] < 3 + features:
        raise UnreadableSampleError(f"{points.shape[1] - 3} values beside the coordinates, expected {features}")
    if len(points) > _LARGEST or (triangles is not None and len(triangles) > _LARGEST):
        raise UnreadableSampleError(f"more than {_LARGEST:,} points or faces")
    points = np.ascontiguousarray(points[:, : 3 + features], dtype=np.float32)
    if not np.isfinite(points).all():
        raise UnreadableSampleError("values that are not finite")
    if triangles is not None and not len(triangles):
        triangles = None
    if triangles is not None and (triangles.min() < 0 or triangles.max() >= len(points)):
        raise UnreadableSampleError("a face names a corner that is not there")
    return Cloud(points, triangles)


def _read_npy(stream: BinaryIO) -> Cloud:
    return Cloud(np.load(stream, allow_pickle=False))


def _read_arrays(stream: BinaryIO, name: str) -> Cloud:
    with open_arrays(stream, name) as arrays:
        values = find_array(arrays, CLOUDS.arrays)
        if values is None:
            raise UnreadableSampleError(f"no array `points` (arrays: {', '.join(arrays) or 'none'})")
        return Cloud(values)


def _read_off(stream: BinaryIO) -> Cloud:
    """Read OFF: the counts may stand on the first line, or be glued to the word OFF, as in ModelNet."""
    lines = [line for raw in stream.read().decode("ascii").splitlines() if (line := raw.partition("#")[0].strip())]
    if not lines or not lines[0].upper().startswith("OFF"):
        raise UnreadableSampleError("does not begin with OFF")
    first = lines[0][3:].strip()
    lines = ([first] if first else []) + lines[1:]
    corners, faces = (int(count) for count in lines[0].split()[:2])
    if not 0 < corners <= _LARGEST or not 0 <= faces <= _LARGEST or len(lines) < 1 + corners + faces:
        raise UnreadableSampleError(f"{corners} corners and {faces} faces do not fit into {len(lines) - 1} lines")
    points = np.array([line.split()[:3] for line in lines[1 : 1 + corners]], dtype=np.float32)
    polygons = [[int(word) for word in line.split()] for line in lines[1 + corners : 1 + corners + faces]]
    return Cloud(points, _triangulate([polygon[1 : 1 + polygon[0]] for polygon in polygons]))


def _read_ply(stream: BinaryIO) -> Cloud:
    """Read PLY, ascii or binary; the properties of a vertex after x, y and z are its further values, in their order."""
    content = load_extra("plyfile", "points", "reading .ply").PlyData.read(BytesIO(stream.read()))
    vertex = content["vertex"].data
    names = [*_COORDINATES, *(name for name in vertex.dtype.names if name not in _COORDINATES)]
    points = np.stack([np.asarray(vertex[name], dtype=np.float32) for name in names], axis=1)
    if "face" not in content or not content["face"].count:
        return Cloud(points)
    faces: Any = content["face"].data
    corners = next((name for name in ("vertex_indices", "vertex_index") if name in faces.dtype.names), None)
    if corners is None:
        return Cloud(points)
    return Cloud(points, _triangulate([list(map(int, polygon)) for polygon in faces[corners]]))


def _read_pcd(stream: BinaryIO) -> Cloud:
    cloud = load_extra("pypcd4", "points", "reading .pcd").PointCloud.from_fileobj(BytesIO(stream.read()))
    names = [*_COORDINATES, *(name for name in cloud.fields if name not in _COORDINATES)]
    points: Values = np.asarray(cloud.numpy(tuple(names)), dtype=np.float32)
    return Cloud(points[np.isfinite(points[:, :3]).all(axis=1)])  # places where a sensor measured nothing are NaN


def _triangulate(polygons: list[list[int]]) -> NDArray[np.int64]:
    """Return the triangles of convex polygons, `[M, 3]`: fans around the first corner."""
    triangles = [(polygon[0], polygon[at], polygon[at + 1]) for polygon in polygons for at in range(1, len(polygon) - 1)]
    return np.array(triangles, dtype=np.int64).reshape(-1, 3)
