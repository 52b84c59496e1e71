"""Options of point clouds."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from sslkit.contract.modality import FileKind
from sslkit.contract.options import Auto, DataOptions

CLOUDS = FileKind(
    "point clouds",
    frozenset({".ply", ".off", ".pcd", ".npy", ".npz", ".h5"}),
    "a folder of .ply, .off, .pcd, .npy, .npz or .h5 files, a .txt list, a .csv with a `path` column, "
    "or an .npy, .npz or .h5 of many clouds",
    arrays=("points", "data"),
)

Points = Annotated[int, Field(ge=16, le=65_536)]


class PointOptions(DataOptions):
    """Data options of point clouds."""

    modality: ClassVar = "points"
    noun: ClassVar = CLOUDS.noun
    size_unit: ClassVar = "points"
    value_range: ClassVar = "[-1, 1]"
    accepts: ClassVar = CLOUDS.accepts
    kept: ClassVar = ("point_features",)
    record: ClassVar = "sslkit.points.modality:PointModality"

    point_count: Points | Auto = Field(
        default="auto", description="Points sampled from a cloud; auto: 1,024, or as many as half of the clouds have."
    )
    point_features: int = Field(
        default=0, ge=0, le=64, description="Values of a point after its coordinates that are used, such as color or normals."
    )

    def sample_size(self) -> int | None:
        """Return `--point-count`, None for auto."""
        return None if self.point_count == "auto" else self.point_count

    @classmethod
    def of_size(cls, size: int) -> dict[str, Any]:
        """Return `point_count`."""
        return {"point_count": size}
