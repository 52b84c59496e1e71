"""Recordings: windows that are drawn, resampled, and what is wrong with some."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sslkit.audio.source import AudioSource
from sslkit.contract.errors import SslkitError
from sslkit.contract.source import ReadSeed
from sslkit.data.loader import Loader
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.specs.data import DataSpec
from sslkit.specs.train import TrainSpec

Run = Callable[..., Any]
ROWS = np.arange(2)


def tone(path: Path, seconds: float, rate: int = 8000, hertz: float = 440, channels: int = 1, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * hertz * time)
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate, **options)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    tone(tmp_path / "two" / "a.wav", 2)
    tone(tmp_path / "two" / "b.flac", 2, hertz=660)
    return tmp_path / "two"


def test_windows_are_drawn_from_seed_epoch_and_row_alone(two: Path) -> None:
    audio = AudioSource.open(DataSpec(data=str(two), seconds=0.1))
    assert audio.info.details == {"sample_rate": 8000} and audio.info.size == 100
    first = audio.read(ROWS, ReadSeed(0, 3))[0]["audio"]
    assert first.shape == (2, 2, 800) and not np.array_equal(first[:, 0], first[:, 1])
    assert np.array_equal(audio.read(ROWS, ReadSeed(0, 3))[0]["audio"], first)
    assert np.array_equal(audio.read(ROWS[::-1], ReadSeed(0, 3))[0]["audio"], first[::-1])  # whoever reads it beside what
    for other in (ReadSeed(0, 4), ReadSeed(1, 3)):
        assert not np.array_equal(audio.read(ROWS, other)[0]["audio"], first)
    batches = [raw["audio"] for workers in (0, 2) for raw in Loader(audio, workers, substitute=True)([ROWS], ReadSeed(0, 3))]
    assert all(torch.equal(batch, torch.from_numpy(first)) for batch in batches)


def test_windows_of_an_evaluation_go_from_beginning_to_end(tmp_path: Path) -> None:
    rising = np.linspace(0.1, 0.9, 8000)
    soundfile.write(tmp_path / "ramp.wav", rising, 8000, subtype="FLOAT")
    tone(tmp_path / "other.wav", 1)
    encoder = build_encoder(recipe_for("audio_micro", 100, 1, {"sample_rate": "8000"}))
    spec = DataSpec(data=str(tmp_path))
    index = AudioSource.read_index(str(tmp_path), DataSpec())
    (sound, _) = AudioSource.for_evaluation(index, spec, encoder, 100).read(np.array([1]))
    windows = sound["audio"][0]
    assert windows.shape == (8, 800)
    assert np.allclose(windows[0], rising[:800], atol=1e-6) and np.allclose(windows[-1], rising[-800:], atol=1e-6)


def test_recordings_are_resampled_and_mixed(tmp_path: Path) -> None:
    tone(tmp_path / "high.wav", 1, rate=44100, channels=2)
    tone(tmp_path / "low.wav", 1, rate=8000)
    spec = TrainSpec(data=str(tmp_path), seconds=0.5, sample_rate=16000)
    sound = AudioSource.open(spec).read(ROWS, ReadSeed(0, 0))[0]["audio"]
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(8000)))
    assert (spectrum.argmax(axis=2) == 220).all()  # 440 Hz in half a second at 16 kHz


def test_settings_follow_the_data(two: Path) -> None:
    audio = AudioSource.open(DataSpec(data=str(two)))
    assert audio.resolved["seconds"] == (0.96, "the usual window")
    assert audio.resolved["sample_rate"][0] == 8000 and audio.encoder_options("audio") == {"sample_rate": 8000}
    for file in two.iterdir():
        tone(file, 0.4, rate=44100)
    audio = AudioSource.open(DataSpec(data=str(two), reindex=True))
    assert audio.resolved["seconds"][0] == 0.2 and audio.rate == 16000


def test_what_is_short_is_followed_by_silence(tmp_path: Path) -> None:
    for name in "ab":
        tone(tmp_path / f"{name}.wav", 0.05)
    for draw in (ReadSeed(0, 0), None):
        arrays, _ = AudioSource.open(DataSpec(data=str(tmp_path), seconds=0.1)).read(ROWS, draw)
        assert np.abs(arrays["audio"][..., :400]).max() > 0.4 and not arrays["audio"][..., 400:].any()
        assert arrays["length"].tolist() == [400] * len(ROWS)


def test_the_length_is_that_of_each_recording(tmp_path: Path) -> None:
    for name, seconds in (("a", 0.05), ("b", 1.0), ("c", 0.0625)):
        tone(tmp_path / f"{name}.wav", seconds)
    audio = AudioSource.open(DataSpec(data=str(tmp_path), seconds=0.1, sample_rate=16000))
    arrays, _ = audio.read(np.arange(3), ReadSeed(0, 0))
    assert arrays["length"].tolist() == [800, 1600, 1000]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("short", "0.010 s of sound"),
        ("silent", "silent"),
        ("infinite", "not finite"),
        ("text", "Error"),
        ("cut", "Error|silent|s of sound"),
        ("fast", "500 Hz, expected 1000 to"),
        ("many", "100 channels, expected 64"),
        ("gone", "no such file"),
    ],
)
def test_what_is_broken_has_a_reason(kind: str, reason: str, two: Path) -> None:
    bad = two / "a.wav"
    if kind == "short":
        tone(bad, 0.01)
    elif kind == "silent":
        soundfile.write(bad, np.zeros(8000), 8000)
    elif kind == "infinite":
        soundfile.write(bad, np.full(8000, np.nan, dtype=np.float32), 8000, subtype="FLOAT")
    elif kind == "fast":
        tone(bad, 1, rate=500, hertz=50)
    elif kind == "many":
        tone(bad, 1, channels=100)
    elif kind == "text":
        bad.write_bytes(b"hello")
    elif kind == "cut":
        bad.write_bytes(bad.read_bytes()[:30])
    audio = AudioSource.open(DataSpec(data=str(two), reindex=True))
    if kind == "gone":
        bad.unlink()
    for draw in (None, ReadSeed(0, 0)):
        sound, broken = audio.read(ROWS, draw)
        assert list(broken) == [0] and any(part in broken[0] for part in reason.split("|"))
        assert not sound["audio"][0].any() and sound["audio"][1].any()


def test_a_recording_that_is_silent_in_places_is_heard_elsewhere(tmp_path: Path) -> None:
    for name in "ab":
        wave = np.zeros(16000)
        wave[4000:12000] = 0.3
        soundfile.write(tmp_path / f"{name}.wav", wave, 8000)
    audio = AudioSource.open(DataSpec(data=str(tmp_path), seconds=0.1))
    for epoch in range(20):
        sound, broken = audio.read(ROWS, ReadSeed(0, epoch))
        assert not broken and (np.abs(sound["audio"]).max(axis=2) > 0.2).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{empty}"], "no recording in"),
        (["--data", "{images}"], "no recording in"),
        (["--data", "{junk}"], "is a readable recording"),
        (["--data", "{two}", "--encoder-option", "sample_rate=8000"], "use --sample-rate"),
        (["--data", "{two}", "--sample-rate", "fast"], "--sample-rate: should be a whole number, 1,000 to 192,000, or auto"),
        (["--data", "{two}", "--size", "64"], "--size: applies to image data only, and this is audio data"),
        (
            ["--data", "{two}", "--encoder", "resnet_micro"],
            "resnet_micro is an encoder of image data",
        ),
        (["--data", "{two}", "--cache", "on"], "audio is not cached"),
        (
            ["--data", "{two}", "--seconds", "0.008"],
            "--seconds: should be a number, 0.025 to 60, auto or recording (got 0.008)",
        ),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, sslkit: Run, two: Path, digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.wav").write_bytes(b"no sound")
    places = {"empty": tmp_path / "empty", "junk": tmp_path / "junk", "two": two, "images": digits}
    ran = sslkit(
        "pretrain", "cola", *(argument.format(**places) for argument in arguments), "--out", tmp_path / "run", "--batch-size", 2
    )
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert ran.code == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_named(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(SslkitError, match=r"sslkit\[audio\]"):
        AudioSource.open(DataSpec(data=str(two)))


def test_from_recordings_to_numbers(sslkit: Run, tmp_path: Path) -> None:
    """Two kinds of tones: pretrain, k-NN and probe by folder and by a column, features, a preview, a report."""
    for number in range(24):
        kind = ("low", "high")[number % 2]
        for part, keep in (("train", number < 16), ("test", number >= 16)):
            if keep:
                tone(tmp_path / "data" / part / kind / f"{number}.wav", 0.5, hertz=300 * (1 + 2 * (number % 2)) + 5 * number)
    data, run = tmp_path / "data", tmp_path / "run"
    options = ["--seconds", 0.1, "--batch-size", 8, "--steps", 3, "--encoder-option", "width=8"]
    assert sslkit("pretrain", "cola", "--data", data, "--out", run, *options).code == 0
    checkpoint = run / "model.safetensors"
    for command in ("knn", "probe", "retrieval"):
        extra = ["--k", 3] if command == "knn" else []
        rows = sslkit(command, "--ckpt", checkpoint, *extra, "--json").json["rows"]
        assert [row["model"] for row in rows] == ["checkpoint", "random weights", "MFCC, mean and deviation"]
        assert rows[0]["metrics"][0]["n"] == 8
    assert rows[2]["metrics"][0]["value"] > 0.95  # two tones are far apart
    again = sslkit("pretrain", "cola", "--data", data, "--out", run, *options, "--resume")
    assert again.code == 0, again.err  # the same command: the sample rate that was found is no other value
    summary = sslkit("embed", "--ckpt", checkpoint, "--out", tmp_path / "features.npz", "--json").json
    assert summary["samples"] == 16 and summary["labels"]
    preview = sslkit("preview", "cola", "--ckpt", checkpoint, "--out", tmp_path / "p.png", "--json").json
    assert set(preview["metrics"]) == {"accuracy", "information_bound_nats"} and (tmp_path / "p.png").exists()
    assert sorted(path.name for path in (run / "previews").iterdir())
    assert sslkit("report", run, "--out", tmp_path / "report.html").code == 0
    assert sslkit("predict", "--ckpt", checkpoint, "--data", data).code == 2
    tuned = tmp_path / "tuned"
    flags = ["--ckpt", checkpoint, "--data", data, "--epochs", 3, "--batch-size", 4, "--out", tuned]
    result = sslkit("finetune", *flags, "--json").json
    assert result["rows"][0]["model"] == "fine-tuned" and result["rows"][0]["metrics"][0]["n"] == 8
    predicted = tmp_path / "predicted.csv"
    ran = sslkit("predict", "--ckpt", tuned / "model.safetensors", "--data", data / "test", "--out", predicted)
    assert ran.code == 0 and len(predicted.read_text().splitlines()) == 9, ran.err
    refused = sslkit("finetune", *flags[:-1], tmp_path / "no", "--mixup", 0.2)
    assert refused.code == 2 and "--mixup: it is for images, and this is audio data" in refused.err
    shutil.rmtree(data / "test")
    assert sslkit("knn", "--ckpt", checkpoint, "--data", data / "train", "--k", 3).code == 0
