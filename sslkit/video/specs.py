"""Specs of evaluations of video."""

from pydantic import Field

from sslkit.contract.options import Spec
from sslkit.specs.data import DEVICE, PART


class PropagateSpec(Spec):
    """Options of `propagate`."""

    ckpt: str = Field(description="model.safetensors of an encoder of images, trained on images or on video.")
    data: str = Field(description="Folder of clips, each a folder of frames.")
    masks: str = Field(
        description="Folder with CLIP/FRAME.png for each clip: the number of the object at each pixel, 0 for none. The "
        "first frame's mask is propagated; the others are the ground truth."
    )
    part: str = PART
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    layer: str = Field(default="last", pattern=r"^(last|[1-9]\d*)$", description="last, or a number counted from the input.")
    resolution: int = Field(
        default=480, ge=32, le=2160, description="Short side of frames in pixels at most; smaller ones are not enlarged."
    )
    context: int = Field(default=7, ge=1, le=64, description="Frames before each that masks come from, besides the first.")
    radius: int = Field(default=12, ge=1, description="Places of the feature map, in each direction, that an object may move.")
    neighbors: int = Field(default=5, ge=1, description="Most similar places that a label comes from.")
    temperature: float = Field(default=0.1, gt=0, description="Temperature of the similarities.")
    baselines: bool = Field(default=True, description="Also evaluate random weights, raw pixels and copies of the first mask.")
    out: str | None = Field(default=None, description="PNG file for a picture of true and propagated masks.")
    device: str = DEVICE
    seed: int = Field(default=0, ge=0, description="Random seed of random weights.")
    details: bool = Field(default=False, description="Also print p-values and adjustments.")
