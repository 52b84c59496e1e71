"""colorization: its loss against a loop, the prior, what is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_run import FakeRun

from sslkit import SslkitError, load
from sslkit.image.transforms import rgb_to_lab
from tests.canvases import canvases


def test_loss_against_a_loop(build: Callable[..., Any]) -> None:
    task = build("colorization").eval()
    task.before_epoch(FakeRun())
    batch = task.transform(canvases(torch.rand(2, 3, 36, 36)))
    output = task.predict(batch).detach()
    assert output.shape == (2, 261, 8, 8) and batch["nearest"].shape == batch["shares"].shape == (2, 8, 8, 5)
    total = 0.0
    for sample in range(2):
        for row in range(8):
            for column in range(8):
                log_probabilities = torch.log_softmax(output[sample, :, row, column], dim=0)
                nearest, shares = batch["nearest"][sample, row, column], batch["shares"][sample, row, column]
                total -= float(task.weights[nearest[0]] * (shares * log_probabilities[nearest]).sum())
    assert float(task.loss(output, batch)) == pytest.approx(total / 128, rel=1e-4)


def test_rare_colors_weigh_more(build: Callable[..., Any]) -> None:
    task, plain = build("colorization"), build("colorization", rebalance=0.0)
    for made in (task, plain):
        made.before_epoch(FakeRun())
    gray = int(task.bins.square().sum(dim=1).argmin())
    edge = int(task.bins.square().sum(dim=1).argmax())  # a color that averaged noise never has
    assert task.weights[edge] > task.weights[gray]
    assert torch.allclose(plain.weights, torch.ones(261))


def test_encoder_sees_lightness_only(build: Callable[..., Any]) -> None:
    task = build("colorization").eval()
    image = torch.rand(2, 3, 32, 32)
    lightness = rgb_to_lab(image)[:, :1] / 100
    assert torch.allclose(task.encoder(image), task.encoder.encoder(lightness), atol=1e-5)


def test_true_colors_come_back(build: Callable[..., Any]) -> None:
    task = build("colorization")
    task.before_epoch(FakeRun())
    smooth = torch.nn.functional.interpolate(torch.rand(4, 3, 2, 2), size=32, mode="bilinear")
    batch = task.transform(canvases(smooth))
    sure = torch.full((4, 261, 8, 8), -20.0).scatter(1, batch["nearest"].permute(0, 3, 1, 2), 0.0)
    sure = sure + torch.zeros_like(sure).scatter(
        1, batch["nearest"].permute(0, 3, 1, 2), batch["shares"].log().permute(0, 3, 1, 2) * 0.38
    )
    metrics = task.metrics(sure, batch)
    assert metrics["accuracy"].tolist() == [1.0] * 4 and float(metrics["ab_error"].max()) < 1
    picture = task.preview(batch | {"original": smooth}, sure)
    assert picture.shape == (4, 3, 3, 32, 32)
    assert float((picture[:, 2] - picture[:, 1]).abs().mean()) < 0.05


def test_gray_images_are_refused_and_lightness_is_kept(
    build: Callable[..., Any], sslkit: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(SslkitError, match="--data: images with 1 channels have no color"):
        build("colorization", channels=1)
    settings = ["--size", 16, "--batch-size", 16, "--steps", 2, "--workers", 0, "--json", "--encoder-option", "width=8"]
    gray = sslkit("pretrain", "colorization", "--data", digits, *settings, "--out", tmp_path / "gray")  # gray, in files of RGB
    assert gray.code == 2 and "--data: none of 48 images has a color" in gray.err
    assert not (tmp_path / "gray" / "model.safetensors").exists()
    np.save(tmp_path / "colors.npy", np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3), dtype=np.uint8))
    ran = sslkit("pretrain", "colorization", "--data", tmp_path / "colors.npy", *settings, "--out", tmp_path / "run")
    encoder = load(str(ran.json["checkpoint"]))
    assert encoder.recipe["select"] == "l" and encoder(torch.rand(2, 3, 16, 16)).shape == (2, 64)
