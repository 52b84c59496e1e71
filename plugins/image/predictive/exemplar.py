"""Exemplar networks (Dosovitskiy et al., 2014)."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper, Run, SslkitError
from sslkit.image.transforms import color_jitter, grayscale, random_rotation
from sslkit.image.views import CropOptions, CropScale, check_hue
from sslkit.pictures import add_frame, side_by_side

Count = Annotated[int, Field(ge=2)]


_MAX_EXEMPLARS = 2000


class Exemplar(ImageTask):
    """Classify strongly augmented images by the image they come from (Dosovitskiy et al., 2014).

    Training uses the exemplars only. With more of them, two may look alike; with fewer, there is less to learn from.
    """

    class Options(CropOptions):
        """Options of `exemplar`."""

        exemplars: Count | Literal["auto"] = Field(
            default="auto", description="Number of images that serve as classes; auto: all, at most 2,000 (8,000 in the paper)."
        )
        crop_scale: CropScale = 0.3
        turn: float = Field(default=20.0, ge=0, le=180, description="Largest rotation in degrees, in either direction.")
        color_strength: float = Field(default=1.0, ge=0, le=2, description="Strength of color jitter, times 0.6/0.6/0.6/0.1.")
        gray: float = Field(default=0.1, ge=0, le=1, description="Probability that an image is converted to gray.")

    options: Options
    label: Tensor
    needs: ClassVar = ("index",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="the experiments of the paper on STL-10",
        settings={
            "size": 32,
            "exemplars": 8000,
        },
        unsupported=("the paper's convolutional network, and patches of considerable gradients as exemplars",),
    )
    preview_columns: ClassVar = ("image", "augmented")

    def build_head(self) -> nn.Module:
        """Build the linear classifier with one class per exemplar."""
        exemplars, samples = self.options.exemplars, self.data.samples
        self.count = min(_MAX_EXEMPLARS, samples) if exemplars == "auto" else exemplars
        if self.count > samples:
            raise SslkitError(f"{self.count} exceeds the {samples} training images", f"use at most {samples}", flag="exemplars")
        return nn.Linear(self.encoder.width, self.count)

    def setup(self) -> None:
        """Register the class of each image, -1 for images that are not exemplars."""
        check_hue(self.data.channels, self.options.color_strength)
        self.register_buffer("label", torch.full((self.data.samples,), -1))

    def before_epoch(self, run: Run) -> None:
        """Select the exemplars before the first epoch, and sample only these."""
        if self.clock.epoch == 0:
            selected = torch.randperm(self.data.samples)[: self.count].to(self.label.device)
            self.label.fill_(-1)
            self.label[selected] = torch.arange(self.count, device=selected.device)
            run.sample_balanced(self.label)

    def transform(self, batch: Batch) -> Batch:
        """Return a strong augmentation of each image, `[B, C, S, S]`, and its class, `label` `[B]`."""
        options = self.options
        if options.turn:
            batch = {**batch, "canvas": random_rotation(batch["canvas"], options.turn, batch["aspect"])}
        image = self.crop(batch)
        strength = 0.6 * options.color_strength
        image = color_jitter(image, strength, strength, strength, 0.1 * options.color_strength, probability=1.0)
        return {"image": grayscale(image, options.gray), "label": self.label[batch["index"]]}

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of cross-entropies; substitutes of unreadable images that are no exemplars (label -1) are ignored."""
        return {"class": F.cross_entropy(output, batch["label"], ignore_index=-1, reduction="sum")}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of exemplars in the batch."""
        return {"class": (batch["label"] >= 0).sum()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy."""
        return {"accuracy": (output.argmax(dim=1) == batch["label"]).float()}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the exemplars."""
        return {"accuracy": 1 / self.count}

    def reasons(self) -> dict[str, str]:
        """Return the number of exemplars that `auto` resolved to."""
        return {"exemplars": f"{self.count:,}: of {self.data.samples:,} images"} if self.options.exemplars == "auto" else {}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return each exemplar and its augmentation; once trained, framed green where the prediction is correct, else red."""
        augmented = batch["image"]
        if output is not None:
            augmented = add_frame(augmented, output.argmax(dim=1) == batch["label"])
        return side_by_side(batch["original"], augmented)[batch["label"] >= 0]
