"""adapt: parts that checkpoints keep, and what adapting changes and must not change."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sslkit.engine.checkpoint import read_model
from sslkit.engine.classifier import read_classifier
from sslkit.engine.kept_parts import kept_tasks, read_pretext_task
from sslkit.evaluation.models import weights_hash
from sslkit.image.adaptation import (
    ImageClassifier,
    TestTimeTraining,
    _batches,
    as_float,
    predict_by_batch,
    predict_by_tent,
    predict_plainly,
)
from sslkit.image.source import ImageSource
from sslkit.specs.train import PretrainSpec

Run = Callable[..., Any]
CANVASES = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["batch", "group"])
def joint(request: pytest.FixtureRequest, digits: Path, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Return a checkpoint of rotation and labels that keeps the head of rotation."""
    from sslkit.engine.pretrain import pretrain

    spec = PretrainSpec(
        task="rotation+supervised",
        data=str(digits),
        out=str(tmp_path_factory.mktemp(request.param) / "joint"),
        steps=12,
        batch_size=16,
        size=16,
        encoder_option={"width": "8", **({"norm": "group"} if request.param == "group" else {})},
        keep_parts=["head"],
        workers=0,
    )
    return Path(pretrain(spec).checkpoint)


def build(checkpoint: Path, digits: Path, **changes: Any) -> tuple[ImageClassifier, TestTimeTraining]:
    model = read_model(checkpoint)
    encoder = model.build_encoder()
    spec = PretrainSpec(task="rotation", data=str(digits))
    source = ImageSource.for_evaluation(ImageSource.read_index(str(digits / "test"), spec), spec, encoder, 16)
    classifier = ImageClassifier(encoder, read_classifier(model).head, source).eval()
    values = {"steps": 2, "lr": 0.05, "copies": 3, "resets": True, "batchnorm_trains": False, "seed": 0, **changes}
    return classifier, TestTimeTraining(classifier, read_pretext_task(model, encoder, "rotation", 12), **values)


def test_a_kept_task_answers_as_it_did(joint: Path, digits: Path) -> None:
    model = read_model(joint)
    assert kept_tasks(model) == ["rotation", "supervised"]
    encoder = model.build_encoder()
    task = read_pretext_task(model, encoder, "rotation", 48)
    assert task.encoder is encoder and not task.training
    images = torch.rand(2, 4, 3, 16, 16)
    expected = encoder(images.flatten(0, 1)) @ model.tensors["pretext.rotation.head.weight"].T
    expected += model.tensors["pretext.rotation.head.bias"]
    assert torch.allclose(task.predict({"image": images}).flatten(0, 1), expected, atol=1e-6)


def test_without_a_step_nothing_changes(joint: Path, digits: Path) -> None:
    classifier, training = build(joint, digits, lr=0.0)
    plain = predict_plainly(classifier, CANVASES, 5)
    assert list(training.predict(CANVASES, list(range(12)))) == plain.tolist()
    still = predict_by_tent(classifier, CANVASES, 5, lr=0.0)
    assert torch.equal(still, predict_by_batch(classifier, CANVASES, 5))
    if not classifier.has_batch_norm:
        assert torch.equal(still, plain)


def test_batches_have_nearly_the_same_size() -> None:
    sizes = [len(part) for part in _batches(torch.zeros(101, 1, 1, 1, dtype=torch.uint8), 10)]
    assert sum(sizes) == 101 and len(sizes) == 11 and set(sizes) == {9, 10}


def test_methods_leave_the_weights_as_they_were(joint: Path, digits: Path) -> None:
    for resets in (True, False):
        classifier, training = build(joint, digits, resets=resets, batchnorm_trains=True)
        before, head = weights_hash(classifier.encoder), classifier.head.weight.clone()
        list(training.predict(CANVASES, list(range(12))))
        predict_by_tent(classifier, CANVASES, 4, lr=0.1)
        predict_by_batch(classifier, CANVASES, 4)
        assert weights_hash(classifier.encoder) == before and torch.equal(classifier.head.weight, head)


def test_an_image_by_itself_knows_nothing_of_the_others(joint: Path, digits: Path) -> None:
    logits = dict[int, torch.Tensor]()
    classifier, training = build(joint, digits)

    def record(module: Any, inputs: Any, output: torch.Tensor) -> None:
        outputs.append(output.detach()[0])

    classifier.register_forward_hook(record)
    for rows in ([0, 1, 2, 3], [3, 1], [2, 0, 1, 3]):
        outputs = list[torch.Tensor]()
        list(training.predict(CANVASES[rows], rows))
        for row, value in zip(rows, outputs, strict=True):
            assert torch.equal(logits.setdefault(row, value), value)
    online = build(joint, digits, resets=False)[1]
    online.classifier.register_forward_hook(record)
    outputs = []
    list(online.predict(CANVASES[[0, 1]], [0, 1]))
    assert torch.equal(outputs[0], logits[0]) and not torch.equal(outputs[1], logits[1])


