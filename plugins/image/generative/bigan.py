"""Paint images of codes and find the codes of images, so that a critic can't tell which pair is which."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask
from sslkit.image.decoders import CodeDecoder
from sslkit.image.views import CropOptions, random_crop_view
from sslkit.nn import Norm, critic_layers, with_frozen_weights
from sslkit.pictures import side_by_side


class BiGAN(PretextTask):
    """Paint images of codes and find codes of images, so that a critic can't tell the pairs apart (Donahue et al., 2017).

    Where it can't, the encoder undoes the painter, without an image ever being compared with its copy.
    """

    class Options(CropOptions):
        """Hold the options of bigan."""

        code: int = Field(default=64, ge=1, description="Width of the code (50 to 200 in the paper).")
        critic_lr: float = Field(default=2e-4, ge=0, description="The critic's learning rate.")
        critic_width: int = Field(default=32, ge=8, description="Channels of the critic's first layer.")
        norm: Norm = Field(default="batch", description="Norm inside the painter.")

    options: Options
    head: nn.ModuleDict
    defaults: ClassVar = {"optimizer": "adamw", "lr": 2e-4, "weight_decay": 0.0, "batch_size": 128}
    preview_columns: ClassVar = ("image", "painted of its code", "painted of noise")

    def build_head(self) -> nn.Module:
        """Build the layer to the code, and the painter."""
        options, data, width = self.options, self.data, self.encoder.width
        painter = nn.Sequential(CodeDecoder(options.code, width, data.size, data.channels, options.norm), nn.Sigmoid())
        return nn.ModuleDict({"code": nn.Linear(width, options.code), "painter": painter})

    def setup(self) -> None:
        """Build the critic."""
        self.critic = PairCritic(self.data.channels, self.options.code, self.options.critic_width)

    def param_groups(self) -> list[dict[str, Any]]:
        """Give the critic a rate of its own."""
        return [{"params": self.critic.parameters(), "lr": self.options.critic_lr}]

    def transform(self, batch: Batch) -> Batch:
        """Return the image, `[B, C, S, S]`, and a code to paint, `[B, D]`."""
        image = random_crop_view(batch["image"], self.data.size, self.options.crop_scale)
        return {"image": image, "noise": torch.randn(len(image), self.options.code, device=image.device)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the critic says of true images with found codes, and of painted ones with given codes, `[B]`.

        `..._frozen` reaches encoder and painter, the others the critic.
        """
        image, noise = batch["image"], batch["noise"]
        code, painted = self.head["code"](self.encoder(image)), self.head["painter"](noise)
        judge = with_frozen_weights(self.critic)
        return {
            "true_frozen": judge(image, code),
            "painted_frozen": judge(painted, noise),
            "true": self.critic(image, code.detach()),
            "painted": self.critic(painted.detach(), noise),
            "code": code.detach(),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return what the critic loses, and encoder and painter, who want it to be wrong (section 3).

        Squared errors in place of logarithms (Mao et al., 2017, section 3.2), which do not fade when the critic is sure.
        """
        return {
            "critic": ((output["true"] - 1).square() + output["painted"].square()).mean(),
            "deceived": (output["true_frozen"].square() + (output["painted_frozen"] - 1).square()).mean(),
        }

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how often the critic is right: half the time when it can't tell."""
        return {"critic_accuracy": ((output["true"] > 0.5).float() + (output["painted"] < 0.5).float()) / 2}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the image, what is painted of its code, and what is painted of noise."""
        columns = [batch["image"]]
        if output is not None:
            columns += [self.head["painter"](code) for code in (output["code"], batch["noise"])]
        return side_by_side(*columns)


class PairCritic(nn.Module):
    """Say of a pair of image `[B, C, S, S]` and code `[B, D]` whether the image is the true part, `[B]`; without norms."""

    def __init__(self, channels: int, code: int, width: int) -> None:
        super().__init__()
        self.see = nn.Sequential(*critic_layers(channels, width))
        self.judge = nn.Sequential(nn.Linear(16 * width + code, 8 * width), nn.LeakyReLU(0.2), nn.Linear(8 * width, 1))

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        """Return about 1 for true images, 0 for painted ones."""
        said: Tensor = self.judge(torch.cat([self.see(image), code.to(image.dtype)], dim=1))
        return said[:, 0]
