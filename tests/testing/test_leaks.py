"""A prediction that is computed from its target is named, and one that only looks so is not."""

import math
import random
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit import Batch, ImageTask, PretextTask
from sslkit.tasks.joint import joint_task
from sslkit.tasks.load import load_task
from sslkit.testing.bench import Bench
from sslkit.testing.leaks import find_leak


def leak_of(task_class: type[PretextTask]) -> str | None:
    with Bench(task_class) as bench:
        stepper = bench.stepper()
        return find_leak(
            stepper.task, bench.prepared(stepper), lambda prepared, draw: bench.transform(stepper, prepared, rank=draw)
        )


class Supervised(ImageTask):
    """Classify the samples with a label."""

    needs: ClassVar = ("label",)

    def build_head(self) -> nn.Module:
        return nn.Linear(self.encoder.width, len(self.data.classes))

    def transform(self, batch: Batch) -> Batch:
        return {"image": self.crop(batch), "label": batch["label"]}

    def loss(self, output: Tensor, batch: Batch) -> Any:
        return {"loss": F.cross_entropy(output, batch["label"], ignore_index=-1, reduction="sum")}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (batch["label"] >= 0).sum()}


class ReadsTarget(Supervised):
    """Adds the label to the logits."""

    def predict(self, batch: Batch) -> Tensor:
        return super().predict(batch) + F.one_hot(batch["label"].clamp(min=0), len(self.data.classes))


class PaintsLabel(Supervised):
    """Makes images brighter by their label."""

    def transform(self, batch: Batch) -> Batch:
        return {**super().transform(batch), "image": self.crop(batch) + 0.1 * batch["label"].view(-1, 1, 1, 1)}


class ReadsIndex(Supervised):
    """Shifts the logits by the place of the sample in the data, under another name."""

    needs: ClassVar = ("index", "label")

    def transform(self, batch: Batch) -> Batch:
        return {**super().transform(batch), "place": batch["index"] / self.data.samples}

    def predict(self, batch: Batch) -> Tensor:
        return super().predict(batch) + batch["place"][:, None]


class Brightness(ImageTask):
    """Predict by how much an image was darkened."""

    def build_head(self) -> nn.Module:
        return nn.Linear(self.encoder.width, 1)

    def transform(self, batch: Batch) -> Batch:
        image = self.crop(batch)
        factor = 0.5 + torch.rand(len(image), device=image.device) / 2
        level = (factor * 8).long()
        return {
            "image": image * factor.view(-1, 1, 1, 1),
            "factor": factor,
            "percent": 100 * factor,
            "level": level,
            "one_hot": F.one_hot(level, 8).float(),
            "noise": torch.randn(len(image), 4, device=image.device),
        }

    def predict(self, batch: Batch) -> Tensor:
        return super().predict(batch) + 0.1 * batch["noise"].mean(dim=1, keepdim=True)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(output[:, 0], batch["factor"])


class ReadsFactor(Brightness):
    def predict(self, batch: Batch) -> Tensor:
        return self.head(self.encoder(batch["image"] / batch["factor"].view(-1, 1, 1, 1)))


class ReadsPercent(Brightness):
    """Reads the target in another unit."""

    def predict(self, batch: Batch) -> Tensor:
        return super().predict(batch) + batch["percent"][:, None] / 100


class ReadsLevels(Brightness):
    """Classifies levels, which it reads as vectors."""

    def build_head(self) -> nn.Module:
        return nn.Linear(self.encoder.width, 8)

    def predict(self, batch: Batch) -> Tensor:
        return super().predict(batch) + batch["one_hot"]

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output, batch["level"])


