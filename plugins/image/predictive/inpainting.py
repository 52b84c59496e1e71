"""Fill in a hidden region of an image."""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask
from sslkit.image.decoders import ConvDecoder, map_size
from sslkit.image.transforms import hole_mask
from sslkit.image.views import CropOptions, random_crop_view
from sslkit.nn import Norm, critic_layers, with_frozen_weights
from sslkit.pictures import side_by_side

_BORDER, _BORDER_WEIGHT = 7 / 128, 10.0  # the seen border that is painted, too, and how much it counts (section 4.2)


_FILL = 0.5  # the encoder's input where the image is hidden


class Inpainting(PretextTask):
    """Fill in a hidden region of an image (context encoders; Pathak et al., 2016).

    With `--adversarial` a critic learns to tell painted regions from true ones, and the painter to deceive it; both in
    one backward pass.
    """

    class Options(CropOptions):
        """Hold inpainting's options."""

        region: Literal["center", "block", "region"] = Field(
            default="region", description="What is hidden: the middle, the union of four boxes, or a random silhouette."
        )
        hidden_share: float = Field(default=0.25, ge=0.01, le=0.75, description="Share of the image that is hidden.")
        adversarial: float = Field(
            default=0.0,
            ge=0,
            lt=1,
            description="Weight of the adversarial loss, 0.001 in the paper's pictures; L2 has the rest.",
        )
        critic_lr: float = Field(default=1e-4, ge=0, description="The critic's learning rate.")
        norm: Norm = Field(default="batch", description="Norm inside the decoder.")

    options: Options
    reads: ClassVar = ("feature_map",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 128}
    preview_columns: ClassVar = ("image", "as seen", "filled in")

    def build_head(self) -> nn.Module:
        """Build the painter: a layer in which each channel looks at all places, then a decoder."""
        size, channels, width = self.data.size, self.data.channels, self.encoder.width
        small = map_size(self.encoder, torch.zeros(1, channels, size, size))
        return nn.Sequential(ChannelWise(width, small), ConvDecoder(width, small, size, channels, self.options.norm))

    def setup(self) -> None:
        """Build the critic if there is to be one."""
        self.border = max(1, round(_BORDER * self.data.size))
        self.critic = Critic(self.data.channels) if self.options.adversarial else None

    def param_groups(self) -> list[dict[str, Any]]:
        """Give the critic a rate of its own."""
        return [] if self.critic is None else [{"params": self.critic.parameters(), "lr": self.options.critic_lr}]

    def transform(self, batch: Batch) -> Batch:
        """Return the image with a hole, the whole one, and how much each pixel counts, `weight` `[B, 1, S, S]`.

        1 in the hole, 10 in the border around it, which is seen and painted all the same, 0 elsewhere.
        """
        options, size = self.options, self.data.size
        image = random_crop_view(batch["image"], size, options.crop_scale)
        hidden = hole_mask(len(image), size, options.region, options.hidden_share, image.device)[:, None]
        around = F.max_pool2d(hidden.float(), 2 * self.border + 1, stride=1, padding=self.border)
        weight = torch.where(hidden, 1.0, _BORDER_WEIGHT * around)
        return {"image": image.masked_fill(hidden, _FILL), "target": image, "hidden": hidden, "weight": weight}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the painted image `[B, C, S, S]`, and, with a critic, what it says of painted and true regions, `[B]`."""
        painted = self.head(self.encoder.feature_map(batch["image"]))
        if self.critic is None:
            return {"painted": painted}
        # The critic sees the region only: at its border any fake would show.
        fake, real = (torch.where(batch["hidden"], image, _FILL) for image in (painted, batch["target"]))
        return {
            "painted": painted,
            "deceived": with_frozen_weights(self.critic)(fake),
            "fake": self.critic(fake.detach()),
            "real": self.critic(real),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum of squared errors, and the adversarial terms (equations 1 to 4)."""
        share = self.options.adversarial
        error = (output["painted"] - batch["target"]).square().mean(dim=1, keepdim=True)
        terms = {"reconstruction": (1 - share) * (batch["weight"] * error).sum()}
        if self.critic is not None:
            terms["adversarial"] = share * F.softplus(-output["deceived"]).mean()
            terms["critic"] = F.softplus(-output["real"]).mean() + F.softplus(output["fake"]).mean()
        return terms

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return how much all pixels count together."""
        return {"reconstruction": batch["weight"].sum()}

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the error in the hole as a share of what the image's own mean color would make there."""
        hidden = batch["hidden"]
        seen = (batch["target"] * ~hidden).sum(dim=(2, 3), keepdim=True) / (~hidden).sum(dim=(2, 3), keepdim=True)
        error, plain = (((image - batch["target"]).square() * hidden).sum(dim=(1, 2, 3)) for image in (output["painted"], seen))
        return {"error_share": error / plain.clamp(min=1e-4 * hidden[0].numel())}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the image, the image with its hole, and the hole filled in."""
        columns = [batch["target"], batch["image"]]
        if output is not None:
            columns.append(torch.where(batch["hidden"], output["painted"], batch["target"]).clamp(0, 1))
        return side_by_side(*columns)


class ChannelWise(nn.Module):
    """Let every place of a feature map see all others, channel by channel (section 3.1 of the paper)."""

    def __init__(self, width: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        places = map_size[0] * map_size[1]
        self.weight = nn.Parameter(torch.eye(places).repeat(width, 1, 1) + 0.02 * torch.randn(width, places, places))
        self.bias = nn.Parameter(torch.zeros(width, places))

    def forward(self, feature_map: Tensor) -> Tensor:
        """Return a map of the same shape, `[B, width, h, w]`."""
        seen = torch.einsum("bcp,cpq->bcq", feature_map.flatten(2), self.weight) + self.bias
        return F.relu(seen).view_as(feature_map)


class Critic(nn.Sequential):
    """Tell true images from painted ones, `[B]`: strided convolutions without norms, which would mix samples."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__(*critic_layers(channels, width), nn.Linear(16 * width, 1), nn.Flatten(0))
