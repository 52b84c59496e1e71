"""Point clouds and meshes from files of all kinds, and what is refused."""

from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import plyfile
import pytest
from pypcd4 import PointCloud

from sslkit.contract.errors import UnreadableSampleError
from sslkit.points.reading import Cloud, read_cloud

CUBE = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
FACES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def read(content: bytes, name: str, features: int = 0) -> Cloud:
    return read_cloud(BytesIO(content), name, features)


def off(head: str) -> bytes:
    corners = "\n".join(" ".join(map(str, corner)) for corner in CUBE)
    faces = "\n".join(f"4 {' '.join(map(str, face))}" for face in FACES)
    return f"{head}\n{corners}\n{faces}\n".encode()


@pytest.mark.parametrize("head", ["OFF\n8 6 0", "OFF8 6 0", "OFF 8 6 0", "# a cube\nOFF\n# counts\n8 6 12"])
def test_off_heads_of_all_kinds(head: str) -> None:
    cloud = read(off(head), "cube.off")
    assert cloud.points.shape == (8, 3) and cloud.triangles is not None and len(cloud.triangles) == 12


def test_points_come_from_the_surface_by_area() -> None:
    cloud = read(off("OFF\n8 6 0"), "cube.off")
    sampled = cloud.sample(6000, np.random.default_rng(0))
    on_face = np.isclose(sampled, 0, atol=1e-6) | np.isclose(sampled, 1, atol=1e-6)
    assert on_face.any(axis=1).all()
    shares = [np.isclose(sampled[:, axis], side, atol=1e-6).mean() for axis in range(3) for side in (0, 1)]
    assert np.allclose(shares, 1 / 6, atol=0.02)
    inside = sampled[np.isclose(sampled[:, 0], 0, atol=1e-6)][:, 1:]
    assert np.allclose(inside.mean(axis=0), 0.5, atol=0.03) and np.allclose(inside.std(axis=0), 12**-0.5, atol=0.02)


def test_ply_with_and_without_faces(tmp_path: Path) -> None:
    vertex = np.array([(*corner, 9) for corner in CUBE], dtype=[("y", "f4"), ("x", "f4"), ("z", "f4"), ("red", "u1")])
    face = np.array([([*face],) for face in FACES], dtype=[("vertex_indices", "i4", (4,))])
    for text in (True, False):
        elements = [plyfile.PlyElement.describe(vertex, "vertex"), plyfile.PlyElement.describe(face, "face")]
        stream = BytesIO()
        plyfile.PlyData(elements, text=text).write(stream)
        cloud = read(stream.getvalue(), "a.PLY", features=1)
        assert cloud.triangles is not None and len(cloud.triangles) == 12
        assert np.array_equal(cloud.points[:, 3], np.full(8, 9)) and np.array_equal(cloud.points[:, 0], vertex["x"])
        stream = BytesIO()
        plyfile.PlyData(elements[:1], text=text).write(stream)
        assert read(stream.getvalue(), "a.ply").triangles is None


def test_pcd_and_arrays(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    points[3, 1] = np.nan  # a place where nothing was measured
    PointCloud.from_xyz_points(points).save(tmp_path / "a.pcd")
    cloud = read((tmp_path / "a.pcd").read_bytes(), "a.pcd")
    assert np.allclose(cloud.points, np.delete(points, 3, axis=0))
    assert read(array(np.arange(40, dtype=np.int16).reshape(8, 5)), "a.npy", features=2).points.shape == (8, 5)


def test_fewer_points_are_repeated_and_no_point_is_left_out() -> None:
    cloud = Cloud(np.arange(30, dtype=np.float32).reshape(10, 3))
    assert sorted(cloud.sample(10, np.random.default_rng(1))[:, 0]) == list(range(0, 30, 3))
    more = cloud.sample(25, np.random.default_rng(1))
    assert len(more) == 25 and set(more[:, 0]) == set(range(0, 30, 3))


def array(values: object) -> bytes:
    stream = BytesIO()
    np.save(stream, np.asarray(values))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (array(np.zeros((4, 2))), "a.npy", "shape (4, 2)"),
        (array(np.zeros((0, 3))), "a.npy", "shape (0, 3)"),
        (array(np.full((4, 3), np.inf)), "a.npy", "not finite"),
        (array(["a"]), "a.npy", "expected numbers"),
        (b"COFF\n1 0 0\n0 0 0", "a.off", "does not begin with OFF"),
        (b"OFF\n9 6 0\n0 0 0\n", "a.off", "do not fit into 1 lines"),
        (b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "a.off", "a face names a corner"),
        (b"OFF\n3 1 0\n0 0 0\n0 0 0\n0 0 0\n3 0 1 2\n", "a.off", "no area"),
    ],
)
def test_what_is_refused(content: bytes, name: str, message: str) -> None:
    with pytest.raises(UnreadableSampleError) as raised:
        read(content, name).sample(4, np.random.default_rng(0))
    assert message in str(raised.value)


def test_values_that_are_not_there() -> None:
    with pytest.raises(UnreadableSampleError, match="1 values beside the coordinates, expected 2"):
        read(array(np.zeros((4, 4))), "a.npy", features=2)


def test_npz_and_h5_hold_a_cloud_and_nothing_outside_is_read(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    stream = BytesIO()
    np.savez(stream, points=points, color=np.zeros(3))
    assert np.array_equal(read(stream.getvalue(), "a.npz").points, points)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = points + 1
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = points
        file["name"] = "a text"
        file["elsewhere"] = h5py.ExternalLink("secret.h5", "/data")
    assert np.array_equal(read((tmp_path / "a.h5").read_bytes(), "a.h5").points, points)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["points"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/data")
        file.create_dataset("data", (20, 3), "f4", external=[(str(tmp_path / "secret.h5"), 0, 240)])
        layout = h5py.VirtualLayout((20, 3), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "data", (20, 3))
        file.create_virtual_dataset("labels", layout)
    with pytest.raises(UnreadableSampleError, match=r"no array `points` \(arrays: none\)"):
        read((tmp_path / "b.h5").read_bytes(), "b.h5")
