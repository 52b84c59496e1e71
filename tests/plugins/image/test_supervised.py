"""supervised and distill: losses against torch's, labels that are missing, mixing inside the encoder, wrong teachers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit import DataInfo, SslkitError, read_model
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.checkpoint import describe, save_model
from sslkit.engine.classifier import read_classifier
from sslkit.image.examples import example_checkpoint, example_classifier
from sslkit.nn import classification_loss
from sslkit.tasks.load import load_task
from tests.canvases import canvases


def build(task: str, encoder: str = "resnet_micro", several: bool = False, **options: Any) -> Any:
    task_class = load_task(task)
    data = DataInfo(64, 16, classes=("cat", "dog", "owl"), several_labels=several)
    torch.manual_seed(0)
    small = {"resnet_micro": {"width": "8"}, "vit_micro": {"width": "32", "depth": "3"}}.get(encoder, {})
    parsed = task_class.Options(**options)
    built = task_class.build_encoder(parsed, RecipeBuilder(recipe_for(encoder, 16, 3, small), data))
    return task_class(parsed, built, data)


def labeled(label: Tensor) -> dict[str, Any]:
    return {**canvases(torch.rand(len(label), 3, 16, 16)), "label": label}


def test_the_loss_is_torchs_over_samples_with_a_label() -> None:
    task, label = build("supervised", label_smoothing=0.2), torch.tensor([0, -1, 2, 1, -1, 0])
    batch = task.transform(labeled(label))
    output = task.predict(batch)
    expected = F.cross_entropy(output, label, ignore_index=-1, label_smoothing=0.2)
    assert torch.allclose(task.loss(output, batch)["class"] / task.counts(batch)["class"], expected)
    known = label >= 0
    assert torch.allclose(task.metrics(output, batch)["accuracy"].mean(), (output.argmax(1) == label)[known].float().mean())
    nothing = task.transform(labeled(torch.full((4,), -1)))
    assert task.loss(task.predict(nothing), nothing)["class"] == 0


def test_several_labels() -> None:
    label = torch.tensor([[1, 0, 1], [0, 1, 0], [-1, -1, -1]])
    sigmoid, shared = build("supervised", several=True), build("supervised", several=True, loss="multi-hot")
    for task, expected in (
        (sigmoid, lambda output: F.binary_cross_entropy_with_logits(output[:2], label[:2].float()) * 2),
        (shared, lambda output: F.cross_entropy(output[:2], label[:2] / label[:2].sum(1, keepdim=True), reduction="sum")),
    ):
        batch = task.transform(labeled(label))
        output = task.predict(batch)
        assert torch.allclose(task.loss(output, batch)["class"], expected(output)) and task.counts(batch)["class"] == 2
    assert sigmoid.metadata() == {"classes": ["cat", "dog", "owl"], "loss": "sigmoid", "several_labels": True}
    with pytest.raises(SslkitError, match="--loss: softmax needs one label per sample"):
        build("supervised", several=True, loss="softmax")


def test_all_four_rotations_are_classified() -> None:
    task, label = build("supervised", all_rotations=True), torch.tensor([0, 1])
    batch = task.transform(labeled(label))
    output = task.predict(batch)
    assert output.shape == (2, 4, 3)
    assert torch.allclose(
        task.loss(output, batch)["class"] / 2, F.cross_entropy(output.flatten(0, 1), label.repeat_interleave(4))
    )


@pytest.mark.parametrize("encoder", ["resnet_micro", "vit_micro", "resnet18"])
@pytest.mark.parametrize("mixed", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_mixing_inside_the_encoder(encoder: str, mixed: dict[str, float]) -> None:
    """Of a sample whose partner has no part in it, the features are those without mixing."""
    task = build("supervised", encoder, mixup_layer=2, **mixed).eval()
    batch = dict(task.transform(labeled(torch.tensor([0, 1, 2, -1]))))
    assert batch["image"].shape[:2] == (4, 2) and batch["target"][:3].sum() == pytest.approx(3)
    plain = task.head(task.encoder(batch["image"][:, 0]))
    assert torch.allclose(task.predict(batch)[3], plain[3], atol=1e-5)
    assert not torch.allclose(task.predict(batch)[:3], plain[:3], atol=1e-3)
    twins = {**batch, "image": batch["image"][:, :1].expand(-1, 2, -1, -1, -1)}  # mixed with itself
    assert torch.allclose(task.predict(twins), plain, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup_layer": 1}, "--mixup-layer: nothing is mixed"),
        ({"mixup_layer": 5, "mixup": 0.1}, "--mixup-layer: the encoder shows 4 blocks"),
        ({"all_rotations": True, "cutmix": 0.1}, "--all-rotations: the rotations of an image are not mixed"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SslkitError, match=message):
        build("supervised", **options)


def test_averaged_weights_are_kept_with_their_classifier() -> None:
    task = build("supervised", ema=0.5)
    parts = task.exports()
    assert parts["encoder"] is not task.encoder and parts["head"] is not task.head
    with pytest.raises(SslkitError, match=r"turn averaging off: --supervised.ema 0"):
        build("rotation+supervised", supervised__ema=0.5)


def test_the_student_of_its_teacher_has_nothing_to_learn(tmp_path: Path) -> None:
    teacher = example_classifier(tmp_path)
    task = build("distill", teacher=str(teacher), temperature=2.0)
    checkpoint = read_model(teacher)
    task.encoder, task.head = checkpoint.build_encoder(), read_classifier(checkpoint).head
    batch = task.transform(canvases(torch.rand(8, 3, 16, 16)))
    output = task.predict(batch)
    assert torch.allclose(batch["target"], (output / 2).softmax(dim=1), atol=1e-6)
    (gradient,) = torch.autograd.grad(task.loss(output, batch), output)
    assert gradient.abs().max() < 1e-6 and task.metrics(output, batch)["agreement"].min() == 1


def test_a_certain_teacher_is_a_label() -> None:
    logits, label = torch.randn(6, 4), torch.randint(0, 4, (6,))
    assert torch.allclose(classification_loss(logits, F.one_hot(label, 4).float()).mean(), F.cross_entropy(logits, label))


def test_noise_is_the_students_alone(tmp_path: Path) -> None:
    batches = []
    for noise in ("none", "strong"):
        task = build("distill", teacher=str(example_classifier(tmp_path)), noise=noise)
        torch.manual_seed(0)
        batches.append(task.transform(canvases(torch.rand(8, 3, 16, 16))))
    assert torch.equal(batches[0]["target"], batches[1]["target"])
    assert not torch.equal(batches[0]["image"], batches[1]["image"])


def test_features_need_no_classes(tmp_path: Path) -> None:
    task = build("distill", teacher=str(example_checkpoint(tmp_path)), target="features")
    batch = task.transform(canvases(torch.rand(8, 3, 16, 16)))
    assert batch["target"].shape == task.predict(batch).shape == (8, 128) and set(task.exports()) == {"encoder"}
    assert task.loss(batch["target"], batch) == pytest.approx(0, abs=1e-6) and task.metadata() == {}


def gray_teacher(folder: Path) -> Path:
    encoder = RecipeBuilder(recipe_for("resnet_micro", 32, 1, {"width": "8"}), DataInfo(1, 32, 1))()
    save_model(
        folder / "gray.safetensors", {"encoder": encoder}, {**describe(encoder), "task": "x", "size": 32, "step": 0, "data": ""}
    )
    return folder / "gray.safetensors"


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (example_checkpoint, "--teacher: .* has no classifier: it was trained by check"),
        (gray_teacher, "--teacher: the teacher expects 1 channels, the data has 3"),
        (lambda folder: folder / "none.safetensors", "--teacher: .*none.safetensors is not a file"),
    ],
)
def test_wrong_teachers(tmp_path: Path, teacher: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(SslkitError, match=message):
        build("distill", teacher=str(teacher(tmp_path)))


def test_labels_to_student(digits: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    small = ("--encoder", "resnet_micro", "--encoder-option", "width=8", "--steps", 40, "--batch-size", 16, "--workers", 0)
    ran = sslkit(
        "pretrain", "rotation+supervised", "--data", digits, *small, "--label-share", 0.25, "--out", tmp_path / "joint"
    )
    assert ran.code == 0 and "12 of 48 images have a label the task sees" in ran.err, ran.err
    teacher = tmp_path / "joint" / "model.safetensors"
    assert read_model(teacher).metadata["labeled"] == 12
    ran = sslkit("pretrain", "distill", "--teacher", teacher, "--data", digits, *small, "--out", tmp_path / "student")
    assert ran.code == 0, ran.err
    student = tmp_path / "student" / "model.safetensors"
    ran = sslkit("predict", "--ckpt", student, "--data", digits / "test", "--out", tmp_path / "classes.csv")
    assert ran.code == 0, ran.err
    rows = [line.split(",") for line in (tmp_path / "classes.csv").read_text().splitlines()[1:]]
    assert sum(path.startswith(name) for path, name, _ in rows) > 0.6 * len(rows)
    ran = sslkit("preview", "--ckpt", student, "--out", tmp_path / "views.png")
    assert ran.code == 0, ran.err
