"""Egomotion (Agrawal et al., 2015)."""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, Run, SslkitError
from sslkit.image.decoders import flat_map_head
from sslkit.image.transforms import CropBox, crop
from sslkit.nn import Norm, mlp
from sslkit.pictures import add_frame

_SIMULATED = 3  # motions: right, down, and closer
_MEASURED = 1024  # clips from which the classes are made


class Egomotion(PretextTask):
    """Classify how the camera moved between two frames (learning to see by moving; Agrawal et al., 2015).

    Without measured poses the camera is simulated: of two frames, windows at different places and of different sizes are cut
    out, while what is filmed moves on its own. With `--motion poses` classes are differences of the columns of `--poses`.
    """

    class Options(PretextTask.Options):
        """Options of `egomotion`."""

        motion: Literal["simulated", "poses"] = Field(
            default="simulated", description="Camera motion: that of windows cut out of frames, or of --poses."
        )
        gap: int = Field(
            default=4, ge=1, description="Frames of the window between the two at most (7 of 10 per second in the paper)."
        )
        bins: int = Field(
            default=7, ge=2, le=100, description="Classes of each kind of motion, equally frequent (20 in the paper)."
        )
        shift: float = Field(default=0.25, gt=0, le=1, description="Largest simulated shift, as a fraction of the window.")
        zoom: float = Field(default=1.25, gt=1, le=2, description="Largest simulated change of size, as a factor.")
        window: float = Field(default=0.6, gt=0.1, lt=1, description="Side of a simulated window, as a fraction of the frame.")
        hidden: int = Field(default=128, ge=1, description="Width of a frame's vector and of the classifier's hidden layer.")
        norm: Norm = Field(default="layer", description="Normalization in the classifier.")

    options: Options
    head: nn.ModuleDict
    edges: Tensor
    modality: ClassVar = "video"
    encodes: ClassVar = "image"  # frames
    requires: ClassVar = ("feature_map",)
    needs: ClassVar = ("pose",)
    defaults: ClassVar = {"lr": 3e-3, "weight_decay": 1e-4, "batch_size": 32}
    paper: ClassVar = Paper(
        source="section 4 of the paper (KITTI)",
        settings={"size": 227, "optimizer": "sgd", "motion": "poses", "gap": 7, "bins": 20},
        unsupported=("AlexNet", "classes of equal width (here equally frequent: most frames hardly move)"),
    )
    preview_columns: ClassVar = ("before", "after")

    def build_head(self) -> nn.Module:
        """Build what describes a frame's feature map, and the classifier of two frames."""
        hidden = self.options.hidden
        self.kinds = _SIMULATED if self.options.motion == "simulated" else int(self.data.details.get("pose", 0))
        frame = flat_map_head(self.encoder, self.data, hidden)
        classifier = mlp([2 * hidden, hidden, max(1, self.kinds) * self.options.bins], self.options.norm)
        return nn.ModuleDict({"frame": frame, "classifier": classifier})

    def setup(self) -> None:
        """Register the limits of classes; raise SslkitError without the poses that are asked for."""
        if self.kinds == 0:
            raise SslkitError("poses are not read", "name the file in each clip's folder with --poses", flag="motion")
        if self.data.details["frames"] <= self.options.gap:
            problem = f"windows have {self.data.details['frames']} frames, fewer than {self.options.gap} + 1"
            raise SslkitError(problem, "use less, or longer clips", flag="gap")
        if self.options.motion == "simulated" and "pose" in self.data.details:
            raise SslkitError("poses have no effect on a simulated camera", "use --motion poses", flag="poses")
        options = self.options
        reach = options.window * max(0.5 + options.shift + options.zoom / 2, options.zoom)
        if options.motion == "simulated" and reach > 1:
            problem = f"windows of {options.window:g} that are shifted by {options.shift:g} and zoomed by {options.zoom:g}"
            raise SslkitError(f"{problem} do not fit the frame", f"use at most {options.window / reach:.2g}", flag="window")
        self.register_buffer("edges", torch.zeros(self.kinds, self.options.bins - 1))

    def before_epoch(self, run: Run) -> None:
        """Choose the limits of classes, once, so that they are equally frequent."""
        if self.clock.epoch > 0:
            return
        if self.options.motion == "simulated":
            motion = self._windows(_MEASURED, self.edges.device)[1]
        else:
            pose = run.batch(_MEASURED, lambda batch: {"pose": batch["pose"]})["pose"]
            motion = self._relative(pose, *self._pairs(len(pose), pose.shape[1], pose.device))
        still = [number + 1 for number in range(self.kinds) if bool((motion[:, number] == motion[0, number]).all())]
        if still:
            raise SslkitError(f"number {still[0]} of the poses never changes", "leave it out of the file", flag="poses")
        share = torch.arange(1, self.options.bins, device=motion.device) / self.options.bins
        self.edges.copy_(motion.quantile(share.to(motion.dtype), dim=0).T)

    def transform(self, batch: Batch) -> Batch:
        """Return two frames of each clip, `[B, 2, C, S, S]`, and the class of each kind of motion, int64 `[B, kinds]`."""
        clip = batch["video"]
        count, device = len(clip), clip.device
        first, second = self._pairs(count, clip.shape[1], device)
        sample = torch.arange(count, device=device)
        frames = clip[sample, first], clip[sample, second]
        if self.options.motion == "simulated":
            boxes, motion = self._windows(count, device)
        else:
            boxes, motion = _whole(count, device), self._relative(batch["pose"], first, second)
        boxes = _in_middle(boxes[0], batch["aspect"]), _in_middle(boxes[1], batch["aspect"])
        image = torch.stack([crop(frame, box, self.data.size) for frame, box in zip(frames, boxes, strict=True)], dim=1)
        return {"image": image, "motion": (motion[..., None] > self.edges).sum(dim=2)}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of classes, `[B, kinds, bins]`."""
        vectors = self.each_view(lambda image: self.head["frame"](self.encoder.feature_map(image)), batch["image"])
        logits: Tensor = self.head["classifier"](vectors.flatten(1)).unflatten(1, (self.kinds, self.options.bins))
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over kinds of motion."""
        return F.cross_entropy(output.flatten(0, 1), batch["motion"].flatten())

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy over kinds of motion."""
        return {"accuracy": (output.argmax(dim=2) == batch["motion"]).float().mean(dim=1)}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess."""
        return {"accuracy": 1 / self.options.bins}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return both frames; once trained, framed green if most kinds of motion are right, else red."""
        image: Tensor = batch["image"]
        if output is None:
            return image
        right = (output.argmax(dim=2) == batch["motion"]).float().mean(dim=1) > 0.5
        return add_frame(image, right[:, None].expand(-1, 2), width=2)

    def _pairs(self, count: int, frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the numbers of two frames of each clip, the first before the second."""
        gap = torch.randint(1, self.options.gap + 1, (count,), device=device)
        first = (torch.rand(count, device=device) * (frames - gap)).long()
        return first, first + gap

    def _relative(self, pose: Tensor, first: Tensor, second: Tensor) -> Tensor:
        sample = torch.arange(len(pose), device=pose.device)
        return pose[sample, second] - pose[sample, first]

    def _windows(self, count: int, device: torch.device) -> tuple[tuple[CropBox, CropBox], Tensor]:
        """Return two windows of frames, and how the second lies to the first: right, down, closer, `[count, 3]`.

        The pair is placed at random where both fit; therefore the first, if it lies far to one side, says a little.
        """
        options = self.options
        shift = options.shift * options.window * (2 * torch.rand(2, count, device=device) - 1)
        factor = torch.exp((2 * torch.rand(count, device=device) - 1) * math.log(options.zoom))
        sides = torch.full((count,), options.window, device=device), options.window / factor
        places = []
        for axis in range(2):
            # Shifts are of the middle of windows.
            begin, end = -sides[0] / 2, sides[0] / 2
            low, high = torch.minimum(begin, shift[axis] - sides[1] / 2), torch.maximum(end, shift[axis] + sides[1] / 2)
            room = (1 - (high - low)).clamp(min=0)
            middle = room * torch.rand(count, device=device) - low
            places.append((middle - sides[0] / 2, middle + shift[axis] - sides[1] / 2))
        (left, left2), (top, top2) = places
        boxes = CropBox(top, left, sides[0], sides[0]), CropBox(top2, left2, sides[1], sides[1])
        return boxes, torch.stack([shift[0], shift[1], factor.log()], dim=1)


def _in_middle(box: CropBox, aspect: Tensor) -> CropBox:
    """Return a box of the square in the middle of frames as one of canvases, which hold frames of an `aspect` stretched."""
    window = aspect.clamp(0.5, 2)
    across, down = 1 / window.clamp(min=1), window.clamp(max=1)
    left, top = (1 - across) / 2 + box.left * across, (1 - down) / 2 + box.top * down
    return CropBox(top, left, box.down * down, box.across * across)


def _whole(count: int, device: torch.device) -> tuple[CropBox, CropBox]:
    zero, one_side = torch.zeros(count, device=device), torch.ones(count, device=device)
    box = CropBox(zero, zero, one_side, one_side)
    return box, box
