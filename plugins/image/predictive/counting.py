"""Count the same in an image as in its four quarters together."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, SslkitError
from sslkit.image.transforms import grayscale, random_downscale
from sslkit.image.views import CropOptions, random_crop_view
from sslkit.pictures import side_by_side, tile_grid

_TOP_LEFT = [(0, 0), (0, 1), (1, 0), (1, 1)]


class Counting(PretextTask):
    """Count the same in an image as in its four quarters together (Noroozi et al., 2017).

    And something else than in the quarters of another image: counting nothing anywhere would be no answer. Image and
    quarters are made smaller by filters drawn for each, and some are gray, or traces of resizing and of the lens would
    tell whole and part apart.
    """

    class Options(CropOptions):
        """Hold counting's options."""

        counters: int = Field(default=1000, ge=1, description="How many things are counted.")
        margin: float = Field(
            default=10.0, gt=0, description="How far, squared, the counts of different images should be apart."
        )
        gray: float = Field(default=0.5, ge=0, le=1, description="Share of images without color.")

    options: Options
    couples_samples: ClassVar = True
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.05, "batch_size": 256}
    preview_columns: ClassVar = ("quarters", "whole", "counts")

    def build_head(self) -> nn.Module:
        """Build the counters: linear, and never below zero."""
        counters = nn.Linear(self.encoder.width, self.options.counters)
        # Small first counts lie within the margin, so that both terms train from the first step. A learning rate that is
        # large for such weights would take all counters below zero, where a ReLU leaves them.
        nn.init.normal_(counters.weight, std=0.01)
        nn.init.zeros_(counters.bias)
        return nn.Sequential(counters, nn.ReLU())

    def setup(self) -> None:
        """Settle the size of a quarter."""
        self.quarter = self.encoder.nearest_valid_size(self.data.size // 2)
        if self.quarter < 8:
            raise SslkitError(
                f"quarters of {self.data.size} px images have {self.quarter} px", "counting needs 16 px", flag="size"
            )

    def transform(self, batch: Batch) -> Batch:
        """Return the whole at half the size and the four quarters, `[B, 5, C, h, h]`."""
        large = random_crop_view(batch["image"], 3 * self.quarter, self.options.crop_scale)
        large = grayscale(large, self.options.gray)
        full, whole = random_downscale(large, 2 * self.quarter), random_downscale(large, self.quarter)
        quarters = [
            full[..., row * self.quarter : (row + 1) * self.quarter, column * self.quarter : (column + 1) * self.quarter]
            for row, column in _TOP_LEFT
        ]
        return {"image": torch.stack([whole, *quarters], dim=1)}

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return how far wholes and their quarters are apart in counts `[B, 5, D]`, and others too near (equation 4)."""
        together, apart = self._distances(output)
        return {"same": together.mean(), "other": F.relu(self.options.margin - apart).mean()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return whether the quarters go with their whole rather than with another: by chance, one in two."""
        together, apart = self._distances(output)
        return {"accuracy": (together < apart).float(), "counted": output[:, 0].sum(dim=1)}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return quarters, whole, and as bars the counts of whole (blue), quarters (green) and another whole (gray)."""
        quarters = tile_grid(batch["image"][:, 1:], 2)
        bars = [] if output is None else [self._bars(output, quarters)]
        return side_by_side(quarters, batch["image"][:, 0], *bars)

    def _distances(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared distances of quarters to their whole and to that of the next sample, `[B]` each."""
        whole, quarters = output[:, 0], output[:, 1:].sum(dim=1)
        return (whole - quarters).square().sum(dim=1), (whole.roll(1, dims=0) - quarters).square().sum(dim=1)

    def _bars(self, output: Tensor, like: Tensor) -> Tensor:
        """Return a picture of the counters that vary most: a row of three bars each."""
        counts = torch.stack([output[:, 0], output[:, 1:].sum(dim=1), output[:, 0].roll(1, dims=0)], dim=1)  # [B, 3, D]
        shown = counts[:, 0].var(dim=0).argsort(descending=True)[: like.shape[-2] // 4]
        length = counts[..., shown] / counts[..., shown].amax(dim=(0, 1)).clamp(min=1e-6)
        filled = torch.arange(like.shape[-1], device=like.device) < length.transpose(1, 2)[..., None] * like.shape[-1]
        colors = torch.tensor([[0.2, 0.4, 0.8], [0.2, 0.7, 0.4], [0.8, 0.8, 0.8]], device=like.device)
        lines = torch.where(filled[..., None], colors.view(1, 1, 3, 1, 3), 1.0)  # [B, counters, 3, width, 3]
        lines = F.pad(lines, (0, 0, 0, 0, 0, 1), value=1.0).flatten(1, 2).permute(0, 3, 1, 2)
        picture = torch.ones(len(output), 3, *like.shape[-2:], device=like.device)
        picture[:, :, : lines.shape[2]] = lines[:, :, : like.shape[-2]]
        return picture
