"""Tell which of some images a strongly changed one was."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, Run, SslkitError, TaskOptions
from sslkit.image.transforms import color_jitter, flip, grayscale, random_resized_crop, random_turn
from sslkit.image.views import check_hue
from sslkit.pictures import add_frame, side_by_side

Count = Annotated[int, Field(ge=2)]


_MOST = 2000


class Exemplar(PretextTask):
    """Tell which of some images a strongly changed one was (Dosovitskiy et al., 2014): each image is a class.

    Only these images are seen. With more of them two may look alike, with fewer there is less to learn from.
    """

    class Options(TaskOptions):
        """Hold exemplar's options."""

        exemplars: Count | Literal["auto"] = Field(
            default="auto", description="Images that are classes; auto: all, 2,000 at most (8,000 in the paper)."
        )
        crop_scale: float = Field(default=0.3, gt=0, le=1, description="Smallest share of the image that a random crop keeps.")
        turn: float = Field(default=20.0, ge=0, le=180, description="Largest turn in degrees, either way.")
        color_strength: float = Field(default=1.0, ge=0, le=2, description="Scale of the color jitter 0.6/0.6/0.6/0.1.")
        gray: float = Field(default=0.1, ge=0, le=1, description="Share of images without color.")

    options: Options
    label: Tensor
    needs: ClassVar = ("index",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    preview_columns: ClassVar = ("image", "as seen")

    def build_head(self) -> nn.Module:
        """Build the linear classifier of as many classes as images are chosen."""
        asked, samples = self.options.exemplars, self.data.samples
        self.count = min(_MOST, samples) if asked == "auto" else asked
        if self.count > samples:
            raise SslkitError(f"{self.count} of {samples} images", f"the most that works is {samples}", flag="exemplars")
        return nn.Linear(self.encoder.width, self.count)

    def setup(self) -> None:
        """Keep room for which images were chosen: their class, or -1."""
        check_hue(self.data.channels, self.options.color_strength)
        self.register_buffer("label", torch.full((self.data.samples,), -1))

    def before_epoch(self, run: Run) -> None:
        """Choose the images, once, and see no others."""
        if self.clock.epoch == 0:
            chosen = torch.randperm(self.data.samples)[: self.count].to(self.label.device)
            self.label.fill_(-1)
            self.label[chosen] = torch.arange(self.count, device=chosen.device)
            run.sample_balanced(self.label)

    def transform(self, batch: Batch) -> Batch:
        """Return each image strongly changed, `[B, C, S, S]`, and its class, `label` `[B]`."""
        options = self.options
        image = random_turn(batch["image"], options.turn) if options.turn else batch["image"]
        image = flip(random_resized_crop(image, self.data.size, scale=(options.crop_scale, 1.0)))
        strength = 0.6 * options.color_strength
        image = color_jitter(image, strength, strength, strength, 0.1 * options.color_strength, probability=1.0)
        return {"image": grayscale(image, options.gray), "label": self.label[batch["index"]]}

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of cross-entropies; what stands in for an unreadable image may be no exemplar, and counts nothing."""
        return {"class": F.cross_entropy(output, batch["label"], ignore_index=-1, reduction="sum")}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return how many exemplars there are in the batch."""
        return {"class": (batch["label"] >= 0).sum()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return whether the image was told right: by chance, one in `exemplars`."""
        return {"accuracy": (output.argmax(dim=1) == batch["label"]).float()}

    def reasons(self) -> dict[str, str]:
        """Say what `auto` became."""
        return {"exemplars": f"{self.count:,}: of {self.data.samples:,} images"} if self.options.exemplars == "auto" else {}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return each exemplar and the changed one, add_frame by whether it was told right."""
        seen = batch["image"]
        if output is not None:
            seen = add_frame(seen, output.argmax(dim=1) == batch["label"])
        return side_by_side(batch["original"], seen)[batch["label"] >= 0]