def test_test_time_training_is_the_plain_loop(joint: Path, digits: Path) -> None:
    from sslkit.engine.seeds import seed_stage

    classifier, training = build(joint, digits, steps=3)
    outputs = list[torch.Tensor]()
    classifier.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    list(training.predict(CANVASES[:1], [7]))
    other, reference = build(joint, digits)
    task, encoder = reference.task, other.encoder
    seed_stage(0, "adapt", 7)
    for _ in range(3):
        views = task.transform({"canvas": as_float(CANVASES[:1]).expand(3, -1, -1, -1), "aspect": torch.ones(3)})["image"]
        turned = task.head(encoder(views.flatten(0, 1)))
        loss = torch.nn.functional.cross_entropy(turned, torch.arange(4).repeat(3))
        gradients = torch.autograd.grad(loss, [*encoder.parameters(), *task.head.parameters()])
        with torch.no_grad():
            for parameter, gradient in zip([*encoder.parameters(), *task.head.parameters()], gradients, strict=True):
                parameter.sub_(0.05 * gradient)
    assert torch.allclose(other(as_float(CANVASES[:1])), outputs[0], atol=1e-5)


def test_tent_gets_more_certain(joint: Path, digits: Path) -> None:
    classifier, _ = build(joint, digits)
    entropies = list[float]()

    def record(module: Any, inputs: Any, logits: torch.Tensor) -> None:
        entropies.append(float(torch.distributions.Categorical(logits=logits.detach()).entropy().mean()))

    classifier.register_forward_hook(record)
    predict_by_tent(classifier, CANVASES.repeat(6, 1, 1, 1), 12, lr=0.01)  # the same batch six times
    assert entropies == sorted(entropies, reverse=True) and entropies[-1] < entropies[0] - 0.01


def test_the_command_measures_and_draws(joint: Path, digits: Path, sslkit: Run, tmp_path: Path) -> None:
    checkpoint, out = Path(shutil.copy(joint, tmp_path)), tmp_path / "adapted.png"
    words = ["adapt", "--ckpt", checkpoint, "--data", digits, "--corruption", "fog", "--samples", 8, "--copies", 2, "--json"]
    result = sslkit(*words, "--orders", 2, "--out", out).json
    names = [row["model"] for row in result["rows"]]
    batch = "batch" in str(joint)
    assert names == ["no adaptation", *(["batch statistics"] if batch else []), "TENT", "test-time training"]
    assert any("has no BatchNorm" in note for note in result["notes"]) != batch
    for row in result["rows"]:
        assert list(row["by_class"]) == ["clean", "fog"] and row["metrics"][0]["seeds"] == 2
        assert row["metrics"][0]["value"] == pytest.approx(row["by_class"]["fog"])
    assert result["rows"][0]["metrics"][0]["deviation"] == 0
    with Image.open(out) as picture:
        assert picture.size == (120 + 110 * len(names), 18 * 3)
    standard = sslkit(*words, "--protocol", "adapt/standard-v1", "--steps", 2).json
    assert [row["model"] for row in standard["rows"]] == ["no adaptation", "test-time training"]
    assert sslkit(*words, "--orders", 2).json["rows"] == result["rows"]


def test_what_is_refused(joint: Path, trained: Path, digits: Path, sslkit: Run, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copy(joint, tmp_path))
    words = ["adapt", "--data", digits, "--ckpt"]
    ran = sslkit(*words, shutil.copy(trained, tmp_path / "plain.safetensors"))
    assert ran.code == 2 and "has no classifier" in ran.err
    ran = sslkit(*words, checkpoint, "--corruption", "rain")
    assert ran.code == 2 and "rain is no corruption" in ran.err
    ran = sslkit(*words, checkpoint, "--pretext", "jigsaw")
    assert ran.code == 2 and "keeps no jigsaw (it keeps rotation)" in ran.err
    ran = sslkit(*words, checkpoint, "--protocol", "adapt/standard-v1", "--tent-lr", 0.1)
    assert ran.code == 2 and "--tent-lr" in ran.err and "use --protocol adapt/online-v1" in ran.err
    others = tmp_path / "others"
    for name in ("zero", "one"):
        shutil.copytree(digits / "test" / "digit 0", others / name)
    ran = sslkit("adapt", "--ckpt", checkpoint, "--data", others)
    assert ran.code == 2 and "classes that the classifier does not know: one, zero" in ran.err
    assert not (tmp_path / "results.jsonl").exists()


def test_a_checkpoint_without_parts_says_what_is_missing(digits: Path, quick: list[str], sslkit: Run, tmp_path: Path) -> None:
    out = tmp_path / "joint"
    assert sslkit("pretrain", "rotation+supervised", "--data", digits, *quick, "--steps", 2, "--out", out).code == 0
    result = sslkit("adapt", "--ckpt", out / "model.safetensors", "--samples", 4, "--corruption", "jpeg", "--json").json
    assert [row["model"] for row in result["rows"]] == ["no adaptation", "batch statistics", "TENT"]
    assert any("keeps no pretext task (pretrain TASK+supervised with --keep-parts head)" in note for note in result["notes"])
    ran = sslkit("adapt", "--ckpt", out / "model.safetensors", "--protocol", "adapt/standard-v1")
    assert ran.code == 2 and "keeps no pretext task" in ran.err


def test_parts_are_named_by_the_task(digits: Path, quick: list[str], sslkit: Run, tmp_path: Path) -> None:
    words = ["--data", digits, *quick, "--steps", 2]
    ran = sslkit("pretrain", "rotation", *words, "--keep-parts", "heads", "--out", tmp_path / "a")
    assert ran.code == 2 and "rotation has no part heads (did you mean head?)" in ran.err
    assert not (tmp_path / "a").exists()
    assert sslkit("pretrain", "simclr+supervised", *words, "--keep-parts", "head", "--out", tmp_path / "b").code == 0
    ran = sslkit("adapt", "--ckpt", tmp_path / "b" / "model.safetensors")
    assert ran.code == 2 and "simclr compares images with each other" in ran.err
