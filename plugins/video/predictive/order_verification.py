"""Shuffle and Learn (Misra et al., 2016)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, SslkitError
from sslkit.image.decoders import flat_map_head
from sslkit.image.transforms import random_resized_crop
from sslkit.image.views import CropOptions, CropScale
from sslkit.nn import Norm, mlp
from sslkit.pictures import add_frame, tile_grid

# In frames of the paper: length of a window, largest distance of b and d, smallest distance of a and e to them.
_WINDOW, _MAX_SPAN, _MIN_OFFSET = 96, 60, 15


class OrderVerification(PretextTask):
    """Classify whether three frames are in order (Shuffle and Learn; Misra et al., 2016).

    Of five frames a < b < c < d < e, (b, c, d) is in order; (b, a, d) and (b, e, d) are not. Only the middle frame differs, so
    that the distance of the outer two carries no information (section 3.2).
    """

    class Options(CropOptions):
        """Options of `order_verification`."""

        hidden: int = Field(default=128, ge=1, description="Width of a frame's vector and of the classifier's hidden layer.")
        in_order: float = Field(default=0.25, gt=0, lt=1, description="Weight of ordered triples; shuffled ones have the rest.")
        difference: float = Field(
            default=1e-4,
            ge=0,
            description="Mean squared difference below which two frames count as identical.",
        )
        crop_scale: CropScale = 0.6
        norm: Norm = Field(default="layer", description="Normalization in the classifier.")

    options: Options
    head: nn.ModuleDict
    modality: ClassVar = "video"
    encodes: ClassVar = "image"  # frames
    requires: ClassVar = ("feature_map",)
    defaults: ClassVar = {"lr": 3e-3, "weight_decay": 1e-4, "batch_size": 32}
    paper: ClassVar = Paper(
        source="the implementation details of the paper",
        settings={
            "batch_size": 128,
            "steps": 100_000,
            "optimizer": "sgd",
            "lr": 1e-3,
            "warmup": 0.0,
        },
        unsupported=(
            "AlexNet with BatchNorm on frames of 227 px",
            "a constant rate (here a cosine)",
        ),
    )
    preview_columns: ClassVar = ("ordered", "shuffled")
    tuples: Tensor

    def build_head(self) -> nn.Module:
        """Build the projection of a frame's flattened feature map, and the classifier of three concatenated projections."""
        hidden = self.options.hidden
        frame = flat_map_head(self.encoder, self.data, hidden)
        return nn.ModuleDict({"frame": frame, "classifier": mlp([3 * hidden, hidden, 2], self.options.norm)})

    def setup(self) -> None:
        """List the admissible tuples of five frames; raise SslkitError for windows of fewer than five frames."""
        frames = self.data.details["frames"]
        if frames < 5:
            raise SslkitError(f"windows have {frames} frames", "order_verification needs at least 5", flag="data")
        self.register_buffer("tuples", tuples(frames), persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return five frames of each clip with the same crop, `[B, 5, C, S, S]`, and which negatives are `valid` `[B, 2]`.

        Half of the tuples are reversed: a triple in order is also in order backwards.
        """
        clip = batch["video"]
        device = clip.device
        selected = self.tuples[torch.randint(len(self.tuples), (len(clip),), device=device)]
        selected = torch.where(torch.rand(len(clip), 1, device=device) < 0.5, selected, selected.flip(1))
        frames = clip[torch.arange(len(clip), device=device)[:, None], selected]
        # Frames become channels of one image, so that they share one crop and one flip.
        cropped = random_resized_crop(
            frames.flatten(1, 2), self.data.size, (self.options.crop_scale, 1.0), flipped=0.5, aspect=batch["aspect"]
        ).unflatten(1, frames.shape[1:3])
        first, _, middle, _, last = cropped.unbind(1)
        difference = torch.stack([(middle - other).square().mean(dim=(1, 2, 3)) for other in (first, last)], dim=1)
        return {"image": cropped, "valid": difference >= self.options.difference}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of "ordered" and "shuffled" for (b, c, d), (b, a, d) and (b, e, d), `[B, 3, 2]`."""
        vectors = self.each_view(lambda image: self.head["frame"](self.encoder.feature_map(image)), batch["image"])
        a, b, c, d, e = vectors.unbind(1)
        triples = torch.stack([torch.cat([b, middle, d], dim=1) for middle in (c, a, e)], dim=1)
        logits: Tensor = self.head["classifier"](triples.flatten(0, 1)).unflatten(0, triples.shape[:2])
        return logits

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of ordered and of valid shuffled triples, weighted as the paper samples them."""
        weight = self.options.in_order
        ordered = -F.log_softmax(output[:, 0], dim=1)[:, 0]
        shuffled = -F.log_softmax(output[:, 1:], dim=2)[..., 1] * batch["valid"]
        return {"in_order": weight * ordered.sum(), "shuffled": (1 - weight) * shuffled.sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of ordered and of valid shuffled triples."""
        valid = batch["valid"]
        return {"in_order": torch.full((), len(valid), device=valid.device), "shuffled": valid.sum()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the balanced accuracy over ordered and valid shuffled triples."""
        ordered = output[..., 0] > output[..., 1]
        count = batch["valid"].sum(dim=1)
        rejected = (~ordered[:, 1:] & batch["valid"]).sum(dim=1) / count.clamp(min=1)
        # Without any valid shuffled triple, that half counts as chance.
        return {"accuracy": (ordered[:, 0].float() + rejected.where(count > 0, 0.5)) / 2}

    def chance(self) -> dict[str, float]:
        """Return the balanced accuracy of a guess."""
        return {"accuracy": 1 / 2}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return an ordered and a shuffled triple; once trained, framed green where the prediction is correct, else red."""
        a, b, c, d, _ = batch["image"].unbind(1)
        strips = torch.stack([tile_grid(torch.stack([b, middle, d], dim=1), columns=3) for middle in (c, a)], dim=1)
        if output is None:
            return strips
        ordered = output[..., 0] > output[..., 1]
        return add_frame(strips, torch.stack([ordered[:, 0], ~ordered[:, 1]], dim=1), width=2)


def tuples(frames: int) -> Tensor:
    """Return all admissible frame indices a < b < c < d < e of a window, int64 `[N, 5]`.

    b and d are at most 60/96 of the window apart, a and e at least 15/96 of it (and one frame) from them (section 3.2).
    """
    max_span, min_offset = max(2, round(frames * _MAX_SPAN / _WINDOW)), max(1, round(frames * _MIN_OFFSET / _WINDOW))
    indices = [
        (a, b, c, d, e)
        for b in range(min_offset, frames)
        for d in range(b + 2, min(b + max_span, frames - 1 - min_offset) + 1)
        for a in range(b - min_offset + 1)
        for c in range(b + 1, d)
        for e in range(d + min_offset, frames)
    ]
    return torch.tensor(indices)
