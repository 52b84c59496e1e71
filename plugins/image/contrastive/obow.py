"""Say of a part which visual words a teacher finds in the whole."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask
from sslkit.image.views import Crops, MultiCropOptions, random_crop_view
from sslkit.nn import Momentum, Norm, Queue, Teacher, cluster_count, mlp, momentum_reason, teacher_momentum

Count = Annotated[int, Field(ge=2)]


_MOST, _PAPER_MOMENTUM = 8192, 0.99


class OBoW(PretextTask):
    """Say of a part which visual words a teacher finds in the whole (Gidaris et al., 2021).

    Words are what the teacher lately found at places of images, in a queue; what the student compares with them is
    generated from the words, so that it moves as they do.
    """

    class Options(MultiCropOptions):
        """Hold obow's options."""

        crops: str = Field(
            default="2+5", pattern=r"^2\+\d\d?$", description="Large crops and small patches of each image, as in the paper."
        )
        words: Count | Literal["auto"] = Field(
            default="auto", description="Words in the queue; auto: one for ten images, the paper's 8,192 at most."
        )
        sharpness: float = Field(default=15.0, gt=0, description="How sharply places choose words (1/δ, over a mean distance).")
        scale: float = Field(default=5.0, gt=0, description="Length of the vectors that the student compares with (κ).")
        hidden: int = Field(default=256, ge=1, description="Hidden width of what generates them.")
        norm: Norm = Field(default="batch", description="Norm inside it.")
        momentum: Momentum = Field(
            default="auto", description="First momentum of the teacher, rising to 1; auto: 1 - 10/steps, from 0.9 to 0.99."
        )

    options: Options
    distance: Tensor
    reads: ClassVar = ("feature_map",)
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "batch_size": 128}

    def build_head(self) -> nn.Module:
        """Build what generates, for each word, a vector that students are compared with."""
        width, options = self.encoder.width, self.options
        return mlp([width, options.hidden, width], options.norm)

    def setup(self) -> None:
        """Build the teacher and the queue of words."""
        self.crops = Crops(self.options, self.data, self.encoder)
        self.teacher = Teacher(self.encoder)
        self.words = Queue(cluster_count(self.options.words, self.data.samples, _MOST, "words"), self.encoder.width)
        self.register_buffer("distance", torch.ones(()))

    def transform(self, batch: Batch) -> Batch:
        """Return crops, `image` `[B, 2, C, S, S]` and `small`, the `whole` for the teacher, and a place on it, `[B, 2]`."""
        whole = random_crop_view(batch["image"], self.data.size, 0.6)
        place = torch.rand(len(whole), 2, device=whole.device)
        return {**self.crops.draw(batch["image"]), "whole": whole, "place": place}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the student says of all crops, `[B, V, K]`, the teacher's words `[B, K]`, and a new word `[B, D]`."""
        features = self.crops.features(lambda views: self.each_view(self.encoder, views), batch)
        compared = self.options.scale * F.normalize(self.head(self.words.rows), dim=1)
        with torch.no_grad():
            encoder = self.teacher.parts[0]
            assert isinstance(encoder, type(self.encoder))
            found = encoder.feature_map(batch["whole"])
        return {"student": features @ compared.T, **self._words(found, batch["place"])}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the teacher's words and what the student says of each crop (equation 2)."""
        said = F.log_softmax(output["student"], dim=2)
        return -(output["words"][:, None] * said).sum(dim=2).mean()

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Keep new words, and how far places were from their nearest word."""
        return {"word": output["word"], "distance": output["distance"]}

    def after_step(self, seen: Batch) -> None:
        """Let the teacher follow, put the new words into the queue and follow the mean distance."""
        momentum = teacher_momentum(self.options.momentum, self.clock, _PAPER_MOMENTUM, to_one=True)
        self.teacher.update(self.encoder, momentum=momentum)
        self.words.push(seen["word"])
        self.distance.lerp_(seen["distance"].mean(), 1.0 if self.clock.step == 0 else 0.1)

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the nats that the student lacks, and how many words an image has, by the entropy."""
        said = F.log_softmax(output["student"], dim=2)
        words = output["words"]
        entropy = torch.special.entr(words).sum(dim=1)
        return {"lacking": -(words[:, None] * said).sum(dim=2).mean(dim=1) - entropy, "words_found": entropy.exp()}

    def reasons(self) -> dict[str, str]:
        """Say what `auto` became."""
        said = self.crops.reasons() | momentum_reason(self.options.momentum, self.clock, _PAPER_MOMENTUM, to_one=True)
        if self.options.words == "auto":
            said["words"] = f"{len(self.words.rows):,}: for {self.data.samples:,} images"
        return said

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the crops of each image, the large ones first."""
        return self.crops.pictures(batch)

    @torch.no_grad()
    def _words(self, found: Tensor, place: Tensor) -> dict[str, Tensor]:
        """Return the words of feature maps `[B, D, h, w]`, how far places are from them, and a mean about one place."""
        places = found.flatten(2).transpose(1, 2)  # [B, N, D]
        vocabulary = self.words.rows.to(found.dtype)
        square = places.square().sum(dim=2, keepdim=True) + vocabulary.square().sum(dim=1) - 2 * places @ vocabulary.T
        chosen = F.softmax(-self.options.sharpness / self.distance * square, dim=2)
        words = chosen.amax(dim=1)
        smooth = F.avg_pool2d(found, 3, stride=1, padding=1, count_include_pad=False).flatten(2)
        height, width = found.shape[-2:]
        number = (place[:, 0] * height).long() * width + (place[:, 1] * width).long()
        return {
            "words": words / words.sum(dim=1, keepdim=True),
            "distance": square.amin(dim=2).mean(dim=1),
            "word": smooth.gather(2, number[:, None, None].expand(-1, smooth.shape[1], 1))[:, :, 0],
        }
