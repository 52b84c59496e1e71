"""`sslkit plan` measures a run; it leaves no file behind and refuses what pretraining would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslkit.engine import plan as module
from sslkit.engine.plan import plan
from sslkit.specs.train import PretrainSpec


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEPS_SECONDS", 0.5)
    monkeypatch.setattr(module, "_READ_SECONDS", 0.5)


SMALL: dict[str, Any] = {"encoder_option": {"width": "8"}, "batch_size": 16, "size": 16, "workers": 0}


def test_the_estimate_adds_up(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short, long = (plan(PretrainSpec(task="simclr", data=str(digits), epochs=epochs, **SMALL)) for epochs in (2, 200))
    assert (short.steps, long.steps) == (6, 600)  # 48 images
    assert 10 * short.seconds < long.seconds < 1000 * short.seconds
    assert 0 < short.first_epoch_seconds <= short.seconds + 1
    assert short.cache_bytes == 48 * 16 * 16 * 3 and 10_000 < short.run_bytes < 10**7
    assert short.memory is not None and short.memory_limit is not None
    assert 10**8 < short.memory < short.memory_limit
    assert not list(tmp_path.iterdir())


def test_minutes_become_steps(digits: Path) -> None:
    result = plan(PretrainSpec(task="rotation", data=str(digits), minutes=2, **SMALL))
    assert result.steps > 100 and result.seconds == pytest.approx(120, rel=0.5)


def test_the_command(digits: Path, tmp_path: Path, sslkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", digits, "--encoder-option", "width=8", "--batch-size", 16, "--workers", 0, "--steps", 30]
    ran = sslkit("plan", "rotation", *arguments)
    assert ran.code == 0 and "samples/s" in ran.out and "for 30 steps" in ran.out and "largest batch" in ran.out
    assert sslkit("plan", "rotation", *arguments, "--json").json["steps"] == 30
    for words, message in [
        ([], "which task?"),
        (["rotation"], "--data: missing"),
        (["rotation", "--data", digits, "--batch-size", 1000], "has only 48 images, fewer than a batch of 1000"),
        (["mae", "--data", digits, "--encoder", "resnet_micro"], "--encoder: mae requires tokens"),
    ]:
        ran = sslkit("plan", *words)
        assert ran.code == 2 and message in ran.err
