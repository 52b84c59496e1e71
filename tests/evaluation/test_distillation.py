"""Fine-tuning with a teacher: targets, losses, DeiT's token, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sslkit import SslkitError
from sslkit.contract.task import DataInfo
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.checkpoint import describe, read_model, save_model
from sslkit.engine.classifier import read_classifier
from sslkit.evaluation.distillation import TwoHeads
from sslkit.evaluation.finetune import finetune
from sslkit.evaluation.supervised import Supervised
from sslkit.specs.train import FinetuneSpec
from tests.canvases import canvases

CLASSES = ("cat", "dog", "owl")
SMALL = {"width": "32", "depth": "2", "distilled": "true"}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Write a classifier whose classes stand in another order than the data's."""
    torch.manual_seed(0)
    encoder = build_encoder(recipe_for("resnet_micro", 16, options={"width": "8"}))
    head = torch.nn.Linear(encoder.width, 3)
    torch.nn.init.normal_(head.weight, std=5)
    metadata = {**describe(encoder), "task": "finetune", "size": 16, "step": 0, "data": "", "loss": "softmax"}
    path = tmp_path / "teacher.safetensors"
    save_model(path, {"encoder": encoder, "head": head}, {**metadata, "classes": ["owl", "cat", "dog"]})
    return path


def student(teacher: Path, options: dict[str, str] = SMALL, classes: tuple[str, ...] = CLASSES, **values: Any) -> Supervised:
    torch.manual_seed(1)
    spec = FinetuneSpec(teacher=str(teacher), **values)
    encoder = build_encoder(recipe_for("vit_micro", 16, options=options))
    return Supervised(spec, encoder, DataInfo(samples=8, size=16), torch.arange(8) % len(classes), classes)


def batch() -> dict[str, torch.Tensor]:
    return canvases(torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), index=torch.arange(8))


def test_the_teacher_sees_the_students_view_and_its_classes_are_put_in_order(teacher: Path) -> None:
    task = student(teacher, distill="hard", mixup=0.5).train()
    prepared = task.transform(batch())
    checkpoint = read_model(teacher)
    encoder, head = checkpoint.build_encoder(), read_classifier(checkpoint).head
    names = ["owl", "cat", "dog"]
    for row, logits in enumerate(head(encoder(prepared["image"]))):
        assert CLASSES[prepared["taught"][row].argmax()] == names[logits.argmax()]
    assert (prepared["taught"].sum(dim=1) == 1).all()


@pytest.mark.parametrize("distill", ["hard", "soft", "token"])
def test_losses_against_naive_loops(teacher: Path, distill: str) -> None:
    task = student(teacher, distill=distill, teacher_temperature=2.0)
    prepared, labels = task.transform(batch()), torch.arange(8) % 3
    shape = (8, 2, 3) if distill == "token" else (8, 3)
    output = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert task.predict(prepared).shape == shape
    expected = 0.0
    for row in range(8):
        student_logits, taught = output[row] if distill == "token" else (output[row], output[row])
        of_label = -float(student_logits.log_softmax(0)[labels[row]])
        if distill == "soft":
            target = prepared["taught"][row]
            student_log = (taught / 2).log_softmax(0)
            divergence = sum(float(target[c] * (target[c].log() - student_log[c])) for c in range(3))
            expected += 0.9 * of_label + 0.1 * 4 * divergence
        else:
            expected += 0.5 * of_label - 0.5 * float(taught.log_softmax(0)[prepared["taught"][row].argmax()])
    assert task.loss(output, prepared).item() == pytest.approx(expected / 8, rel=1e-5)
    metrics = task.metrics(output, prepared)
    mean = output.mean(dim=1) if distill == "token" else output
    assert metrics["agreement"].tolist() == [float(mean[i].argmax() == prepared["taught"][i].argmax()) for i in range(8)]


def test_only_the_labels_without_weight_for_the_teacher(teacher: Path) -> None:
    task = student(teacher, teacher_weight=0.0)
    prepared, output = task.transform(batch()), torch.randn(8, 3)
    assert torch.allclose(task.loss(output, prepared), F.cross_entropy(output, torch.arange(8) % 3))
    assert not any(parameter.requires_grad for parameter in task.distillation.parameters())


def test_merged_heads_are_the_mean_of_both(teacher: Path) -> None:
    task = student(teacher, distill="token").eval()
    assert isinstance(task.head, TwoHeads) and task.encoder.width == 64
    features = task.encoder(torch.rand(4, 3, 16, 16))
    tokens = task.encoder.tokens(torch.rand(4, 3, 16, 16))
    assert tokens.shape == (4, 2 + 16, 32) and features.shape == (4, 64)
    merged = task.exports()["head"]
    assert torch.allclose(merged(features), task.head(features).mean(dim=1), atol=1e-6)


def test_timms_distilled_models_have_both_tokens_in_their_features() -> None:
    encoder = build_encoder(recipe_for("deit_tiny_distilled_patch16_224", 32, options={"distilled": "True"}))
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(encoder(images), encoder.layers(images)[-1][:, :2].flatten(1)) and encoder.width == 384
    with pytest.raises(SslkitError, match="only deit_\\*_distilled_\\* have a distillation token"):
        build_encoder(recipe_for("resnet18", 32, options={"distilled": "True"}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"distill": "token", "options": {}}, "--distill: token needs an encoder with a distillation token"),
        ({"classes": ("cat", "dog", "elk")}, "--teacher: the teacher knows 3 classes, the data has 3; only one has elk"),
        ({"loss": "sigmoid"}, "--loss: a teacher's classes exclude each other"),
        ({"teacher": "nowhere.safetensors"}, "--teacher: nowhere.safetensors"),
    ],
)
def test_teachers_that_do_not_fit(teacher: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SslkitError) as raised:
        student(**{"teacher": teacher, **values})
    assert message in str(raised.value)


def test_a_teacher_without_classes_is_refused(tmp_path: Path, trained: Path, digits: Path) -> None:
    flags = {"encoder": "vit_micro", "batch_size": 16, "workers": 0, "out": str(tmp_path / "run")}
    with pytest.raises(SslkitError, match="has no classifier"):
        finetune(FinetuneSpec(data=str(digits), teacher=str(trained), size=16, **flags))
    with pytest.raises(SslkitError, match="--distill: there is no teacher"):
        finetune(FinetuneSpec(data=str(digits), distill="soft", **flags))


def test_a_token_learns_from_a_convolutional_teacher(sslkit: Callable[..., Any], digits: Path, tmp_path: Path) -> None:
    common = ["--data", digits, "--workers", 0, "--batch-size", 16, "--size", 16]
    convolutional = ["finetune", *common, "--encoder", "resnet_micro", "--encoder-option", "width=8", "--steps", 30]
    assert sslkit(*convolutional, "--out", tmp_path / "teacher").code == 0
    run = ["finetune", *common, "--encoder", "vit_micro", "--encoder-option", "distilled=true", "--encoder-option", "width=32"]
    run += ["--teacher", tmp_path / "teacher" / "model.safetensors", "--distill", "token", "--out", tmp_path / "student"]
    ran = sslkit(*run, "--steps", 6, "--json").json
    assert ran["protocol"] is None and ran["settings"]["distill"] == "token"
    for verb in (["predict"], ["export", "--to", "onnx"]):
        out = ["--out", tmp_path / ("classes.csv" if verb == ["predict"] else "student.onnx")]
        data = ["--data", digits] if verb == ["predict"] else []
        assert sslkit(*verb, "--ckpt", tmp_path / "student" / "model.safetensors", *data, *out).code == 0
