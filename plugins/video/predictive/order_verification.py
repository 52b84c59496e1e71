"""Tell whether three frames of a clip are in order."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, SslkitError, TaskOptions
from sslkit.image.decoders import map_size
from sslkit.image.transforms import random_resized_crop
from sslkit.nn import Norm, mlp
from sslkit.pictures import add_frame, tile_grid

# Of the 96 frames from which the paper's tuples come: how far the outer two may be apart, and how far others are from them.
_WINDOW, _APART, _AWAY = 96, 60, 15


class OrderVerification(PretextTask):
    """Tell whether three frames of a clip are in order (Shuffle and Learn; Misra et al., 2016).

    Of five frames a < b < c < d < e, (b, c, d) is in order; (b, a, d) and (b, e, d) are not. Only the frame in the middle
    differs, so that how far the outer two are apart tells nothing (section 3.2).
    """

    class Options(TaskOptions):
        """Hold the options of order_verification."""

        hidden: int = Field(default=128, ge=1, description="Width of a frame's vector, and of the layer that compares three.")
        in_order: float = Field(default=0.25, gt=0, lt=1, description="Weight of the triples that are in order.")
        difference: float = Field(
            default=1e-4,
            ge=0,
            description="Mean squared difference below which two frames are too much alike.",
        )
        crop_scale: float = Field(default=0.6, gt=0, le=1, description="Smallest share of the frames that a random crop keeps.")
        norm: Norm = Field(default="layer", description="Norm in the layer that compares three frames.")

    options: Options
    head: nn.ModuleDict
    modality: ClassVar = "video"
    reads: ClassVar = ("feature_map",)
    defaults: ClassVar = {"lr": 3e-3, "weight_decay": 1e-4, "batch_size": 32}
    preview_columns: ClassVar = ("in order", "not in order")
    tuples: Tensor

    def build_head(self) -> nn.Module:
        """Build what makes a vector of a frame's map, places included, and what compares the vectors of three."""
        size, hidden = self.data.size, self.options.hidden
        height, width = map_size(self.encoder, torch.zeros(1, self.data.channels, size, size))
        frame = nn.Sequential(nn.Flatten(), nn.Linear(self.encoder.width * height * width, hidden), nn.ReLU())
        return nn.ModuleDict({"frame": frame, "verdict": mlp([3 * hidden, hidden, 2], self.options.norm)})

    def setup(self) -> None:
        """List the tuples of five places that may be drawn."""
        frames = self.data.details["frames"]
        if frames < 5:
            raise SslkitError(f"windows have {frames} frames", "expected 5 or more", flag="data")
        self.register_buffer("tuples", tuples(frames), persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return five frames of each clip, cropped alike, `[B, 5, C, S, S]`; which negatives count, bool `[B, 2]`.

        Half of the tuples run backwards: what is in order forwards is in order backwards, too.
        """
        clip = batch["video"]
        device = clip.device
        chosen = self.tuples[torch.randint(len(self.tuples), (len(clip),), device=device)]
        chosen = torch.where(torch.rand(len(clip), 1, device=device) < 0.5, chosen, chosen.flip(1))
        frames = clip[torch.arange(len(clip), device=device)[:, None], chosen]
        # As channels of one image, so that one crop and one flip is drawn for all.
        cropped = random_resized_crop(
            frames.flatten(1, 2), self.data.size, scale=(self.options.crop_scale, 1.0), flipped=0.5
        ).unflatten(1, frames.shape[1:3])
        first, _, middle, _, last = cropped.unbind(1)
        apart = torch.stack([(middle - other).square().mean(dim=(1, 2, 3)) for other in (first, last)], dim=1)
        return {"image": cropped, "told": apart >= self.options.difference}

    def predict(self, batch: Batch) -> Tensor:
        """Return scores of "in order" and "not in order" for (b, c, d), (b, a, d) and (b, e, d), `[B, 3, 2]`."""
        vectors = self.each_view(lambda image: self.head["frame"](self.encoder.feature_map(image)), batch["image"])
        a, b, c, d, e = vectors.unbind(1)
        triples = torch.stack([torch.cat([b, middle, d], dim=1) for middle in (c, a, e)], dim=1)
        verdicts: Tensor = self.head["verdict"](triples.flatten(0, 1)).unflatten(0, triples.shape[:2])
        return verdicts

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of triples in order, and of the others that count, weighted as the paper samples them."""
        weight = self.options.in_order
        right = -F.log_softmax(output[:, 0], dim=1)[:, 0]
        wrong = -F.log_softmax(output[:, 1:], dim=2)[..., 1] * batch["told"]
        return {"in_order": weight * right.sum(), "shuffled": (1 - weight) * wrong.sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return how many triples of each kind there are."""
        told = batch["told"]
        return {"in_order": torch.full((), len(told), device=told.device), "shuffled": told.sum()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the share of triples that were told right, those in order and the others counting the same: 0.5 is chance."""
        said = output[..., 0] > output[..., 1]
        told = batch["told"].sum(dim=1)
        refused = (~said[:, 1:] & batch["told"]).sum(dim=1) / told.clamp(min=1)
        # Of a clip in which nothing can be told from what is in order, the other half is neither right nor wrong.
        return {"accuracy": (said[:, 0].float() + refused.where(told > 0, 0.5)) / 2}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return a triple in order and one that is not, of a trained task in green where it was told right."""
        a, b, c, d, _ = batch["image"].unbind(1)
        strips = torch.stack([tile_grid(torch.stack([b, middle, d], dim=1), columns=3) for middle in (c, a)], dim=1)
        if output is None:
            return strips
        said = output[..., 0] > output[..., 1]
        return add_frame(strips, torch.stack([said[:, 0], ~said[:, 1]], dim=1), width=2)


def tuples(frames: int) -> Tensor:
    """Return all places a < b < c < d < e among so many frames that may be drawn, int64 `[N, 5]`.

    b and d are at most 60/96 of the frames apart, a and e at least 15/96 from them (section 3.2); of few frames, one.
    """
    apart, away = max(2, round(frames * _APART / _WINDOW)), max(1, round(frames * _AWAY / _WINDOW))
    found = [
        (a, b, c, d, e)
        for b in range(away, frames)
        for d in range(b + 2, min(b + apart, frames - 1 - away) + 1)
        for a in range(b - away + 1)
        for c in range(b + 1, d)
        for e in range(d + away, frames)
    ]
    return torch.tensor(found)
