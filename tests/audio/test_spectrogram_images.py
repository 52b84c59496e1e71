"""Image tasks on spectrograms of recordings: `TASK@spectrogram`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sslkit.audio.spectrogram_images import SpectrogramSource, draw_canvases
from sslkit.contract.errors import SslkitError
from sslkit.contract.source import ReadSeed
from sslkit.specs.data import DataSpec
from sslkit.tasks.load import load_task

Run = Callable[..., Any]


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    """Write recordings of a low or a high tone, in folders of these names."""
    random, time = np.random.default_rng(0), np.arange(8000) / 8000
    for number in range(24):
        kind, hertz = ("low", 300) if number % 2 else ("high", 2500)
        (tmp_path / "tones" / kind).mkdir(parents=True, exist_ok=True)
        sound = 0.3 * np.sin(2 * np.pi * hertz * time) + random.normal(scale=0.02, size=8000)
        soundfile.write(tmp_path / "tones" / kind / f"{number}.wav", sound, 8000)
    return tmp_path / "tones"


def test_canvases_have_time_from_left_to_right_and_high_bands_on_top(tones: Path) -> None:
    source = SpectrogramSource.open(DataSpec(data=str(tones), size=32, spectrogram_rate=8000))
    assert (source.info.size, source.info.channels, source.samples) == (32, 1, 31 * 80)
    arrays, broken = source.read(np.arange(24), ReadSeed(0, 0))
    assert not broken and arrays["audio"].shape == (24, 1, 31 * 80)
    batch = source.prepare({name: torch.from_numpy(array) for name, array in arrays.items()})
    canvas = batch["canvas"]
    assert canvas.shape == (24, 1, 32, 32) and canvas.min() >= 0 and canvas.max() <= 1 and (batch["aspect"] == 1).all()
    row = canvas.mean(dim=(1, 3)).argmax(dim=1)
    high = torch.tensor(["high" in source.name(number) for number in range(24)])
    assert row[high].max() < 12 < 20 < row[~high].min()
    late = torch.zeros(1, 31 * 80)
    late[:, 1600:] = 0.1 * torch.randn(880)
    assert draw_canvases(late, 8000, 32)[0, 0, :, :18].max() < 0.1 < draw_canvases(late, 8000, 32)[0, 0, :, 24:].mean()
    evaluated = source.prepare({name: torch.from_numpy(array) for name, array in source.read(np.arange(3))[0].items()})
    assert source.view(evaluated, "image").shape == (3, 8, 1, 32, 32)


@pytest.mark.parametrize("task", ["simmim", "mae", "simclr"])
def test_tasks_of_images_run_on_recordings(task: str, tones: Path, sslkit: Run) -> None:
    out = tones.parent / "run"
    how = ["--size", 32, "--spectrogram-rate", 8000, "--steps", 2, "--batch-size", 8, "--workers", 0, "--out", out]
    ran = sslkit("pretrain", f"{task}@spectrogram", "--data", tones, *how)
    assert ran.code == 0, ran.err
    checkpoint = out / "model.safetensors"
    result = sslkit("knn", "--ckpt", checkpoint, "--data", tones, "--k", 3, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["rows"][0]["metrics"][0]["value"] > 0.9  # two tones: any features do
    assert sslkit("preview", f"{task}@spectrogram", "--ckpt", checkpoint, "--out", out / "pictures.png").code == 0
    assert sslkit("pretrain", "--resume", "--out", out, f"{task}@spectrogram").code == 0


def test_other_modalities_stand_for_nothing(tones: Path, sslkit: Run) -> None:
    for name, message in {
        "simmim@audio": "audio does not stand for image data .simmim runs on image data, and as simmim@spectrogram",
        "hubert@spectrogram": "hubert@spectrogram: spectrogram does not stand for audio data .hubert runs on audio data",
    }.items():
        with pytest.raises(SslkitError, match=message):
            load_task(name)
    task = load_task("simmim@spectrogram")
    assert (task.modality, task.encodes, load_task("simmim").modality) == ("spectrogram", "image", "image")
    for flags, message in (
        (["--channels", 3], "--channels: spectrograms are made of sound"),
        (["--cache", "on"], "--cache: audio is not cached"),
        (["--seconds", 1], "--seconds: applies to audio data only"),
    ):
        refused = sslkit("pretrain", "mae@spectrogram", "--data", tones, *flags, "--out", tones.parent / "x")
        assert refused.code == 2 and message in refused.err
