"""counting: the loss against a loop, wholes and quarters, no counts below zero."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sslkit import SslkitError
from sslkit.image.transforms import flip
from tests.canvases import canvases


def test_loss_against_a_loop(build: Callable[..., Any]) -> None:
    task = build("counting", margin=4.0)
    output = torch.rand(5, 5, 7)
    counting = contrast = 0.0
    for sample in range(5):
        quarters = sum(output[sample, 1 + quarter] for quarter in range(4))
        counting += float((output[sample, 0] - quarters).square().sum())
        contrast += max(0.0, 4.0 - float((output[(sample - 1) % 5, 0] - quarters).square().sum()))
    terms = task.loss(output, {})
    assert float(terms["counting"]) == pytest.approx(counting / 5, rel=1e-5)
    assert float(terms["contrast"]) == pytest.approx(contrast / 5, rel=1e-5)
    accuracy = task.metrics(output, {})["accuracy"]
    assert accuracy.shape == (5,)


def test_quarters_make_the_whole(build: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    task = build("counting", gray=0.0)
    smooth = torch.nn.functional.interpolate(torch.rand(6, 3, 4, 4), size=36, mode="bicubic").clamp(0, 1)
    whole, *quarters = task.transform(canvases(smooth))["image"].unbind(1)
    assert whole.shape == (6, 3, 16, 16) and len(quarters) == 4
    together = torch.cat([torch.cat(quarters[:2], dim=3), torch.cat(quarters[2:], dim=3)], dim=2)
    small = torch.nn.functional.interpolate(together, size=16, mode="area")
    assert float((small - whole).abs().mean()) < 0.02


def test_image_and_quarters_are_downscaled_by_independent_filters(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    task = build("counting", gray=0.0, crop_scale=1.0)
    monkeypatch.setattr(task, "crop", lambda batch, size: flip(batch["canvas"]))
    image = torch.rand(1, 3, 48, 48).expand(360, -1, -1, -1)
    views = task.transform(canvases(image))["image"]
    kinds = [len(part.unique(dim=0)) for part in (views[:, 0], views[:, 1])]
    assert kinds == [6, 6]  # three filters, and a flip
    # Neither reveals the other: every filter of the whole goes with every filter of the quarters.
    assert len(views[:, :2].flatten(1).unique(dim=0)) == 18


def test_counts_are_never_below_zero(build: Callable[..., Any]) -> None:
    task = build("counting")
    output = task.predict(task.transform(canvases(torch.rand(3, 3, 32, 32)))).detach()
    assert output.shape == (3, 5, 1000) and float(output.min()) >= 0


def test_tiny_images_are_refused(build: Callable[..., Any]) -> None:
    with pytest.raises(SslkitError, match="--size: images of 12 px give quarters of 6 px"):
        build("counting", size=12)
