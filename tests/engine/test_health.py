"""Health: the right numbers, alarms by name, nothing changed by looking."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslkit import PretrainSpec, pretrain
from sslkit.engine.health import alignment, deviation, entropy_of_largest, rankme, uniformity

Run = Callable[..., Any]


def test_rankme_counts_directions() -> None:
    basis = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(0)))[0]
    assert rankme(basis[:, :7] @ basis[:7]) == pytest.approx(7, abs=1e-3)
    assert rankme(torch.ones(30, 8)) == pytest.approx(1)
    assert rankme(torch.zeros(30, 8)) == pytest.approx(1)


def test_deviation_is_one_for_spread_and_zero_for_equal_features() -> None:
    spread = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    assert deviation(spread) == pytest.approx(1, abs=0.02)
    assert deviation(torch.ones(50, 64)) == pytest.approx(0, abs=1e-6)


def test_alignment_and_uniformity_against_naive_loops() -> None:
    first, second = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    one, other = (x / x.norm(dim=1, keepdim=True) for x in (first, second))
    assert alignment(first, second) == pytest.approx(float(sum((one[i] - other[i]).square().sum() for i in range(9)) / 9))
    pairs = [torch.exp(-2 * (one[i] - one[j]).square().sum()) for i in range(9) for j in range(i)]
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
    looks = [line for line in lines(tmp_path / "watched") if "rankme" in line]
    assert [line["step"] for line in looks] == [1, 3, 5]
    assert {"feature_deviation", "alignment", "uniformity", "online_knn", "gradient_norm"} <= looks[0].keys()
    assert "teacher_entropy" not in looks[0] and 0 <= looks[0]["online_knn"] <= 1
    alone = pretrain(small(digits, tmp_path / "alone", health_every=0))
    assert all("rankme" not in line for line in lines(tmp_path / "alone"))
    one, other = load_file(watched.checkpoint), load_file(alone.checkpoint)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_teacher_is_looked_at(digits: Path, tmp_path: Path) -> None:
    pretrain(small(digits, tmp_path / "run", task="moco", options={"queue": 32}))
    assert all("teacher_entropy" in line for line in lines(tmp_path / "run") if "rankme" in line)


@pytest.fixture
def constant(tmp_path: Path) -> Path:
    np.save(tmp_path / "constant.npy", np.full((32, 16, 16, 3), 99, np.uint8))
    return tmp_path / "constant.npy"


def test_constant_images_are_named(constant: Path, tmp_path: Path, sslkit: Run, quick: list[str]) -> None:
    flags = ["pretrain", "simclr", "--data", constant, *quick, "--steps", 10, "--health-every", 2]
    ran = sslkit(*flags, "--out", tmp_path / "warn")
    assert ran.code == 0
    assert "health: features of all images are nearly alike" in ran.err and "since step 2" in ran.err
    (told,) = [line for line in lines(tmp_path / "warn") if "alarms" in line]
    assert told["step"] == 5 and "nearly alike" in told["alarms"][0]
    ran = sslkit(*flags, "--out", tmp_path / "stop", "--on-collapse", "stop")
    assert ran.code == 1 and "stopped after step 6: features of all images are nearly alike" in ran.err
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
        "        return {'image': batch['image']}\n"
        "    def loss(self, output, batch):\n"
        "        return 3 + 1e-9 * output.sum()\n"
    )
    ran = sslkit("pretrain", task, "--data", digits, *quick, "--steps", 44, "--health-every", 1, "--out", tmp_path / "run")
    assert "health: the loss has stood still at 3 for 40 steps and more" in ran.err and "since step 40" in ran.err


def test_online_knn_needs_labels(digits: Path, tmp_path: Path, sslkit: Run, quick: list[str]) -> None:
    ran = sslkit(
        "pretrain", "rotation", "--data", digits / "train" / "digit 0", *quick, "--online-knn", "--out", tmp_path / "r"
    )
    assert ran.code == 2 and "--online-knn" in ran.err and "has no labels" in ran.err and not (tmp_path / "r").exists()


def test_text_has_health_too(tmp_path: Path, sslkit: Run) -> None:
    (tmp_path / "book.txt").write_text("the cat sat on the mat and the dog sat on the log " * 200)
    flags = ["--size", 16, "--batch-size", 4, "--steps", 4, "--health-every", 2, "--min-count", 1]
    ran = sslkit("pretrain", "skipgram", "--data", tmp_path / "book.txt", *flags, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert any("rankme" in line for line in lines(tmp_path / "run"))
