"""A teacher beside the labels: `finetune --teacher` (Touvron et al., 2021, section 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.task import DataInfo
from sslkit.engine.classifier import read_classifier
from sslkit.engine.teacher_file import build_teacher, read_teacher
from sslkit.nn import Teacher, class_targets, classification_loss
from sslkit.specs.train import FinetuneSpec

_SOFT_WEIGHT = 0.1  # of the teacher: lambda in the paper


class Distillation(nn.Module):
    """A trained classifier, and the loss of predicting what it says about the same augmented images.

    Hard: its likeliest class, by cross-entropy (equation 3). Soft: its probabilities at a temperature, by KL divergence times
    the temperature's square (equation 2). Raises SslkitError for a teacher that does not fit the images or their classes.
    """

    order: Tensor

    def __init__(self, options: FinetuneSpec, data: DataInfo, classes: tuple[str, ...]) -> None:
        super().__init__()
        assert options.teacher is not None
        checkpoint = read_teacher(options.teacher, data)
        classifier = read_classifier(checkpoint, "teacher")
        if classifier.several:
            raise SslkitError("the teacher's images may have several classes at once", "use one with a softmax", flag="teacher")
        if set(classifier.classes) != set(classes):
            other = sorted(set(classes) ^ set(classifier.classes))
            raise SslkitError(
                f"the teacher knows {len(classifier.classes)} classes, the data has {len(classes)}; only one has {other[0]}",
                "both need the same classes",
                flag="teacher",
            )
        order = torch.tensor([classifier.classes.index(name) for name in classes])
        self.register_buffer("order", order, persistent=False)
        self.teacher = Teacher(build_teacher(checkpoint, data), classifier.head)
        self.soft, self.temperature = options.distill == "soft", options.teacher_temperature
        default = _SOFT_WEIGHT if self.soft else 0.5
        self.weight = default if options.teacher_weight == "auto" else options.teacher_weight

    def target(self, image: Tensor) -> Tensor:
        """Return what is to be predicted of images, `[B, classes]`: probabilities, or 1 for the likeliest class."""
        logits: Tensor = self.teacher(image)[:, self.order].float()
        if self.soft:
            return (logits / self.temperature).softmax(dim=1)
        return class_targets(logits.argmax(dim=1), len(self.order))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each sample, `[B]`, of logits and targets `[B, classes]`."""
        if not self.soft:
            return classification_loss(logits, target)
        student = (logits.float() / self.temperature).log_softmax(dim=1)
        divergence: Tensor = F.kl_div(student, target, reduction="none").sum(dim=1)
        return self.temperature**2 * divergence


class TwoHeads(nn.Module):
    """Two classifiers: one reads the class token, the other the distillation token, and it learns from the teacher."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.width = encoder.width // 2
        self.label, self.teacher = nn.Linear(self.width, classes), nn.Linear(self.width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits `[B, 2, classes]` of both tokens side by side, `[B, 2 * width]`."""
        token, distilled = features.split(self.width, dim=1)
        return torch.stack([self.label(token), self.teacher(distilled)], dim=1)

    def merge(self) -> nn.Linear:
        """Return the classifier whose logits are the mean of both, as DeiT is tested."""
        merged = nn.Linear(2 * self.width, self.label.out_features, device=self.label.weight.device)
        with torch.no_grad():
            merged.weight.copy_(torch.cat([self.label.weight, self.teacher.weight], dim=1) / 2)
            merged.bias.copy_((self.label.bias + self.teacher.bias) / 2)
        return merged
