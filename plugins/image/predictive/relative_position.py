"""Relative patch position (Doersch et al., 2015)."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper, SslkitError
from sslkit.image.transforms import cut_tiles, resize
from sslkit.image.views import CropOptions
from sslkit.nn import Norm, constant, mlp
from sslkit.pictures import add_frame, side_by_side, tile_grid

# In pixels of the paper: patches of 96 px, gaps of 48 and jitter of 7; three patches and two gaps make up a side.
_SIDE = 3 * 96 + 2 * 48 + 2 * 7


_PATCH, _GAP, _JITTER = 96 / _SIDE, 48 / _SIDE, 7 / _SIDE


_CENTER = 4


_POSITIONS = [position for position in range(9) if position != _CENTER]  # of the 3×3 grid, in row-major order


class RelativePosition(ImageTask):
    """Predict the position of a patch relative to a neighbor (Doersch et al., 2015).

    There are eight positions around the center patch. Gap and jitter keep lines from continuing across the border. Chromatic
    aberration depends on the distance from the center of the lens and would reveal the position: color is dropped or projected
    out. The mean of each patch is subtracted.
    """

    class Options(CropOptions):
        """Options of `relative_position`."""

        color: Literal["drop", "project", "keep"] = Field(
            default="project",
            description="Against chromatic aberration: drop all but one channel per patch, or project out green-magenta.",
        )
        hidden: int = Field(default=512, ge=1, description="Hidden width of the head (4,096 in the paper).")
        norm: Norm = Field(default="batch", description="Normalization inside the head.")

    options: Options
    positions: Tensor
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="section 3 of the paper",
        settings={
            "size": 398,
            "hidden": 4096,
        },
        unsupported=(
            "AlexNet with BatchNorm",
            "images of 150,000 to 450,000 pixels, patches of which some are downsampled",
        ),
    )
    preview_columns: ClassVar = ("image", "true position", "prediction")

    def build_head(self) -> nn.Module:
        """Build the MLP on the concatenated features of both patches."""
        return mlp([2 * self.encoder.width, self.options.hidden, 8], self.options.norm)

    def setup(self) -> None:
        """Convert the paper's geometry to pixels; raise SslkitError for images that are too small."""
        size = self.data.size
        self.patch, self.gap = int(_PATCH * size), max(1, round(_GAP * size))
        self.jitter = min(max(1, round(_JITTER * size)), (size - 3 * self.patch - 2 * self.gap) // 2)
        if self.patch < 4 or self.jitter < 1:
            raise SslkitError(f"images of {size} px give patches of {self.patch} px", "use at least 18", flag="size")
        # At least 16 px: the strides of an encoder would leave nothing of smaller patches.
        self.input_size = self.encoder.nearest_valid_size(max(16, self.patch))
        self.register_buffer("positions", torch.tensor(_POSITIONS), persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return the center patch and a neighbor, `[B, 2, C, s, s]`, and the neighbor's position, `side` `[B]` in 0..7."""
        image = self.crop(batch)
        size, device = self.data.size, image.device
        side = torch.randint(8, (len(image),), device=device)
        position = torch.stack([torch.full_like(side, _CENTER), self.positions[side]], dim=1)  # [B, 2]
        step = self.patch + self.gap
        start = (size - 3 * self.patch - 2 * self.gap) // 2
        jitter = torch.randint(-self.jitter, self.jitter + 1, (2, len(image), 2), device=device)
        top, left = start + position // 3 * step + jitter[0], start + position % 3 * step + jitter[1]
        patches = self._remove_aberration(cut_tiles(image, top, left, self.patch))
        patches = patches - patches.mean(dim=(-2, -1), keepdim=True) + 0.5
        return {"image": resize(patches, self.input_size), "side": side}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of the eight positions, `[B, 8]`."""
        logits: Tensor = self.head(self.each_view(self.encoder, batch["image"]).flatten(1))
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(output, batch["side"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy."""
        return {"accuracy": (output.argmax(dim=1) == batch["side"]).float()}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess: one side in eight."""
        return {"accuracy": 1 / 8}

    def reasons(self) -> dict[str, str]:
        """Return the resolved size of the patches."""
        enlarged = f", enlarged to {self.input_size}" if self.patch < self.input_size else ""
        geometry = f"{self.patch} px{enlarged}, gap {self.gap}, jitter {self.jitter}"
        return {"patch": f"{geometry}: the paper's proportions"}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the image, both patches at their true positions, and at the predicted ones (frame: correct or not)."""
        columns = [batch["original"], self._board(batch["image"], batch["side"])]
        if output is not None:
            predicted = output.argmax(dim=1)
            columns.append(add_frame(self._board(batch["image"], predicted), predicted == batch["side"]))
        return side_by_side(*columns)

    def _board(self, patches: Tensor, side: Tensor) -> Tensor:
        """Return boards of 3×3 positions with the two patches `[B, 2, C, s, s]` at theirs."""
        grid = torch.full((len(patches), 9, *patches.shape[2:]), 1.0, device=patches.device)
        grid[:, _CENTER] = patches[:, 0]
        grid[torch.arange(len(patches), device=patches.device), self.positions[side]] = patches[:, 1]
        return tile_grid(grid, 3)

    def _remove_aberration(self, patches: Tensor) -> Tensor:
        """Return patches `[B, 2, C, s, s]` whose colors do not reveal the distance from the center of the lens."""
        if self.options.color == "keep" or patches.shape[2] != 3:
            return patches
        if self.options.color == "project":
            # B = I - aᵀa / aaᵀ with a = (-1, 2, -1), the green-magenta axis (section 3.1).
            axis = constant((-1, 2, -1), patches).view(3, 1, 1)
            projection = (patches * axis).sum(dim=2, keepdim=True)
            return patches - projection * axis / 6
        # Two channels are replaced by noise with 1/100 of the standard deviation of the third (section 3.1).
        kept = torch.randint(3, (*patches.shape[:2], 1, 1, 1), device=patches.device)
        channel = patches.gather(2, kept.expand(-1, -1, 1, *patches.shape[3:]))
        mean, deviation = channel.mean(dim=(-2, -1), keepdim=True), channel.std(dim=(-2, -1), keepdim=True)
        noise = mean + 0.01 * deviation * torch.randn_like(patches)
        return torch.where(torch.arange(3, device=patches.device).view(3, 1, 1) == kept, patches, noise)
