"""Learning to count (Noroozi et al., 2017)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, SslkitError
from sslkit.image.transforms import grayscale, random_downscale
from sslkit.image.views import CropOptions
from sslkit.pictures import side_by_side, tile_grid

_TOP_LEFT = [(0, 0), (0, 1), (1, 0), (1, 1)]


class Counting(ImageTask):
    """Learn feature counts that add up over an image's quarters (Noroozi et al., 2017).

    Counts must differ from those of another image, which excludes the trivial solution of zero. Image and quarters are
    downscaled by random filters and some are gray; otherwise traces of resampling and of the lens would distinguish the two.
    """

    class Options(CropOptions):
        """Options of `counting`."""

        counters: int = Field(default=1000, ge=1, description="Number of counters, the width of the output.")
        margin: float = Field(
            default=10.0,
            gt=0,
            description="Margin of the squared distance between counts of different images (10 in the paper).",
        )
        gray: float = Field(default=0.5, ge=0, le=1, description="Probability that an image is converted to gray.")

    options: Options
    couples_samples: ClassVar = True
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.05, "batch_size": 256}
    preview_columns: ClassVar = ("quarters", "whole", "counts")

    def build_head(self) -> nn.Module:
        """Build the counters: a linear layer and a ReLU."""
        counters = nn.Linear(self.encoder.width, self.options.counters)
        # Small initial counts lie within the margin, so that both terms have gradients from the first step. A learning rate
        # that is large for such weights would push all counters below zero, where a ReLU has no gradient.
        nn.init.normal_(counters.weight, std=0.01)
        nn.init.zeros_(counters.bias)
        return nn.Sequential(counters, nn.ReLU())

    def setup(self) -> None:
        """Compute the size of a quarter; raise SslkitError for images that are too small."""
        self.quarter = self.encoder.nearest_valid_size(self.data.size // 2)
        if self.quarter < 8:
            raise SslkitError(
                f"images of {self.data.size} px give quarters of {self.quarter} px", "use at least 16", flag="size"
            )

    def transform(self, batch: Batch) -> Batch:
        """Return the whole image at half the size and its four quarters, `[B, 5, C, h, h]`."""
        large = self.crop(batch, 3 * self.quarter)
        large = grayscale(large, self.options.gray)
        full, whole = random_downscale(large, 2 * self.quarter), random_downscale(large, self.quarter)
        quarters = [
            full[..., row * self.quarter : (row + 1) * self.quarter, column * self.quarter : (column + 1) * self.quarter]
            for row, column in _TOP_LEFT
        ]
        return {"image": torch.stack([whole, *quarters], dim=1)}

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the squared distance of image and quarters in counts `[B, 5, D]`, and the margin loss to others (eq. 4)."""
        same, other = self._distances(output)
        return {"counting": same.mean(), "contrast": F.relu(self.options.margin - other).mean()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return whether the quarters are nearer to their own image than to another, and the total count."""
        same, other = self._distances(output)
        return {"accuracy": (same < other).float(), "total_count": output[:, 0].sum(dim=1)}

    def chance(self) -> dict[str, float]:
        """Return how often unrelated counts would be the nearer ones."""
        return {"accuracy": 1 / 2}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return quarters, image, and bars of the counts of the image (blue), its quarters (green) and another image (gray)."""
        quarters = tile_grid(batch["image"][:, 1:], 2)
        bars = [] if output is None else [self._bars(output, quarters)]
        return side_by_side(quarters, batch["image"][:, 0], *bars)

    def _distances(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared distances of quarters to their image and to that of the previous sample, `[B]` each."""
        whole, quarters = output[:, 0], output[:, 1:].sum(dim=1)
        return (whole - quarters).square().sum(dim=1), (whole.roll(1, dims=0) - quarters).square().sum(dim=1)

    def _bars(self, output: Tensor, like: Tensor) -> Tensor:
        """Return a picture of the counters with the largest variance, three bars each, at the size of `like`."""
        counts = torch.stack([output[:, 0], output[:, 1:].sum(dim=1), output[:, 0].roll(1, dims=0)], dim=1)  # [B, 3, D]
        largest = counts[:, 0].var(dim=0).argsort(descending=True)[: like.shape[-2] // 4]
        length = counts[..., largest] / counts[..., largest].amax(dim=(0, 1)).clamp(min=1e-6)
        filled = torch.arange(like.shape[-1], device=like.device) < length.transpose(1, 2)[..., None] * like.shape[-1]
        colors = torch.tensor([[0.2, 0.4, 0.8], [0.2, 0.7, 0.4], [0.8, 0.8, 0.8]], device=like.device)
        bars = torch.where(filled[..., None], colors.view(1, 1, 3, 1, 3), 1.0)  # [B, counters, 3, width, 3]
        bars = F.pad(bars, (0, 0, 0, 0, 0, 1), value=1.0).flatten(1, 2).permute(0, 3, 1, 2)
        picture = torch.ones(len(output), 3, *like.shape[-2:], device=like.device)
        picture[:, :, : bars.shape[2]] = bars[:, :, : like.shape[-2]]
        return picture
