"""BiGAN (Donahue et al., 2017)."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper
from sslkit.image.decoders import CodeDecoder
from sslkit.image.views import CropOptions
from sslkit.nn import Norm, critic_layers, with_frozen_weights
from sslkit.pictures import side_by_side


class BiGAN(ImageTask):
    """Invert a generator with an encoder by adversarial training (BiGAN; Donahue et al., 2017).

    A critic compares pairs of real image and encoded code with pairs of generated image and random code. If the
    critic cannot distinguish them, the encoder inverts the generator, without any reconstruction loss.
    """

    class Options(CropOptions):
        """Options of `bigan`."""

        code: int = Field(default=64, ge=1, description="Width of the code (50 to 200 in the paper).")
        critic_lr: float = Field(default=2e-4, ge=0, description="Learning rate of the critic.")
        critic_width: int = Field(default=32, ge=8, description="Channels of the critic's first layer.")
        norm: Norm = Field(default="batch", description="Normalization inside the generator.")

    options: Options
    head: nn.ModuleDict
    defaults: ClassVar = {"optimizer": "adamw", "lr": 2e-4, "weight_decay": 0.0, "batch_size": 128}
    paper: ClassVar = Paper(
        source="the appendix of the paper, ImageNet",
        settings={
            "size": 64,
            "batch_size": 128,
            "lr": 2e-4,
            "betas": "0.5,0.999",
            "weight_decay": 2.5e-5,
            "warmup": 0.0,
            "code": 200,
        },
        unsupported=(
            "a uniform code (here normal)",
            "logarithmic losses (here squares)",
            "a constant rate, then exponential decay (here a cosine)",
        ),
    )
    preview_columns: ClassVar = ("image", "reconstruction", "sample")

    def build_head(self) -> nn.Module:
        """Build the layer to the code and the generator."""
        options, data, width = self.options, self.data, self.encoder.width
        generator = nn.Sequential(CodeDecoder(options.code, width, data.size, data.channels, options.norm), nn.Sigmoid())
        return nn.ModuleDict({"code": nn.Linear(width, options.code), "generator": generator})

    def setup(self) -> None:
        """Build the critic."""
        self.critic = PairCritic(self.data.channels, self.options.code, self.options.critic_width)

    def param_groups(self) -> list[dict[str, Any]]:
        """Set the learning rate of the critic."""
        return [{"params": self.critic.parameters(), "lr": self.options.critic_lr}]

    def transform(self, batch: Batch) -> Batch:
        """Return the image, `[B, C, S, S]`, and a random code, `noise` `[B, D]`."""
        image = self.crop(batch)
        return {"image": image, "noise": torch.randn(len(image), self.options.code, device=image.device)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the critic's scores `[B]` of real images with encoded codes and of generated images with random codes.

        Gradients of `..._frozen` reach encoder and generator only, those of the others the critic only.
        """
        image, noise = batch["image"], batch["noise"]
        code, fake = self.head["code"](self.encoder(image)), self.head["generator"](noise)
        frozen_critic = with_frozen_weights(self.critic)
        return {
            "real_frozen": frozen_critic(image, code),
            "fake_frozen": frozen_critic(fake, noise),
            "real": self.critic(image, code.detach()),
            "fake": self.critic(fake.detach(), noise),
            "code": code.detach(),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the critic, and that of encoder and generator, which try to fool it (section 3).

        Squared errors instead of logarithms (least-squares GAN; Mao et al., 2017, section 3.2), whose gradients do not vanish
        when the critic is confident.
        """
        return {
            "critic": ((output["real"] - 1).square() + output["fake"].square()).mean(),
            "generator": (output["real_frozen"].square() + (output["fake_frozen"] - 1).square()).mean(),
        }

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy of the critic."""
        return {"critic_accuracy": ((output["real"] > 0.5).float() + (output["fake"] < 0.5).float()) / 2}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a critic that cannot distinguish the pairs."""
        return {"critic_accuracy": 1 / 2}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the image, its reconstruction, and a sample from noise."""
        columns = [batch["image"]]
        if output is not None:
            columns += [self.head["generator"](code) for code in (output["code"], batch["noise"])]
        return side_by_side(*columns)


class PairCritic(nn.Module):
    """Critic of pairs of image `[B, C, S, S]` and code `[B, D]`, scores `[B]`; without norms, which would mix samples."""

    def __init__(self, channels: int, code: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*critic_layers(channels, width))
        self.classifier = nn.Sequential(nn.Linear(16 * width + code, 8 * width), nn.LeakyReLU(0.2), nn.Linear(8 * width, 1))

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        """Return scores `[B]`, near 1 for real and near 0 for generated images."""
        score: Tensor = self.classifier(torch.cat([self.features(image), code.to(image.dtype)], dim=1))
        return score[:, 0]
