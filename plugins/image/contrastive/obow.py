"""OBoW (Gidaris et al., 2021)."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper
from sslkit.image.views import Blur, ColorStrength, Crops, MultiCropOptions, blur_field, color_strength_field
from sslkit.nn import Momentum, Norm, Queue, Teacher, cluster_count, mlp, momentum_reason, teacher_momentum

WordCount = Annotated[int, Field(ge=2)]


_MAX_WORDS, _PAPER_MOMENTUM = 8192, 0.99


class OBoW(ImageTask):
    """Predict an EMA teacher's bag of visual words from crops (OBoW; Gidaris et al., 2021).

    Words are recent local features of the teacher, kept in a queue; the weights of the student's classifier are generated
    from the words, so that they follow them.
    """

    class Options(MultiCropOptions):
        """Options of `obow`."""

        photo_jitter: ClassVar[str] = "0.4/0.4/0.4/0.1"  # config/ImageNetFull/ResNet50_OBoW_full.yaml
        photo_blur: ClassVar[str] = "0.5/0.5/0"  # obow/datasets.py: small views, cut from a large one, are not blurred
        color_strength: ColorStrength = color_strength_field(photo_jitter)
        blur: Blur = blur_field(photo_blur)
        crops: str = Field(
            default="2+5", pattern=r"^2\+\d\d?$", description="Large and small crops per image (2+5 in the paper)."
        )
        words: WordCount | Literal["auto"] = Field(
            default="auto",
            description="Number of words in the queue; auto: one per ten images, at most 8,192 (the paper's value).",
        )
        sharpness: float = Field(
            default=15.0, gt=0, description="Inverse temperature of word assignments (1/δ), relative to the mean distance."
        )
        scale: float = Field(default=5.0, gt=0, description="Length of the generated weight vectors (κ).")
        hidden: int = Field(default=256, ge=1, description="Hidden width of the weight generator.")
        norm: Norm = Field(default="batch", description="Normalization inside the weight generator.")
        momentum: Momentum = Field(
            default="auto", description="Initial momentum of the teacher, rising to 1; auto: 1 - 10/steps, from 0.9 to 0.99."
        )

    options: Options
    distance: Tensor
    requires: ClassVar = ("feature_map",)
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "batch_size": 128}
    paper: ClassVar = Paper(
        source="config/ImageNetFull/ResNet50_OBoW_full.yaml of the authors",
        settings={
            "size": 224,
            "encoder": "resnet50",
            "batch_size": 256,
            "epochs": 200,
            "optimizer": "sgd",
            "lr": 0.03,
            "weight_decay": 1e-4,
            "warmup": 10 / 200,
            "crop_scale": 0.08,
            "color_strength": Options.photo_jitter,
            "blur": Options.photo_blur,
            "small_size": 96,
            "words": 8192,
            "scale": 8.0,
            "momentum": 0.99,
        },
        unsupported=(
            "words of two feature levels, conv4 and conv5 (here of the last)",
            "large crops of 160 px and at most 0.6 of the image; small ones cut from a view of 0.6 to 1",
        ),
    )

    def build_head(self) -> nn.Module:
        """Build the generator of the classifier's weight vectors from words."""
        width, options = self.encoder.width, self.options
        return mlp([width, options.hidden, width], options.norm)

    def setup(self) -> None:
        """Build the teacher and the queue of words."""
        self.crops = Crops(self.options, self.data, self.encoder)
        self.teacher = Teacher(self.encoder)
        self.words = Queue(cluster_count(self.options.words, self.data.samples, _MAX_WORDS, "words"), self.encoder.width)
        self.register_buffer("distance", torch.ones(()))

    def transform(self, batch: Batch) -> Batch:
        """Return crops, `image` `[B, 2, C, S, S]` and `small`, the teacher's view `whole`, and a `place` on it, `[B, 2]`."""
        whole = self.crop(batch, scale=0.6)
        place = torch.rand(len(whole), 2, device=whole.device)
        return {**self.crops.draw(batch), "whole": whole, "place": place}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the student's logits of all crops, `[B, V, K]`, the teacher's words `[B, K]`, and a new word `[B, D]`."""
        features = self.crops.features(lambda views: self.each_view(self.encoder, views), batch)
        weights = self.options.scale * F.normalize(self.head(self.words.rows), dim=1)
        with torch.no_grad():
            encoder = self.teacher.parts[0]
            assert isinstance(encoder, type(self.encoder))
            feature_map = encoder.feature_map(batch["whole"])
        return {"student": features @ weights.T, **self._words(feature_map, batch["place"])}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the teacher's words and the student's prediction from each crop (equation 2)."""
        log_probs = F.log_softmax(output["student"], dim=2)
        return -(output["words"][:, None] * log_probs).sum(dim=2).mean()

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Return new words, and the mean distance of positions to their nearest word."""
        return {"word": output["word"], "distance": output["distance"]}

    def after_step(self, remembered: Batch) -> None:
        """Update the teacher, push the new words and update the mean distance."""
        momentum = teacher_momentum(self.options.momentum, self.clock, _PAPER_MOMENTUM, to_one=True)
        self.teacher.update(self.encoder, momentum=momentum)
        self.words.push(remembered["word"])
        self.distance.lerp_(remembered["distance"].mean(), 1.0 if self.clock.step == 0 else 0.1)

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the student's KL divergence from the teacher in nats, and the effective number of words per image."""
        log_probs = F.log_softmax(output["student"], dim=2)
        words = output["words"]
        entropy = torch.special.entr(words).sum(dim=1)
        cross_entropy = -(words[:, None] * log_probs).sum(dim=2).mean(dim=1)
        return {"divergence_nats": cross_entropy - entropy, "words_per_image": entropy.exp()}

    def reasons(self) -> dict[str, str]:
        """Return what options left on `auto` became."""
        reasons = self.crops.reasons() | momentum_reason(self.options.momentum, self.clock, _PAPER_MOMENTUM, to_one=True)
        if self.options.words == "auto":
            reasons["words"] = f"{len(self.words.rows):,}: for {self.data.samples:,} images"
        return reasons

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the crops of each image, the large ones first."""
        return self.crops.pictures(batch)

    @torch.no_grad()
    def _words(self, feature_map: Tensor, place: Tensor) -> dict[str, Tensor]:
        """Return bags of words of maps `[B, D, h, w]`, mean distances to the nearest word, and local means around `place`."""
        positions = feature_map.flatten(2).transpose(1, 2)  # [B, N, D]
        vocabulary = self.words.rows.to(feature_map.dtype)
        square = positions.square().sum(dim=2, keepdim=True) + vocabulary.square().sum(dim=1) - 2 * positions @ vocabulary.T
        assignment = F.softmax(-self.options.sharpness / self.distance * square, dim=2)
        words = assignment.amax(dim=1)
        smooth = F.avg_pool2d(feature_map, 3, stride=1, padding=1, count_include_pad=False).flatten(2)
        height, width = feature_map.shape[-2:]
        number = (place[:, 0] * height).long() * width + (place[:, 1] * width).long()
        return {
            "words": words / words.sum(dim=1, keepdim=True),
            "distance": square.amin(dim=2).mean(dim=1),
            "word": smooth.gather(2, number[:, None, None].expand(-1, smooth.shape[1], 1))[:, :, 0],
        }
