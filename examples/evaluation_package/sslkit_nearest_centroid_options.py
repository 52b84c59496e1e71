"""Options of `sslkit nearest-centroid`; without torch, so that `--help` stays fast."""

from typing import Literal

from pydantic import Field
from sslkit.specs.evaluation import EvaluationSpec


class NearestCentroidSpec(EvaluationSpec):
    """Options of `nearest-centroid`; each field is a flag."""

    protocol: Literal["nearest-centroid/cosine-v1"] = Field(
        default="nearest-centroid/cosine-v1", description="Named protocol (see `sslkit protocols`)."
    )
    shrinkage: float | None = Field(
        default=None, ge=0, le=1, description="Share of the overall mean in each centroid; by hand: no protocol id."
    )
