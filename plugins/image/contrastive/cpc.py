"""CPC (van den Oord et al., 2018)."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper, SslkitError
from sslkit.image.transforms import color_jitter, cut_tiles, grayscale, resize
from sslkit.image.views import CropOptions, check_hue
from sslkit.nn import info_nce
from sslkit.pictures import side_by_side, tile_grid

_SIDE = 7  # patches in a row, each of which half overlaps the next


class CPC(ImageTask):
    """Predict lower rows of patches from the rows above (CPC; van den Oord et al., 2018).

    The negatives are other patches of the same and of other images. The row right below the context overlaps it by half,
    so that it is not predicted.
    """

    class Options(CropOptions):
        """Options of `cpc`."""

        below: int = Field(
            default=5, ge=2, le=6, description="Distance of the farthest predicted row below the context, in rows."
        )
        negatives: int = Field(default=512, ge=1, description="Negative patches per prediction, sampled from the batch.")
        temperature: float = Field(default=0.1, gt=0, description="Temperature of the loss (none in the paper).")
        width: int = Field(default=128, ge=1, description="Width of the predicted patch embeddings.")
        layers: int = Field(default=3, ge=1, le=12, description="Number of masked convolutions that aggregate the rows above.")
        color_strength: float = Field(
            default=0.5, ge=0, le=2, description="Scale of the color jitter 0.8/0.8/0.8/0.2 of each patch."
        )
        gray: float = Field(default=0.25, ge=0, le=1, description="Fraction of grayscale patches.")

    options: Options
    head: nn.ModuleDict
    couples_samples: ClassVar = True
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 64}
    paper: ClassVar = Paper(
        source="section 3.2 of the paper",
        settings={
            "size": 256,
            "encoder": "resnetv2_101",
            "batch_size": 512,
            "lr": 2e-4,
            "width": 1024,
        },
        unsupported=(
            "features of the third stage of the encoder (here of the last)",
            "a PixelCNN over the rows (here convolutions)",
            "negatives without temperature and normalization",
        ),
    )
    preview_columns: ClassVar = ("image", "patches")

    def build_head(self) -> nn.Module:
        """Build the patch projection, the context network, and a linear predictor for each row below."""
        width = self.options.width
        return nn.ModuleDict(
            {
                "patch": nn.Linear(self.encoder.width, width),
                "context": nn.Sequential(*(RowContext(width) for _ in range(self.options.layers))),
                "predictors": nn.Linear(width, len(self._offsets()) * width),
            }
        )

    def setup(self) -> None:
        """Set the size and stride of patches in pixels."""
        check_hue(self.data.channels, self.options.color_strength)
        self.stride = self.data.size // (_SIDE + 1)
        if self.stride < 2:
            raise SslkitError(
                f"images of {self.data.size} px are too small to cut into patches", "cpc needs at least 16 px", flag="size"
            )
        self.patch = 2 * self.stride
        self.input_size = self.encoder.nearest_valid_size(max(16, self.patch))  # smaller ones vanish after a few strides

    def transform(self, batch: Batch) -> Batch:
        """Return the patches row by row, each with its own color jitter, `[B, 49, C, s, s]`."""
        options = self.options
        image = self.crop(batch, (_SIDE + 1) * self.stride)
        corner = torch.arange(_SIDE, device=image.device) * self.stride
        top, left = (side.flatten().expand(len(image), -1) for side in torch.meshgrid(corner, corner, indexing="ij"))
        patch = cut_tiles(image, top, left, self.patch).flatten(0, 1)
        strength = 0.8 * options.color_strength
        patch = color_jitter(patch, strength, strength, strength, min(0.5, 0.2 * options.color_strength))
        patch = grayscale(patch, options.gray)
        return {"image": resize(patch.unflatten(0, (len(image), -1)), self.input_size)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return unit vectors of patches, `[B, 7, 7, D]`, and the predictions of R rows below each, `[B, R, 7, 7, D]`."""
        embeddings = self.each_view(lambda patch: self.head["patch"](self.encoder(patch)), batch["image"])  # [B, 49, D]
        context = self.head["context"](embeddings.transpose(1, 2).unflatten(2, (_SIDE, _SIDE))).permute(0, 2, 3, 1)
        predictions = self.head["predictors"](context).unflatten(3, (-1, self.options.width)).permute(0, 3, 1, 2, 4)
        return {
            "patch": F.normalize(embeddings, dim=2).unflatten(1, (_SIDE, _SIDE)),
            "prediction": F.normalize(predictions, dim=4),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return InfoNCE of predictions against patches sampled from the batch, averaged over rows below (equation 4)."""
        return torch.stack([self._info_nce(output, below).mean() for below in self._offsets()]).mean()

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the bound log N - loss on the mutual information of rows above and below, in nats."""
        losses = torch.stack([self._info_nce(output, below).mean(dim=1) for below in self._offsets()]).mean(dim=0)
        return {"information_bound_nats": math.log(1 + self.options.negatives) - losses}

    def reasons(self) -> dict[str, str]:
        """Return the size of patches."""
        enlarged = f", enlarged to {self.input_size}" if self.patch < self.input_size else ""
        return {"patch": f"{self.patch} px{enlarged}, {_SIDE} per row, half overlapping"}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the image and its patches on a grid."""
        return side_by_side(batch["original"], tile_grid(batch["image"], _SIDE))

    def _offsets(self) -> range:
        return range(2, self.options.below + 1)

    def _info_nce(self, output: dict[str, Tensor], below: int) -> Tensor:
        """Return InfoNCE of the predictions of patches `below` rows further down, `[B, positions]`."""
        patch = output["patch"]
        number = torch.arange(patch[..., 0].numel(), device=patch.device).view(patch.shape[:3])
        negative = torch.randint(number.numel(), (self.options.negatives,), device=patch.device)
        positive = number[:, below:].flatten()
        query = output["prediction"][:, below - 2, : _SIDE - below].flatten(0, 2)
        flat = patch.flatten(0, 2)
        same = positive[:, None] == negative
        losses = info_nce(query, flat[positive], flat[negative], self.options.temperature, same=same)
        return losses.view(len(patch), -1)


class RowContext(nn.Module):
    """Add to each position of a map a convolution over its own row and the one above."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gather, self.mix = nn.Conv2d(width, width, (2, 3)), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, D, h, w]`."""
        context: Tensor = self.mix(F.relu(self.gather(F.pad(x, (1, 1, 1, 0)))))
        return x + context
