"""Knowledge distillation on unlabeled images (Hinton et al., 2015; Chen et al., 2020b)."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper
from sslkit.engine.classifier import Classifier, describe_classifier, read_classifier
from sslkit.engine.teacher_file import build_teacher, read_teacher
from sslkit.image.examples import example_classifier
from sslkit.image.transforms import erase, rand_augment
from sslkit.image.views import CropOptions, CropScale
from sslkit.nn import Teacher, classification_loss
from sslkit.pictures import side_by_side


class Distill(ImageTask):
    """Predict a fine-tuned teacher's class probabilities of unlabeled images (SimCLRv2; Chen et al., 2020b).

    Teacher and student see the same view, unless the student's has noise (Noisy Student; Xie et al., 2020). The classifier is
    kept, for `sslkit predict`; with `--target features`, any checkpoint is a teacher, and there is none.
    """

    class Options(CropOptions):
        """Options of `distill`."""

        teacher: Path = Field(description="model.safetensors of a fine-tuned encoder, or of any with --target features.")
        target: Literal["logits", "features"] = Field(
            default="logits",
            description="What is predicted: the teacher's class probabilities, or the direction of its features.",
        )
        temperature: float = Field(
            default=1.0, gt=0, description="Temperature of both softmaxes (0.1 in the paper for a smaller student)."
        )
        noise: Literal["none", "strong"] = Field(
            default="none", description="strong: the student's views are changed by RandAugment and erasing, the teacher's not."
        )
        crop_scale: CropScale = 0.6

    options: Options
    visible_targets: ClassVar = ("target",)  # the teacher's view of the same image
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "batch_size": 128}
    paper: ClassVar = Paper(
        source="sections 2 and 3.1 of the paper (SimCLRv2)",
        settings={
            "size": 224,
            "encoder": "resnet50",
            "batch_size": 4096,
            "epochs": 400,
            "optimizer": "lars",
            "crop_scale": 0.08,
        },
    )

    @classmethod
    def example_options(cls, folder: Path) -> dict[str, Any]:
        """Return a classifier with random weights."""
        return {"teacher": str(example_classifier(folder))}

    def build_head(self) -> nn.Module:
        """Read the teacher, and build a linear classifier of its classes, or a layer as wide as its features.

        Raises SslkitError for a teacher that does not fit the images.
        """
        checkpoint = read_teacher(self.options.teacher, self.data)
        encoder = build_teacher(checkpoint, self.data)
        self.classifier: Classifier | None = None
        if self.options.target == "logits":
            self.classifier = read_classifier(checkpoint, "teacher")
            self.teacher = Teacher(encoder, self.classifier.head)
            return nn.Linear(self.encoder.width, len(self.classifier.classes))
        self.teacher = Teacher(encoder)
        return nn.Linear(self.encoder.width, encoder.width)

    def transform(self, batch: Batch) -> Batch:
        """Return views `[B, C, S, S]` and what the teacher makes of them, or of views without noise: `target` `[B, D]`."""
        view = self.crop(batch)
        output = self.teacher(view)
        if self.options.noise == "strong":
            view = erase(rand_augment(view, magnitude=9), probability=0.25)
        return {"image": view, "target": self._activate(output)}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of logits with the teacher's probabilities, or 1 - cosine with its features."""
        if self.classifier is None:
            return (1 - F.cosine_similarity(output, batch["target"])).mean()
        scaled = output / self.options.temperature
        return classification_loss(scaled, batch["target"], sigmoid=self.classifier.sigmoid).mean()

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return how often student and teacher agree on the likeliest class."""
        if self.classifier is None:
            return {"cosine": F.cosine_similarity(output, batch["target"])}
        return {"agreement": (output.argmax(dim=1) == batch["target"].argmax(dim=1)).float()}

    def chance(self) -> dict[str, float]:
        """Return the agreement of a guess."""
        return {} if self.classifier is None else {"agreement": 1 / len(self.classifier.classes)}

    def exports(self) -> dict[str, nn.Module]:
        """Return the encoder, and the classifier if it learned one."""
        return {"encoder": self.encoder, **({} if self.classifier is None else {"head": self.head})}

    def metadata(self) -> dict[str, Any]:
        """Return what the classifier predicts, and how."""
        if self.classifier is None:
            return {}
        loss = "sigmoid" if self.classifier.sigmoid else "softmax"
        return describe_classifier(self.classifier.classes, loss, self.classifier.several)

    preview_columns: ClassVar = ("image", "student's view")

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return each image and what the student sees of it."""
        return side_by_side(batch["original"], batch["image"])

    def _activate(self, output: Tensor) -> Tensor:
        """Return the teacher's probabilities, or its features."""
        if self.classifier is None:
            return output
        return self.classifier.probabilities(output / self.options.temperature)
