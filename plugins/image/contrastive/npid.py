"""Instance discrimination with a memory bank (NPID; Wu et al., 2018)."""

import math
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask
from sslkit.image.views import Blur, ColorStrength, ViewOptions, Views, blur_field, color_strength_field
from sslkit.nn import MemoryBank, MemoryBankOptions, info_nce_from_scores


class NPID(PretextTask):
    """Classify each image as its own class, using a memory bank (NPID; Wu et al., 2018).

    The weight vector of a class is a moving average of the embeddings of its image.
    """

    class Options(MemoryBankOptions, ViewOptions):
        """Options of `npid`."""

        photo_jitter: ClassVar[str] = "0.4/0.4/0.4/0.4"  # main.py of the authors, without blur
        photo_blur: ClassVar[str] = "0"
        color_strength: ColorStrength = color_strength_field(photo_jitter)
        blur: Blur = blur_field(photo_blur)
        proximal: float = Field(
            default=0.0,
            ge=0,
            description="Weight of the squared distance to the memory bank (λ; 30 in the paper), which steadies `--loss nce`.",
        )

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
            "loss": "nce",
            "temperature": 0.07,
            "proximal": 30.0,
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
        self.bank = MemoryBank(self.data.samples, self.options)
        self.views = Views(self.options, self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return a view of each image, `[B, C, S, S]`, and its place in the data, `index` `[B]`."""
        return {"image": self.views(batch), "index": batch["index"]}

    def predict(self, batch: Batch) -> Tensor:
        """Return unit vectors `[B, D]`."""
        return F.normalize(self.head(self.encoder(batch["image"])), dim=1)

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the contrast with the bank (equations 2 or 7) and the weighted squared distance to it (equation 10)."""
        distance = (output - self.bank.rows[batch["index"]]).square().sum(dim=1)
        return {
            "contrast": self.bank.losses(output, batch["index"]).mean(),
            "proximal": self.options.proximal * distance.mean(),
        }

    def remember(self, output: Tensor, batch: Batch) -> Batch:
        """Return the vectors and their indices, for the memory bank."""
        return {"vector": output, "index": batch["index"]}

    def after_step(self, remembered: Batch) -> None:
        """Update the memory bank."""
        self.bank.update(remembered["index"], remembered["vector"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cosine similarity to an image's own row, how often no negative is nearer, and log N - loss, in nats."""
        positive, negative = self.bank.scores(output, batch["index"])
        return {
            "alignment": positive * self.options.temperature,
            "accuracy": (positive > negative.amax(dim=1)).float(),
            "information_bound_nats": math.log(self.bank.choices) - info_nce_from_scores(positive, negative),
        }

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the image itself and the negatives."""
        return {"accuracy": 1 / self.bank.choices}
