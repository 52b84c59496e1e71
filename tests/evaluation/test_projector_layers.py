"""Fine-tuning from the middle of the projector."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit.engine.checkpoint import load, read_model
from sslkit.nn import mlp

Run = Callable[..., Any]
SMALL = ["--workers", 0, "--batch-size", 16, "--size", 16]


@pytest.fixture
def pretrained(sslkit: Run, digits: Path, tmp_path: Path) -> Path:
    flags = ["--encoder-option", "width=8", "--projector", "deep", "--hidden", 12, "--width", 5, "--steps", 4]
    assert sslkit("pretrain", "simclr", "--data", digits, *SMALL, *flags, "--out", tmp_path / "simclr").code == 0
    return tmp_path / "simclr" / "model.safetensors"


@pytest.mark.parametrize("layers", [1, 2])
def test_the_encoder_continues_into_the_projector(pretrained: Path, layers: int) -> None:
    checkpoint = read_model(pretrained)
    encoder, images = checkpoint.build_encoder(), torch.rand(4, 3, 16, 16)
    projector = mlp([encoder.width, 12, 12, 5])
    projector.load_state_dict(checkpoint.part("projector"))
    expected = projector.eval()[: 3 * layers](encoder(images))
    projected = checkpoint.with_projector(layers).build_encoder()
    assert torch.equal(projected(images), expected) and projected.width == 12
    assert len(projected.stages()) == len(encoder.stages())
    staged = {id(parameter) for stage in projected.stages() for parameter in stage}
    assert staged == {id(parameter) for parameter in projected.parameters()}


def test_fine_tuned_and_used_like_any_other(sslkit: Run, pretrained: Path, digits: Path, tmp_path: Path) -> None:
    flags = ["--data", digits, *SMALL[:4], "--steps", 4, "--projector-layers", 1, "--out", tmp_path / "tuned"]
    result = sslkit("finetune", "--ckpt", pretrained, *flags, "--scratch", "--json").json
    assert result["settings"]["projector_layers"] == 1 and result["protocol"] is None
    tuned = tmp_path / "tuned" / "model.safetensors"
    assert load(tuned)(torch.rand(2, 3, 16, 16)).shape == (2, 12)
    assert sslkit("predict", "--ckpt", tuned, "--data", digits / "test", "--out", tmp_path / "classes.csv").code == 0
    assert sslkit("knn", "--ckpt", tuned, "--data", digits, "--no-baselines").code == 0
    assert sslkit("finetune", "--resume", "--extend-to", 3, "--out", tmp_path / "tuned").code == 0


def test_of_a_joint_run(sslkit: Run, digits: Path, tmp_path: Path) -> None:
    flags = ["--encoder-option", "width=8", "--simclr.hidden", 12, "--simclr.width", 5, "--steps", 4]
    assert sslkit("pretrain", "simclr+rotation", "--data", digits, *SMALL, *flags, "--out", tmp_path / "joint").code == 0
    checkpoint = read_model(tmp_path / "joint" / "model.safetensors")
    assert checkpoint.with_projector(1).build_encoder().width == 12


def test_what_is_refused_in_one_line(sslkit: Run, pretrained: Path, trained: Path, digits: Path, tmp_path: Path) -> None:
    flags = ["--data", digits, *SMALL[:4], "--steps", 1, "--out", tmp_path / "tuned", "--projector-layers"]
    ran = sslkit("finetune", "--ckpt", pretrained, *flags, 3)
    assert ran.code == 2 and "--projector-layers: the projector has 3 layers" in ran.err and "use 2 at most" in ran.err
    ran = sslkit("finetune", "--ckpt", trained, *flags, 1)
    assert ran.code == 2 and "keeps no projector: it was trained by rotation" in ran.err
    ran = sslkit("finetune", "--encoder", "resnet_micro", *flags, 1)
    assert ran.code == 2 and "--projector-layers: there is no --ckpt" in ran.err
    assert not (tmp_path / "tuned").exists()
