"""Tell on which of eight sides of one patch another one lay."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, SslkitError
from sslkit.image.transforms import cut_tiles, resize
from sslkit.image.views import CropOptions, random_crop_view
from sslkit.nn import Norm, mlp
from sslkit.pictures import add_frame, side_by_side, tile_grid

# Of an image's side: the paper's patches of 96 px, gaps of 48 and jitter of 7, three patches and two gaps to a side.
_SIDE = 3 * 96 + 2 * 48 + 2 * 7


_PATCH, _GAP, _JITTER = 96 / _SIDE, 48 / _SIDE, 7 / _SIDE


_CENTER = 4


_PLACES = [place for place in range(9) if place != _CENTER]  # of the 3×3 grid, row by row


class RelativePosition(PretextTask):
    """Tell on which of eight sides of one patch another one lay (Doersch et al., 2015).

    Gap and jitter keep lines from being followed across the border. Colors of a lens shift with the distance from its
    middle and would tell the place: they are dropped or projected out. The mean of each patch is taken away.
    """

    class Options(CropOptions):
        """Hold the options of relative_position."""

        color: Literal["drop", "project", "keep"] = Field(
            default="project",
            description="Against chromatic aberration: drop all channels of a patch but one, or project out green-magenta.",
        )
        hidden: int = Field(default=512, ge=1, description="Hidden width of the head (4,096 in the paper).")
        norm: Norm = Field(default="batch", description="Norm inside the head.")

    options: Options
    places: Tensor
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    preview_columns: ClassVar = ("image", "true place", "place as told")

    def build_head(self) -> nn.Module:
        """Build the MLP over the features of both patches."""
        return mlp([2 * self.encoder.width, self.options.hidden, 8], self.options.norm)

    def setup(self) -> None:
        """Settle the geometry in pixels."""
        size = self.data.size
        self.patch, self.gap = int(_PATCH * size), max(1, round(_GAP * size))
        self.jitter = min(max(1, round(_JITTER * size)), (size - 3 * self.patch - 2 * self.gap) // 2)
        if self.patch < 4 or self.jitter < 1:
            raise SslkitError(
                f"images of {size} px have patches of {self.patch} px", "relative_position needs 18 px", flag="size"
            )
        self.seen = self.encoder.nearest_valid_size(
            max(16, self.patch)
        )  # of a smaller patch nothing would be left after a few strides
        self.register_buffer("places", torch.tensor(_PLACES), persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return the middle patch and one beside it, `[B, 2, C, s, s]`, and which of the eight it is, `side` `[B]`."""
        size, device = self.data.size, batch["image"].device
        image = random_crop_view(batch["image"], size, self.options.crop_scale)
        side = torch.randint(8, (len(image),), device=device)
        place = torch.stack([torch.full_like(side, _CENTER), self.places[side]], dim=1)  # [B, 2]
        step = self.patch + self.gap
        start = (size - 3 * self.patch - 2 * self.gap) // 2
        moved = torch.randint(-self.jitter, self.jitter + 1, (2, len(image), 2), device=device)
        top, left = start + place // 3 * step + moved[0], start + place % 3 * step + moved[1]
        cut = self._without_aberration(cut_tiles(image, top, left, self.patch))
        cut = cut - cut.mean(dim=(-2, -1), keepdim=True) + 0.5
        return {"image": resize(cut, self.seen), "side": side}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of the eight sides, `[B, 8]`."""
        logits: Tensor = self.head(self.each_view(self.encoder, batch["image"]).flatten(1))
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(output, batch["side"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return whether the side was told right: by chance, one in eight."""
        return {"accuracy": (output.argmax(dim=1) == batch["side"]).float()}

    def reasons(self) -> dict[str, str]:
        """Say how large the patches are."""
        grown = f", enlarged to {self.seen}" if self.patch < self.seen else ""
        return {"patch": f"{self.patch} px{grown}, {self.gap} apart and moved by up to {self.jitter}: the paper's shares"}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return both patches in their true places, and in those that were told."""
        columns = [batch["original"], self._placed(batch["image"], batch["side"])]
        if output is not None:
            told = output.argmax(dim=1)
            columns.append(add_frame(self._placed(batch["image"], told), told == batch["side"]))
        return side_by_side(*columns)

    def _placed(self, patches: Tensor, side: Tensor) -> Tensor:
        """Return boards of 3×3 places with the two patches `[B, 2, C, s, s]` in theirs."""
        grid = torch.full((len(patches), 9, *patches.shape[2:]), 1.0, device=patches.device)
        grid[:, _CENTER] = patches[:, 0]
        grid[torch.arange(len(patches), device=patches.device), self.places[side]] = patches[:, 1]
        return tile_grid(grid, 3)

    def _without_aberration(self, cut: Tensor) -> Tensor:
        """Return patches `[B, 2, C, s, s]` whose colors do not tell how far from the middle of the lens they lay."""
        if self.options.color == "keep" or cut.shape[2] != 3:
            return cut
        if self.options.color == "project":
            # B = I - aᵀa / aaᵀ with a = (-1, 2, -1), green against magenta (section 3.1).
            axis = torch.tensor([-1.0, 2, -1], device=cut.device)
            along = (cut * axis.view(3, 1, 1)).sum(dim=2, keepdim=True)
            return cut - along * axis.view(3, 1, 1) / 6
        # Noise a hundredth as strong as what is kept takes the place of two channels (section 3.1).
        kept = torch.randint(3, (*cut.shape[:2], 1, 1, 1), device=cut.device)
        one = cut.gather(2, kept.expand(-1, -1, 1, *cut.shape[3:]))
        noise = one.mean(dim=(-2, -1), keepdim=True) + 0.01 * one.std(dim=(-2, -1), keepdim=True) * torch.randn_like(cut)
        return torch.where(torch.arange(3, device=cut.device).view(3, 1, 1) == kept, cut, noise)
