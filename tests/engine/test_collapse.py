"""Health: the right numbers, alarms by name, nothing changed by looking."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslkit.engine.collapse import alignment, deviation, entropy_of_largest, rankme, uniformity
from sslkit.engine.pretrain import pretrain
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec
from sslkit.specs.train import PretrainSpec

Run = Callable[..., Any]


def test_rankme_counts_directions() -> None:
    basis = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(0)))[0]
    assert rankme(basis[:, :7] @ basis[:7]) == pytest.approx(7, abs=1e-3)
    assert rankme(torch.ones(30, 8)) == pytest.approx(1)
    assert rankme(torch.zeros(30, 8)) == pytest.approx(1)
    assert np.isnan(rankme(torch.full((3, 2), torch.inf)))


def test_deviation_is_one_for_spread_and_zero_for_equal_features() -> None:
    spread = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    assert deviation(spread) == pytest.approx(1, abs=0.02)
    assert deviation(torch.ones(50, 64)) == pytest.approx(0, abs=1e-6)


def test_alignment_and_uniformity_against_naive_loops() -> None:
    first, second = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    unit_first, unit_second = (x / x.norm(dim=1, keepdim=True) for x in (first, second))
    assert alignment(first, second) == pytest.approx(
        float(sum((unit_first[i] - unit_second[i]).square().sum() for i in range(9)) / 9)
    )
    pairs = [torch.exp(-2 * (unit_first[i] - unit_first[j]).square().sum()) for i in range(9) for j in range(i)]
    assert uniformity(first) == pytest.approx(float(torch.log(sum(pairs) / len(pairs))), rel=1e-5)


def test_entropy_of_largest() -> None:
    assert entropy_of_largest(torch.eye(4).repeat(3, 1)) == pytest.approx(np.log(4))
    assert entropy_of_largest(torch.tensor([[1.0, 0.0]] * 5)) == 0


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def small(digits: Path, out: Path, **changes: Any) -> PretrainSpec:
    settings = {"task": "rotation", "encoder": "resnet_micro", "encoder_option": {"width": "8"}, "size": 16, "batch_size": 16}
    return PretrainSpec(data=str(digits), out=str(out), workers=0, **{**settings, "steps": 6, "health_every": 2, **changes})


def test_a_run_logs_its_health_and_looking_changes_nothing(digits: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    watched = pretrain(small(digits, tmp_path / "watched", online_knn=True))
    measurements = [line for line in lines(tmp_path / "watched") if "rankme" in line]
    assert [line["step"] for line in measurements] == [1, 3, 5]
    assert {"feature_deviation", "feature_alignment", "uniformity", "online_knn", "gradient_norm"} <= measurements[0].keys()
    assert "teacher_entropy" not in measurements[0]
    # The same as `votes` of the final features, by hand.
    assert measurements[-1]["online_knn"] == by_hand(watched.checkpoint, digits)
    alone = pretrain(small(digits, tmp_path / "alone", health_every=0))
    assert all("rankme" not in line for line in lines(tmp_path / "alone"))
    watched_weights, alone_weights = load_file(watched.checkpoint), load_file(alone.checkpoint)
    assert all(torch.equal(watched_weights[name], alone_weights[name]) for name in watched_weights)


def by_hand(checkpoint: str, digits: Path) -> float:
    from sslkit import load
    from sslkit.evaluation.knn import votes

    index = ImageSource.read_index(str(digits / "train"), DataSpec())
    assert index.labels is not None
    from PIL import Image

    images = np.stack([np.array(Image.open(index.root / path).convert("RGB")) for path in index.paths])
    with torch.no_grad():
        features = load(checkpoint)(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    labels, is_query = torch.from_numpy(index.labels), torch.arange(48) % 4 == 0
    predictions = votes(features[~is_query], labels[~is_query], features[is_query], 20, 0.07, 3).argmax(dim=1)
    return (predictions == labels[is_query]).double().mean().item()


def test_a_teacher_is_looked_at(digits: Path, tmp_path: Path) -> None:
    pretrain(small(digits, tmp_path / "run", task="moco", options={"queue": 32}))
    assert all("teacher_entropy" in line for line in lines(tmp_path / "run") if "rankme" in line)


@pytest.mark.parametrize("task", ["dino", "msn", "byol"])
def test_the_encoder_that_is_exported_is_looked_at(task: str, digits: Path, tmp_path: Path) -> None:
    from sslkit.contract.encoder import Encoder
    from sslkit.engine.precision import Machine

    measured: list[Encoder] = []

    def classify(encoder: Encoder, machine: Machine) -> float:
        assert not encoder.training
        measured.append(encoder)
        return 0.5

    health = watched(digits, tmp_path, task=task, encoder="vit_micro", encoder_option={"width": "32", "depth": "1"})
    health.classify = classify
    exported = health.task.exports()["encoder"]
    with torch.no_grad():
        for parameter in exported.parameters():
            parameter.zero_()
    now = health.measure()
    assert measured == [exported] and now["rankme"] < 1.1 < health.start["rankme"]
    assert (exported is health.task.encoder) == (task == "byol")
    assert health.task.encoder.training


@pytest.fixture
def constant(tmp_path: Path) -> Path:
    np.save(tmp_path / "constant.npy", np.full((32, 16, 16, 3), 99, np.uint8))
    return tmp_path / "constant.npy"


def test_constant_images_are_named(constant: Path, tmp_path: Path, sslkit: Run, quick: list[str]) -> None:
    flags = ["pretrain", "simclr", "--data", constant, *quick, "--steps", 10, "--health-every", 2]
    ran = sslkit(*flags, "--out", tmp_path / "warn")
    assert ran.code == 0
    assert "health: features of all images are nearly identical" in ran.err and "since step 2" in ran.err
    (alarm_line,) = [line for line in lines(tmp_path / "warn") if "alarms" in line]
    assert alarm_line["step"] == 5 and "nearly identical" in alarm_line["alarms"][0]
    ran = sslkit(*flags, "--out", tmp_path / "stop", "--on-collapse", "stop")
    assert ran.code == 1 and "stopped after step 6: features of all images are nearly identical" in ran.err
    assert (tmp_path / "stop" / "model.safetensors").exists()
    again = sslkit(*flags, "--out", tmp_path / "stop", "--resume", "--on-collapse", "warn")
    assert again.code == 0 and lines(tmp_path / "stop")[-1]["step"] == 9


def test_a_loss_that_stands_still_is_named(digits: Path, tmp_path: Path, sslkit: Run, quick: list[str]) -> None:
    task = tmp_path / "still.py"
    task.write_text(
        "from sslkit import PretextTask\n"
        "class Still(PretextTask):\n"
        "    'Learn nothing.'\n"
        "    defaults = {'lr': 0.0}\n"
        "    def transform(self, batch):\n"
        "        return {'image': batch['canvas']}\n"
        "    def loss(self, output, batch):\n"
        "        return 3 + 1e-9 * output.sum()\n"
    )
    ran = sslkit("pretrain", task, "--data", digits, *quick, "--steps", 44, "--health-every", 1, "--out", tmp_path / "run")
    assert "health: loss has been flat at 3 for at least 40 steps" in ran.err and "since step 40" in ran.err


def looks(**changes: list[float]) -> list[dict[str, float]]:
    """Return what was measured at three looks, healthy but for the changes."""
    healthy = {"rankme": 30.0, "feature_deviation": 0.5, "teacher_entropy": 1.5, "teacher_deviation": 0.5}
    return [{**healthy, **{name: values[number] for name, values in changes.items()}} for number in range(3)]


@pytest.mark.parametrize(
    ("measurements", "message"),
    [
        (looks(), ""),
        (looks(rankme=[7.0, 7.0, 8.0]), ""),  # a quarter of 30 is 7.5: an accident, and over
        (looks(rankme=[3.0, 2.0, 3.0]), "features span 3 of 64 dimensions (about 30 at the start), since step 20"),
        (looks(feature_deviation=[0.01] * 3), "features of all images are nearly identical (deviation 0.01), since step 20"),
        (
            looks(teacher_entropy=[0.0] * 3, teacher_deviation=[0.01] * 3),
            "teacher output has collapsed: nearly constant across images",
        ),
        (looks(teacher_entropy=[0.0] * 3), ""),
        (looks(rankme=[float("nan")] * 3), "features of images are not finite numbers"),
    ],
)
def test_alarms(measurements: list[dict[str, float]], message: str, digits: Path, tmp_path: Path) -> None:
    health = watched(digits, tmp_path)
    health.start = looks()[0]
    alarms = [health.judge(measurement, step) for measurement, step in zip(measurements, (20, 40, 60), strict=True)]
    assert alarms[:2] == [[], []] and " ".join(alarms[2]).startswith(message) and bool(alarms[2]) == bool(message)
    assert health.judge(measurements[2], 80) == []  # reported once
    again = watched(digits, tmp_path)
    again.load_state(health.state())
    assert again.start == health.start and again.judge(measurements[2], 100) == []


def watched(digits: Path, tmp_path: Path, **changes: Any) -> Any:
    from sslkit.contract.task import Clock
    from sslkit.encoders.builder import RecipeBuilder
    from sslkit.engine.collapse import Health
    from sslkit.engine.pretrain import prepare
    from sslkit.engine.stepper import Stepper

    spec = small(digits, tmp_path / "run", **changes)
    training = prepare(spec)
    settings = training.settings
    encoder = training.build_encoder(RecipeBuilder(settings.recipe, settings.data, settings.encodes))
    return Health(Stepper(training.build_task(encoder, settings.data), settings, Clock(steps=6)), spec)


def test_the_start_is_measured_with_statistics_of_its_own(digits: Path, tmp_path: Path) -> None:
    health = watched(digits, tmp_path)
    kept = health.measure()
    assert health.start["rankme"] > 1.2 * kept["rankme"]  # mean 0 and variance 1 are not those of the features
    encoder = health.task.encoder
    assert all(norm.track_running_stats and norm.training for norm in encoder.modules() if hasattr(norm, "running_mean"))
    assert int(encoder.stem_norm.num_batches_tracked) == 0 and health.measure() == kept


def test_a_teacher_of_something_else_is_left_alone(digits: Path, tmp_path: Path, sslkit: Run, quick: list[str]) -> None:
    task = tmp_path / "other.py"
    task.write_text(
        "from torch import nn\n"
        "from sslkit import PretextTask\n"
        "from sslkit.nn import Teacher\n"
        "class Other(PretextTask):\n"
        "    'Have a teacher of the head only.'\n"
        "    def build_head(self):\n"
        "        return nn.Linear(self.encoder.width, 4)\n"
        "    def setup(self):\n"
        "        self.teacher = Teacher(self.head)\n"
        "    def transform(self, batch):\n"
        "        return {'image': batch['canvas']}\n"
        "    def loss(self, output, batch):\n"
        "        return output.square().mean()\n"
    )
    ran = sslkit("pretrain", task, "--data", digits, *quick, "--steps", 4, "--health-every", 2, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err


def test_online_knn_needs_labels(digits: Path, tmp_path: Path, sslkit: Run, quick: list[str]) -> None:
    ran = sslkit(
        "pretrain", "rotation", "--data", digits / "train" / "digit 0", *quick, "--online-knn", "--out", tmp_path / "r"
    )
    assert ran.code == 2 and "--online-knn" in ran.err and "has no labels" in ran.err and not (tmp_path / "r").exists()


def test_text_has_health_too(tmp_path: Path, sslkit: Run) -> None:
    (tmp_path / "book.txt").write_text("the cat sat on the mat and the dog sat on the log " * 200)
    flags = ["--context", 16, "--batch-size", 4, "--steps", 4, "--health-every", 2, "--min-count", 1]
    ran = sslkit("pretrain", "skipgram", "--data", tmp_path / "book.txt", *flags, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert any("rankme" in line for line in lines(tmp_path / "run"))