class Masked(ImageTask):
    """Reconstruct the hidden half of an image from the other half."""

    requires: ClassVar = ("feature_map",)

    def build_head(self) -> nn.Module:
        shape = (self.data.channels, self.data.size, self.data.size)
        with torch.no_grad():
            width = self.encoder.feature_map(torch.zeros(2, *shape)).flatten(1).shape[1]
        return nn.Sequential(nn.Flatten(), nn.Linear(width, math.prod(shape)), nn.Unflatten(1, shape))

    def transform(self, batch: Batch) -> Batch:
        image = self.crop(batch)
        coarse = torch.rand(len(image), 1, 4, 4, device=image.device) < 0.5
        hidden = coarse.repeat_interleave(image.shape[2] // 4, dim=2).repeat_interleave(image.shape[3] // 4, dim=3)
        return {"image": image.masked_fill(hidden, 0.5), "target": image, "hidden": hidden}

    def predict(self, batch: Batch) -> Tensor:
        return self.head(self.encoder.feature_map(batch["image"]))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return ((output - batch["target"]).square() * batch["hidden"]).mean()


class SeesHidden(Masked):
    """Forgets to hide what it asks for."""

    def transform(self, batch: Batch) -> Batch:
        result = super().transform(batch)
        return {**result, "image": result["target"]}


class SeesMean(Masked):
    """Fills the holes with the mean of the whole image, holes included."""

    def transform(self, batch: Batch) -> Batch:
        result = super().transform(batch)
        mean = result["target"].mean(dim=(2, 3), keepdim=True)
        return {**result, "image": torch.where(result["hidden"], mean, result["target"])}


class PastesMask(Masked):
    """Keeps the visible pixels in the output, by the mask that the loss reads as well."""

    def predict(self, batch: Batch) -> Tensor:
        return torch.where(batch["hidden"], super().predict(batch), batch["image"])


class DeclaresMask(PastesMask):
    visible_targets: ClassVar = ("hidden",)


class Reconstructs(Masked):
    """Reconstructs all of its input."""

    def transform(self, batch: Batch) -> Batch:
        return {"image": self.crop(batch)}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(output, batch["image"])


class DeclaresInput(Reconstructs):
    visible_targets: ClassVar = ("image",)


class Denoises(Masked):
    """Reconstructs what noise was added to."""

    def transform(self, batch: Batch) -> Batch:
        image = self.crop(batch)
        return {"image": image + 0.1 * torch.randn_like(image), "target": image}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(output, batch["target"])


class DenoisesMiddle(Denoises):
    """Skips the border."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(output[..., 4:-4, 4:-4], batch["target"][..., 4:-4, 4:-4])


class DeclaresDenoised(DenoisesMiddle):
    visible_targets: ClassVar = ("target",)


class DrawsElsewhere(Masked):
    """Draws with Python's generator, which another check reports: no two transforms are equal."""

    needs: ClassVar = ("index",)

    def transform(self, batch: Batch) -> Batch:
        result = super().transform(batch)
        return {**result, "image": result["image"] + random.random()}


class Causal(PretextTask):
    """Predict each token from those before it."""

    modality: ClassVar = "text"

    def setup(self) -> None:
        self.embedding = nn.Embedding(50, 16)
        self.readout = nn.Linear(16, 50)

    def transform(self, batch: Batch) -> Batch:
        return {"inputs": batch["text"][:, :-1], "targets": batch["text"][:, 1:]}

    def predict(self, batch: Batch) -> Tensor:
        return self.readout(self.embedding(batch["inputs"]).cumsum(dim=1))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output.transpose(1, 2), batch["targets"])


class Quantized(ImageTask):
    """Predict how bright an image is, in four steps: most small changes of it change nothing."""

    def build_head(self) -> nn.Module:
        return nn.Linear(self.encoder.width, 4)

    def transform(self, batch: Batch) -> Batch:
        image = self.crop(batch)
        return {"image": image, "step": (image.mean(dim=(1, 2, 3)) * 4).long().clamp(max=3)}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output, batch["step"])


@pytest.mark.parametrize(
    ("task", "leak"),
    [
        (
            ReadsTarget,
            "the output of predict depends on the label of a sample, which only the loss may use; if predictions",
        ),
        (PaintsLabel, "the output of predict depends on the label of a sample"),
        (ReadsIndex, "the output of predict depends on the index of a sample"),
        (ReadsFactor, "the output of predict depends on factor, which the loss compares it with"),
        (ReadsPercent, "the output of predict depends on percent, which reveals factor, which the loss compares it with"),
        (ReadsLevels, "the output of predict depends on one_hot, which reveals level"),
        (SeesHidden, "the output of predict depends on every part of canvas that the loss compares it with; none is masked"),
        (SeesMean, "the output of predict depends on every part of canvas that the loss compares it with; none is masked"),
        (DenoisesMiddle, "if the task is autoregressive or denoises, set visible_targets = (...) to its targets"),
        (PastesMask, "depends on hidden, which the loss compares it with; if hidden is a mask"),
        (Reconstructs, "set visible_targets = ('image',)"),
    ],
)
def test_a_leak_is_named(task: type[PretextTask], leak: str) -> None:
    assert leak in (leak_of(task) or "")


@pytest.mark.parametrize(
    "task", [Supervised, Brightness, Masked, DeclaresMask, DeclaresInput, Quantized, Denoises, DeclaresDenoised, DrawsElsewhere]
)
def test_a_task_without_a_leak_has_none(task: type[PretextTask]) -> None:
    assert leak_of(task) is None


@pytest.mark.parametrize("length", [16, 24, 64, 100])
def test_a_causal_task_has_none_whatever_its_length(length: int) -> None:
    torch.manual_seed(0)
    encoder: Any = nn.Identity()
    data: Any = None
    task = Causal(None, encoder, data)
    prepared = {"text": torch.randint(50, (8, length))}
    assert find_leak(task, prepared, lambda prepared, _: task.transform(prepared)) is None


def test_a_joint_task_leaks_as_its_children_do() -> None:
    simclr = load_task("simclr")
    assert leak_of(joint_task({"simclr": simclr, "masked": Masked, "declares": DeclaresInput})) is None
    assert "masked. of predict depends on every part" in (leak_of(joint_task({"simclr": simclr, "masked": SeesHidden})) or "")
