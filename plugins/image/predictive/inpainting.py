"""Context encoders (Pathak et al., 2016)."""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper
from sslkit.image.decoders import ConvDecoder, map_size
from sslkit.image.transforms import hole_mask
from sslkit.image.views import CropOptions
from sslkit.nn import Norm, critic_layers, with_frozen_weights
from sslkit.pictures import side_by_side

_BORDER, _BORDER_WEIGHT = 7 / 128, 10.0  # width and weight of the visible border that is predicted too (section 4.2)


_FILL = 0.5  # the encoder's input in the masked region


class Inpainting(ImageTask):
    """Inpaint a masked region of an image (context encoders; Pathak et al., 2016).

    With `--adversarial`, a critic learns to distinguish inpainted from real regions and the decoder learns to fool it, both in
    one backward pass.
    """

    class Options(CropOptions):
        """Options of `inpainting`."""

        region: Literal["center", "block", "region"] = Field(
            default="region", description="Shape of the mask: a center square, the union of four boxes, or a random silhouette."
        )
        hidden_share: float = Field(default=0.25, ge=0.01, le=0.75, description="Fraction of the image that is masked.")
        adversarial: float = Field(
            default=0.0,
            ge=0,
            lt=1,
            description="Weight of the adversarial loss; L2 has the rest (0.001 in the paper).",
        )
        critic_lr: float = Field(default=1e-4, ge=0, description="Learning rate of the critic.")
        norm: Norm = Field(default="batch", description="Normalization inside the decoder.")

    options: Options
    requires: ClassVar = ("feature_map",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 128}
    paper: ClassVar = Paper(
        source="train.lua of the authors with `wtl2=0.999`",
        settings={
            "size": 128,
            "batch_size": 64,
            "lr": 2e-3,
            "betas": "0.5,0.999",
            "weight_decay": 0.0,
            "warmup": 0.0,
            "region": "center",
            "adversarial": 1e-3,
            "critic_lr": 2e-4,
        },
        unsupported=(
            "a bottleneck of 4,000 values between encoder and decoder",
            "a constant rate (here a cosine)",
        ),
    )
    preview_columns: ClassVar = ("image", "masked", "prediction")

    def build_head(self) -> nn.Module:
        """Build a channel-wise fully connected layer and a decoder."""
        size, channels, width = self.data.size, self.data.channels, self.encoder.width
        small = map_size(self.encoder, torch.zeros(1, channels, size, size))
        return nn.Sequential(ChannelWise(width, small), ConvDecoder(width, small, size, channels, self.options.norm))

    def setup(self) -> None:
        """Build the critic of the adversarial loss."""
        self.border = max(1, round(_BORDER * self.data.size))
        self.critic = Critic(self.data.channels) if self.options.adversarial else None

    def param_groups(self) -> list[dict[str, Any]]:
        """Set the learning rate of the critic."""
        return [] if self.critic is None else [{"params": self.critic.parameters(), "lr": self.options.critic_lr}]

    def transform(self, batch: Batch) -> Batch:
        """Return the masked image, the image (`target`), `mask` bool and loss weights, `weight` `[B, 1, S, S]`.

        Weights are 1 in the mask, 10 in the visible border around it, and 0 elsewhere.
        """
        options, size = self.options, self.data.size
        image = self.crop(batch)
        mask = hole_mask(len(image), size, options.region, options.hidden_share, image.device)[:, None]
        dilated = F.max_pool2d(mask.float(), 2 * self.border + 1, stride=1, padding=self.border)
        weight = torch.where(mask, 1.0, _BORDER_WEIGHT * dilated)
        return {"image": image.masked_fill(mask, _FILL), "target": image, "mask": mask, "weight": weight}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the prediction `[B, C, S, S]`, and the critic's logits of predicted and real regions, `[B]`, if it is used.

        `fake_frozen` has gradients for the decoder only, `fake` and `real` for the critic only."""
        prediction = self.head(self.encoder.feature_map(batch["image"]))
        if self.critic is None:
            return {"prediction": prediction}
        # The critic sees the masked region only: the seam around it would reveal any fake.
        fake, real = (torch.where(batch["mask"], image, _FILL) for image in (prediction, batch["target"]))
        return {
            "prediction": prediction,
            "fake_frozen": with_frozen_weights(self.critic)(fake),
            "fake": self.critic(fake.detach()),
            "real": self.critic(real),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum of squared errors, and the adversarial and critic losses (equations 1 to 4)."""
        weight = self.options.adversarial
        error = (output["prediction"] - batch["target"]).square().mean(dim=1, keepdim=True)
        terms = {"reconstruction": (1 - weight) * (batch["weight"] * error).sum()}
        if self.critic is not None:
            terms["adversarial"] = weight * F.softplus(-output["fake_frozen"]).mean()
            terms["critic"] = F.softplus(-output["real"]).mean() + F.softplus(output["fake"]).mean()
        return terms

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of the weights of all pixels."""
        return {"reconstruction": batch["weight"].sum()}

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the squared error in the mask, relative to predicting the mean color of the visible pixels."""
        mask = batch["mask"]
        mean = (batch["target"] * ~mask).sum(dim=(2, 3), keepdim=True) / (~mask).sum(dim=(2, 3), keepdim=True)
        error, baseline = (
            ((image - batch["target"]).square() * mask).sum(dim=(1, 2, 3)) for image in (output["prediction"], mean)
        )
        return {"error_share": error / baseline.clamp(min=1e-4 * mask[0].numel())}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the image, the masked image, and the image with the prediction in the mask."""
        columns = [batch["target"], batch["image"]]
        if output is not None:
            columns.append(torch.where(batch["mask"], output["prediction"], batch["target"]).clamp(0, 1))
        return side_by_side(*columns)


class ChannelWise(nn.Module):
    """Channel-wise fully connected layer: mixes the positions of each channel of a feature map (section 3.1)."""

    def __init__(self, width: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        positions = map_size[0] * map_size[1]
        self.weight = nn.Parameter(torch.eye(positions).repeat(width, 1, 1) + 0.02 * torch.randn(width, positions, positions))
        self.bias = nn.Parameter(torch.zeros(width, positions))

    def forward(self, feature_map: Tensor) -> Tensor:
        """Return a map of the same shape, `[B, width, h, w]`."""
        mixed = torch.einsum("bcp,cpq->bcq", feature_map.flatten(2), self.weight) + self.bias
        return F.relu(mixed).view_as(feature_map)


class Critic(nn.Sequential):
    """Critic of real and inpainted images, logits `[B]`: strided convolutions without norms, which would mix samples."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__(*critic_layers(channels, width), nn.Linear(16 * width, 1), nn.Flatten(0))
