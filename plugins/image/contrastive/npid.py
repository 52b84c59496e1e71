"""Tell each image from all others, by what was remembered of them."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask
from sslkit.image.views import ViewOptions, Views
from sslkit.nn import MemoryBank, noise_contrastive


class NPID(PretextTask):
    """Tell each image from all others, by what was remembered of them (Wu et al., 2018).

    Each image is a class of its own; its weight vector is what the encoder said of it last time.
    """

    class Options(ViewOptions):
        """Hold npid's options."""

        temperature: float = Field(default=0.07, gt=0, description="Temperature of the similarities.")
        negatives: int = Field(default=4096, ge=1, description="Remembered images that each one is told from; at most all.")
        momentum: float = Field(default=0.5, ge=0, lt=1, description="Share that the memory keeps of what it held.")
        proximal: float = Field(
            default=30.0, ge=0, description="Weight of the squared distance to what is remembered: steadies the start."
        )
        width: int = Field(default=128, ge=4, description="Width of the unit vectors that are compared.")

    options: Options
    needs: ClassVar = ("index",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}

    def build_head(self) -> nn.Module:
        """Build the linear layer to the compared vectors."""
        return nn.Linear(self.encoder.width, self.options.width)

    def setup(self) -> None:
        """Build the bank."""
        self.bank = MemoryBank(self.data.samples, self.options.width)
        self.negatives = min(self.options.negatives, self.data.samples - 1)
        self.expected = self.bank.log_normalizer(self.negatives, self.options.temperature)
        self.views = Views(self.options, self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return a view of each image, `[B, C, S, S]`, and which image it is, `index` `[B]`."""
        return {"image": self.views(batch["image"]), "index": batch["index"]}

    def predict(self, batch: Batch) -> Tensor:
        """Return unit vectors `[B, D]`."""
        return F.normalize(self.head(self.encoder(batch["image"])), dim=1)

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return noise-contrastive estimation and how far the vectors moved (equations 7 and 10)."""
        own, others = self._scores(output, batch)
        moved = (output - self.bank.rows[batch["index"]]).square().sum(dim=1)
        return {
            "contrast": noise_contrastive(own, others, self.expected).mean(),
            "proximal": self.options.proximal * moved.mean(),
        }

    def remember(self, output: Tensor, batch: Batch) -> Batch:
        """Keep the vectors for the bank."""
        return {"vector": output, "index": batch["index"]}

    def after_step(self, seen: Batch) -> None:
        """Remember the vectors."""
        self.bank.update(seen["index"], seen["vector"], self.options.momentum)

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return how alike vectors and memory are, cosine, and how often a memory of another image is not nearer."""
        own, others = self._scores(output, batch)
        return {
            "alignment": own * self.options.temperature,
            "accuracy": (own > others.amax(dim=1)).float(),
            "information_bound": math.log(1 + self.negatives) + F.log_softmax(torch.cat([own[:, None], others], 1), 1)[:, 0],
        }

    def _scores(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        noise = self.bank.sample_negatives(self.options.negatives, self.clock.step)
        return self.bank.scores(output, batch["index"], noise, self.options.temperature)
