"""What holds for every installed task: the same seed gives the same weights, and so does a run's own spec.json."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sslkit import registry
from sslkit.registry import load_modality
from sslkit.tasks.load import load_task

TASKS = sorted(entry.name for entry in registry.entries(registry.TASKS))
# The run that a task needs, and the flag that it takes it with.
BUILT_ON = {
    "clusterfit": ("rotation", "--teacher"),
    "distill": ("rotation", "--teacher"),
    "beit": ("vqvae", "--tokenizer"),
    "cae": ("vqvae", "--tokenizer"),
}
NEEDED = {"distill": ["--target", "features"], "supervised": ["--label-pattern", r"(\d)\.png"]}  # by tasks without defaults
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "book.txt"
    file.write_text(" ".join(f"word{number * number % 37}" for number in range(4000)))
    return file


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colors")
    for number in range(48):
        pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_weights(task: str, sslkit: Run, colors: Path, text: Path, tmp_path: Path) -> None:
    modality = load_task(task).modality
    beyond = {"text": text} if modality in ("image", "text") else {modality: load_modality(modality).example_data(tmp_path, 48)}
    data = beyond.get(modality, colors)
    how = ["--data", data, "--batch-size", 16, "--steps", 7, "--workers", 0]
    how += ["--size", 32] if modality == "image" else []

    def run(name: str, *arguments: object) -> dict[str, torch.Tensor]:
        ran = sslkit("pretrain", *arguments, "--out", tmp_path / name)
        assert ran.code == 0, ran.err
        state: dict[str, torch.Tensor] = torch.load(tmp_path / name / "resume.pt", weights_only=True)["task"]
        return {**load_file(tmp_path / name / "model.safetensors"), **state}

    if task in BUILT_ON:
        first, flag = BUILT_ON[task]
        run("before", first, *how)
        how += [flag, tmp_path / "before" / "model.safetensors"]
    how += NEEDED.get(task, [])
    reference = run("reference", task, *how)
    for name, command in {"again": (task, *how), "repeated": (task, "--spec", tmp_path / "reference" / "spec.json")}.items():
        other = run(name, *command)
        assert reference.keys() == other.keys()
        assert [key for key in reference if not torch.equal(reference[key], other[key])] == []


@pytest.mark.slow
@pytest.mark.parametrize("task", ["cola", "order_verification", "clip"])
def test_workers_change_nothing_that_they_draw(task: str, sslkit: Run, tmp_path: Path) -> None:
    data = load_modality(load_task(task).modality).example_data(tmp_path, 48)
    weights = []
    for workers in (0, 4):
        how = ["--data", data, "--batch-size", 16, "--epochs", 2, "--workers", workers, "--out", tmp_path / str(workers)]
        assert sslkit("pretrain", task, *how).code == 0
        weights.append(load_file(tmp_path / str(workers) / "model.safetensors"))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["rotation", "simclr", "mae"])
def test_workers_and_cache_change_nothing(task: str, sslkit: Run, digits: Path, tmp_path: Path) -> None:
    weights = []
    for number, options in enumerate(
        (["--cache", "off"], ["--cache", "off", "--workers", 4], ["--cache", "on", "--workers", 4])
    ):
        out = tmp_path / str(number)
        how = ["--data", digits, "--size", 32, "--batch-size", 16, "--epochs", 3, "--out", out]
        assert sslkit("pretrain", task, *how, "--workers", 0, *options).code == 0
        weights.append(load_file(out / "model.safetensors"))
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())
