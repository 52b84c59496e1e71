"""`sslkit verify`: equal error rates against loops, pairs of groups, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslkit.evaluation.verify import Trials

Run = Callable[..., Any]


def test_equal_error_rate_against_a_loop_over_thresholds() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(3, size=24)
    features = torch.from_numpy(random.normal(size=(24, 5)) + 1.2 * np.eye(3, 5)[labels])
    unit = features / features.norm(dim=1, keepdim=True)
    pairs = [(float(unit[i] @ unit[j]), bool(labels[i] == labels[j])) for i in range(24) for j in range(i + 1, 24)]
    same, different = ([score for score, is_same in pairs if is_same is kind] for kind in (True, False))
    points = [(0.0, 1.0)]
    for threshold in sorted(score for score, _ in pairs):
        rejected, accepted = sum(score <= threshold for score in same), sum(score > threshold for score in different)
        points.append((rejected / len(same), accepted / len(different)))
    after = next(number for number, (rejected, accepted) in enumerate(points) if rejected >= accepted)
    (r0, a0), (r1, a1) = points[after - 1], points[after]
    share = (a0 - r0) / (a0 - r0 + r1 - a1)
    expected = r0 + share * (r1 - r0)
    trials = Trials.of(labels, None)
    assert len(trials.same) == 24 * 23 / 2
    ordered = trials.sorted_by(features)
    assert ordered.equal_error_rate() == pytest.approx(expected, abs=1e-9)
    assert ordered.equal_error_rate(np.ones(24, dtype=np.int64)) == ordered.equal_error_rate()
    doubled = Trials.of(np.tile(labels, 2), np.tile(np.arange(24), 2)).sorted_by(features.repeat(2, 1))
    assert doubled.equal_error_rate() == pytest.approx(ordered.equal_error_rate(), abs=0.01)


def test_pairs_that_are_equally_similar_are_told_by_none() -> None:
    labels = np.repeat(np.arange(10), 20)  # as class folders are listed
    assert Trials.of(labels, None).sorted_by(torch.ones(200, 4)).equal_error_rate() == pytest.approx(0.5)
    unrelated = torch.eye(4)[torch.arange(200) % 4]
    assert Trials.of(labels, None).sorted_by(unrelated).equal_error_rate() == pytest.approx(0.5, abs=0.03)


def test_known_rates() -> None:
    labels = np.array([0, 0, 1, 1])
    apart = Trials.of(labels, None).sorted_by(torch.tensor([[1, 0.1], [1, 0.0], [0.0, 1], [0.1, 1]]))
    assert apart.equal_error_rate() == 0
    torch.manual_seed(0)
    random = Trials.of(np.arange(300) % 5, None).sorted_by(torch.randn(300, 8))
    assert random.equal_error_rate() == pytest.approx(0.5, abs=0.03)
    low, high = np.percentile(random.resample(300), [2.5, 97.5])
    assert low < 0.5 < high and high - low < 0.1


def test_pairs_of_one_group_are_left_out() -> None:
    trials = Trials.of(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]))
    assert list(zip(trials.first, trials.second, strict=True)) == [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert trials.same.tolist() == [False, False, False, False, True]


def test_a_run_is_verified_beside_random_weights_and_pixels(sslkit: Run, trained: Path) -> None:
    result = sslkit("verify", "--ckpt", trained, "--json").json
    assert result["protocol"] == "verify/eer-v1"
    assert [row["model"] for row in result["rows"]] == ["checkpoint", "random weights", "raw pixels, 16 px"]
    for row in result["rows"]:
        (metric,) = row["metrics"]
        assert metric["name"] == "EER" and not metric["higher_is_better"] and metric["n"] == 12 * 11 / 2
        assert 0 <= metric["low"] <= metric["value"] <= metric["high"] <= 1
    assert result["rows"][0]["metrics"][0]["value"] < 0.3
    assert "of one label" in result["notes"][0]
    fewer = sslkit("verify", "--ckpt", trained, "--samples", 9, "--layer", "all", "--no-baselines", "--json").json
    assert fewer["protocol"] is None and [row["layer"] for row in fewer["rows"]] == ["1", "2", "3", "4"]


def test_what_cannot_be_verified_is_one_line(sslkit: Run, trained: Path, tmp_path: Path) -> None:
    images = sorted((trained.parent.parent).rglob("*.png"))[:4]
    table = tmp_path / "different.csv"
    table.write_text("path,who\n" + "".join(f"{image},{number}\n" for number, image in enumerate(images)))
    ran = sslkit("verify", "--ckpt", trained, "--data", table, "--label", "who")
    assert ran.code == 2 and "--label: none of the 6 pairs in" in ran.err
    ran = sslkit("verify", "--ckpt", trained, "--layer", "auto")
    assert ran.code == 2 and "--layer" in ran.err
