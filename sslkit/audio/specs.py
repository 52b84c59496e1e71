"""Specs of evaluations of audio."""

from pydantic import Field

from sslkit.contract.options import Count
from sslkit.specs.evaluation import EvaluationSpec


class FramesSpec(EvaluationSpec):
    """Options of `frames`."""

    alignments: str = Field(
        description="Labels in time: path from each recording ({stem}.TextGrid, {stem}.phn, {stem}.csv), or one .csv for all."
    )
    tier: str | None = Field(default=None, description="Tier of a TextGrid; default: phones, or the only one.")
    layer: str = Field(
        default="last",
        pattern=r"^(last|all|mix|[1-9]\d*)$",
        description="last, all (a row each), mix (a weighted sum of all, learned with the classifier), or a number counted "
        "from the input.",
    )
    max_frames: Count = Field(default=200_000, description="Frames to fit on at most, drawn by the seed as whole recordings.")
    c: float | None = Field(
        default=None, gt=0, description="Inverse regularization C; set by hand, the result has no protocol id."
    )
