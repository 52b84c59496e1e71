"""exemplar: which images are classes, which are sampled, and which count in the loss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_run import FakeRun

from sslkit import SslkitError
from tests.canvases import canvases


def test_exemplars_are_classes_and_the_only_images_sampled(build: Callable[..., Any]) -> None:
    task, run = build("exemplar", samples=50, exemplars=12), FakeRun()
    task.before_epoch(run)
    assert sorted(task.label[task.label >= 0].tolist()) == list(range(12))
    assert torch.equal(run.balanced, task.label)
    batch = task.transform(canvases(torch.rand(50, 3, 36, 36), index=torch.arange(50)))
    assert torch.equal(batch["label"], task.label) and batch["image"].shape == (50, 3, 32, 32)
    task.clock.epoch, before = 1, task.label.clone()
    task.before_epoch(run)
    assert torch.equal(task.label, before)


def test_substitutes_of_unreadable_images_are_ignored(build: Callable[..., Any]) -> None:
    task = build("exemplar", exemplars=5)
    output, label = torch.randn(4, 5), torch.tensor([3, -1, 0, -1])
    batch = {"label": label}
    expected = -sum(float(torch.log_softmax(output[row], 0)[label[row]]) for row in (0, 2))
    assert float(task.loss(output, batch)["class"]) == pytest.approx(expected, rel=1e-5)
    assert int(task.counts(batch)["class"]) == 2


def test_too_many_are_refused(build: Callable[..., Any]) -> None:
    with pytest.raises(SslkitError, match="--exemplars: 65 exceeds the 64 training images"):
        build("exemplar", exemplars=65)
    assert build("exemplar").count == 64  # auto: all of few


def test_only_exemplars_are_loaded(sslkit: Callable[..., Any], digits: Path, tmp_path: Path, quick: list[str]) -> None:
    run = ["exemplar", "--data", digits, "--exemplars", 20, "--steps", 6, "--out", tmp_path / "run", *quick]
    assert sslkit("pretrain", *run).code == 0
    state = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)
    weights, label = state["weights"], state["task"]["label"]
    assert torch.equal(weights > 0, label >= 0) and int((label >= 0).sum()) == 20
