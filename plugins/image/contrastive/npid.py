"""Instance discrimination with a memory bank (NPID; Wu et al., 2018)."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask
from sslkit.image.views import Blur, ColorStrength, ViewOptions, Views, blur_field, color_strength_field
from sslkit.nn import MemoryBank, noise_contrastive


class NPID(PretextTask):
    """Classify each image as its own class, using a memory bank (NPID; Wu et al., 2018).

    The weight vector of a class is a moving average of the embeddings of its image.
    """

    class Options(ViewOptions):
        """Options of `npid`."""

        photo_jitter: ClassVar[str] = "0.4/0.4/0.4/0.4"  # main.py of the authors, without blur
        photo_blur: ClassVar[str] = "0"
        color_strength: ColorStrength = color_strength_field(photo_jitter)
        blur: Blur = blur_field(photo_blur)
        temperature: float = Field(default=0.07, gt=0, description="Temperature of the loss.")
        negatives: int = Field(default=4096, ge=1, description="Negative samples per image from the memory bank; at most all.")
        momentum: float = Field(default=0.5, ge=0, lt=1, description="Momentum of the memory bank.")
        proximal: float = Field(
            default=30.0, ge=0, description="Weight of the squared distance to the memory bank (λ), which stabilizes the start."
        )
        width: int = Field(default=128, ge=4, description="Output width of the head.")

    options: Options
    needs: ClassVar = ("index",)
    encoder_inputs: ClassVar = ("image",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="main.py of the authors, ResNet-50 as in the paper",
        settings={
            "size": 224,
            "encoder": "resnet50",
            "batch_size": 256,
            "epochs": 200,
            "optimizer": "sgd",
            "lr": 0.03,
            "weight_decay": 1e-4,
            "warmup": 0.0,
            "color_strength": Options.photo_jitter,
            "blur": Options.photo_blur,
        },
        unsupported=(
            "a rate that is divided by ten at epochs 120 and 160 (here a cosine)",
            "color jitter of every image, before gray (here of 80%)",
        ),
    )

    def build_head(self) -> nn.Module:
        """Build the linear projection."""
        return nn.Linear(self.encoder.width, self.options.width)

    def setup(self) -> None:
        """Build the memory bank."""
        self.bank = MemoryBank(self.data.samples, self.options.width, self.options.negatives)
        self.negatives = min(self.options.negatives, self.data.samples - 1)
        self.log_normalizer = self.bank.log_normalizer(self.negatives, self.options.temperature)
        self.views = Views(self.options, self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return a view of each image, `[B, C, S, S]`, and its place in the data, `index` `[B]`."""
        return {"image": self.views(batch), "index": batch["index"]}

    def predict(self, batch: Batch) -> Tensor:
        """Return unit vectors `[B, D]`."""
        return F.normalize(self.head(self.encoder(batch["image"])), dim=1)

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return noise-contrastive estimation and the weighted squared distance to the bank (equations 7 and 10)."""
        positive, negative = self._scores(output, batch)
        distance = (output - self.bank.rows[batch["index"]]).square().sum(dim=1)
        return {
            "contrast": noise_contrastive(positive, negative, self.log_normalizer).mean(),
            "proximal": self.options.proximal * distance.mean(),
        }

    def remember(self, output: Tensor, batch: Batch) -> Batch:
        """Return the vectors and their indices, for the memory bank."""
        return {"vector": output, "index": batch["index"]}

    def after_step(self, remembered: Batch) -> None:
        """Update the memory bank."""
        self.bank.update(remembered["index"], remembered["vector"], self.options.momentum)

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cosine similarity to an image's own row, how often no negative is nearer, and log N - loss, in nats."""
        positive, negative = self._scores(output, batch)
        logits = torch.cat([positive[:, None], negative], dim=1)
        return {
            "alignment": positive * self.options.temperature,
            "accuracy": (positive > negative.amax(dim=1)).float(),
            "information_bound_nats": math.log(1 + self.negatives) + F.log_softmax(logits, dim=1)[:, 0],
        }

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the image itself and the negatives."""
        return {"accuracy": 1 / (1 + self.negatives)}

    def _scores(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.bank.scores(output, batch["index"], self.options.temperature)
