"""`--size auto` on a CPU."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslkit.engine import size_fit
from sslkit.engine.size_fit import affordable_size


def test_a_run_that_is_too_short_says_so(sslkit: Callable[..., Any], digits: Path, quick: list[str], tmp_path: Path) -> None:
    ran = sslkit("pretrain", "rotation", "--data", digits, *quick, "--steps", 3, "--out", tmp_path / "short")
    assert "3 steps are too few to learn anything; --steps 300" in ran.err
    ran = sslkit("pretrain", "rotation", "--data", digits, *quick, "--steps", 22, "--out", tmp_path / "measured")
    assert re.search(r"22 steps are too few to learn anything; 300 take about [\d smin]+ \(--steps 300\)", ran.err)


SECONDS = {32: 0.5, 64: 2.0, 128: 8.0, 224: 24.5}


@pytest.mark.parametrize(
    ("minutes", "size", "reason"),
    [
        (1, 32, "about 120 steps in 1 min on this CPU; 30 at 64 px, 2 at 224 px"),
        (3, 32, "about 360 steps in 3 min on this CPU; 90 at 64 px, 7 at 224 px"),
        (11, 64, "about 330 steps in 11 min on this CPU; 82 at 128 px, 26 at 224 px"),
        (200, 224, "about 489 steps in 3 h 20 min on this CPU"),
    ],
)
def test_enough_steps_in_the_minutes(minutes: float, size: int, reason: str) -> None:
    assert affordable_size(SECONDS, None, minutes) == (size, reason)


@pytest.mark.parametrize(
    ("steps", "size", "reason"),
    [
        (100_000, 32, "about 13 h 53 min on this CPU; 55 h 33 min at 64 px, 28 days at 224 px"),
        (400, 128, "about 53 min 20 s on this CPU; 2 h 43 min at 224 px"),
        (100, 224, "about 40 min 50 s on this CPU"),
    ],
)
def test_the_steps_within_an_hour(steps: int, size: int, reason: str) -> None:
    assert affordable_size(SECONDS, steps, None) == (size, reason)


def test_photographs_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    """Where steps take four times as long at twice the size, and an hour is short."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)).save(photographs / f"{number}.png")
    measured = iter([0.1, 0.225])
    monkeypatch.setattr(size_fit, "measure_step", lambda *arguments: (next(measured), {}))
    monkeypatch.setattr(size_fit, "_HOUR", 1.0)
    out = tmp_path / "run"
    small = ["--encoder-option", "width=8", "--batch-size", 16, "--workers", 0, "--device", "cpu", "--steps", 4]
    ran = sslkit("pretrain", "rotation", "--data", photographs, *small, "--out", out)
    assert ran.code == 0
    assert "measuring what size of images this CPU can train" in ran.err
    assert "size           48: about 1 s on this CPU; 2 s at 64 px, 4 s at 96 px" in ran.err
    assert '"size": 48' in (out / "spec.json").read_text()
