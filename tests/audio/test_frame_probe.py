"""`sslkit frames`: labels of frames from frozen features."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sslkit.audio.alignments import read_alignments
from sslkit.audio.frame_features import frame_reader, mfcc_reader, read_frames
from sslkit.audio.source import AudioSource
from sslkit.contract.errors import SslkitError
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.specs.data import DataSpec

Run = Callable[..., Any]
PITCH = {"low": 300.0, "high": 1500.0, "noise": 0.0}


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Write recordings of three kinds of sound in turn by two voices, and when each is heard."""
    random, place = np.random.default_rng(0), tmp_path / "recordings"
    place.mkdir()
    for number in range(20):
        parts, lines, end = [], ["start,end,label"], 0.0
        for _ in range(6):
            label = str(random.choice(list(PITCH)))
            seconds = float(random.uniform(0.1, 0.25))
            time = np.arange(int(8000 * seconds)) / 8000
            sound = 0.3 * np.sin(2 * np.pi * PITCH[label] * time) if PITCH[label] else random.normal(scale=0.3, size=len(time))
            parts.append(sound + random.normal(scale=0.01, size=len(time)))
            lines.append(f"{end},{end + len(time) / 8000},{label}")
            end += len(time) / 8000
        name = f"{'anna' if number % 2 else 'bert'}_{number:02}"
        soundfile.write(place / f"{name}.wav", np.concatenate(parts), 8000)
        (place / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return place


@pytest.fixture
def run(recordings: Path, sslkit: Run) -> Path:
    out = recordings.parent / "run"
    options = ["width=32", "depth=2", "channels=16"]
    words = [word for option in options for word in ("--encoder-option", option)]
    ran = sslkit("pretrain", "hubert", "--data", recordings, "--steps", 2, "--batch-size", 4, *words, "--out", out)
    assert ran.code == 0, ran.err
    return out / "model.safetensors"


def test_frames_are_told_apart(recordings: Path, run: Path, sslkit: Run) -> None:
    ran = sslkit("frames", "--ckpt", run, "--data", recordings, "--alignments", "{stem}.csv", "--json")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["protocol"] == "frames/logreg-v1" and "a fifth of the recordings" in ran.err
    accuracy = {row["model"]: row["metrics"][0] for row in result["rows"]}
    assert list(accuracy) == ["checkpoint", "random weights", "MFCC", "most frequent label"]
    assert accuracy["MFCC"]["value"] > 0.8 > 0.6 > accuracy["most frequent label"]["value"] > 0.2
    assert len({metric["n"] for metric in accuracy.values()}) == 1  # the same frames for all
    assert accuracy["checkpoint"]["value"] > accuracy["most frequent label"]["value"]
    assert set(result["rows"][0]["by_class"]) == set(PITCH)
    assert "frames, one every 20 ms, of 16 recordings; 3 labels" in " ".join(result["notes"])


def test_groups_are_held_out_whole_and_speakers_noticed(recordings: Path, run: Path, sslkit: Run) -> None:
    flags = ["--ckpt", run, "--data", recordings, "--alignments", "{stem}.csv", "--no-baselines"]
    noticed = sslkit("frames", *flags)
    assert noticed.code == 0 and "file names of training and test share anna, bert: if these are speakers" in noticed.err
    grouped = sslkit("frames", *flags, "--group-pattern", "_(..)")
    assert grouped.code == 0 and "test part: a fifth of the groups" in grouped.err
    few = sslkit("frames", *flags, "--group-pattern", "(anna|bert)")
    assert few.code == 2 and "has 2 groups with labels (at least three are needed" in few.err
    mixed = sslkit("frames", *flags, "--layer", "mix")
    assert mixed.code == 0, mixed.err
    every = sslkit("frames", *flags[:-1], "--layer", "all", "--json")
    layers = {(row["model"], row["layer"]) for row in json.loads(every.out)["rows"]}
    assert {("checkpoint", "1"), ("checkpoint", "3"), ("random weights", "3"), ("MFCC", None)} <= layers


def test_frames_to_fit_on_are_limited_as_whole_recordings(recordings: Path, run: Path, sslkit: Run) -> None:
    flags = ["--ckpt", run, "--data", recordings, "--alignments", "{stem}.csv", "--no-baselines", "--json"]
    limited = sslkit("frames", *flags, "--max-frames", 10)
    assert limited.code == 0, limited.err
    result = json.loads(limited.out)
    assert result["protocol"] is None and "of 2 recordings; 3 labels" in result["notes"][0]


def test_what_was_part_of_pretraining_is_said(recordings: Path, run: Path, sslkit: Run) -> None:
    flags = ["--ckpt", run, "--data", recordings, "--alignments", "{stem}.csv", "--test", recordings, "--no-baselines"]
    printed = sslkit("frames", *flags)
    assert "test part: " in printed.err and "; seen in pretraining" in printed.err
    assert f"The test data of {recordings} was part of pretraining." in printed.out
    assert f"sslkit frames --ckpt {run} --data {recordings}" in printed.out
    assert "--alignments {stem}.csv" in printed.out.replace("'", "")
    assert json.loads(sslkit("frames", *flags, "--json").out)["data"]["tests"][0]["seen_in_pretraining"] is True


def test_speakers_may_be_folders(recordings: Path, run: Path, sslkit: Run) -> None:
    for file in [*recordings.glob("*.wav"), *recordings.glob("*.csv")]:
        place = recordings / file.name.partition("_")[0]
        place.mkdir(exist_ok=True)
        file.rename(place / file.name.partition("_")[2])
    flags = ["--ckpt", run, "--data", recordings, "--alignments", "{stem}.csv", "--no-baselines"]
    assert "file names of training and test share anna, bert" in sslkit("frames", *flags).err


def test_one_recording_is_not_enough(recordings: Path, run: Path, sslkit: Run) -> None:
    first, *others = sorted(recordings.glob("*.wav"))
    (recordings / "one.txt").write_text(first.name)
    (recordings / "others.txt").write_text("\n".join(file.name for file in others))
    flags = ["--data", recordings / "one.txt", "--test", recordings / "others.txt", "--alignments", "{stem}.csv"]
    refused = sslkit("frames", "--ckpt", run, *flags)
    assert refused.code == 2 and "--data: " in refused.err and "has one recording with labels" in refused.err


def test_silence_with_a_label_counts(tmp_path: Path) -> None:
    sound = np.concatenate([np.random.default_rng(0).normal(scale=0.1, size=4000), np.zeros(4000)])
    soundfile.write(tmp_path / "a.wav", sound, 8000)
    (tmp_path / "a.csv").write_text("start,end,label\n0,0.5,noise\n0.5,1,silence\n")
    encoder = build_encoder(recipe_for("speech_micro", 1000, 1, {"sample_rate": "8000", "width": "32", "depth": "1"}))
    index = AudioSource.read_index(str(tmp_path), DataSpec())
    alignments = read_alignments(index, "{stem}.csv", None, lambda row: 8000)
    frames = read_frames(frame_reader(encoder, "checkpoint", "last"), index, alignments, [0], 1000)
    assert 20 < frames.labels.count("noise") < 26 and 20 < frames.labels.count("silence") < 26


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alignments", "{stem}.phn"], "--alignments: {stem}.phn finds no file beside any recording"),
        (["--alignments", "{stem}.csv", "--label", "x"], "--label: labels are those of --alignments"),
        (["--alignments", "{stem}.csv", "--pool", "average"], "--pool: frames are labeled one by one"),
        (["--alignments", "{stem}.csv", "--layer", "9"], "--layer: checkpoint has"),
    ],
)
def test_wrong_input_is_refused(recordings: Path, run: Path, sslkit: Run, flags: list[str], message: str) -> None:
    refused = sslkit("frames", "--ckpt", run, "--data", recordings, *flags)
    assert refused.code == 2 and message in refused.err


def test_frames_of_windows_are_where_they_are_in_the_recording(recordings: Path) -> None:
    """MFCC of a pure tone and of noise differ: each frame of windows one after the other has the sound of its label."""
    encoder = build_encoder(recipe_for("speech_micro", 400, 1, {"sample_rate": "8000", "width": "32", "depth": "1"}))
    index = AudioSource.read_index(str(recordings), DataSpec())
    alignments = read_alignments(index, "{stem}.csv", None, lambda row: 8000)
    reader = mfcc_reader(frame_reader(encoder, "checkpoint", "last"))
    frames = read_frames(reader, index, alignments, [0, 1, 2], 400)
    seconds = sum(float(alignments[row].ends[-1]) for row in (0, 1, 2))
    assert 0.75 * seconds < len(frames.labels) * reader.hop / 8000 <= seconds
    assert set(frames.rows.tolist()) == {0, 1, 2}
    features, labels = frames.layers["last"], np.array(frames.labels)
    centers = torch.stack([features[labels == label].mean(dim=0) for label in PITCH])
    nearest = torch.cdist(features, centers).argmin(dim=1).numpy()
    assert (np.array(list(PITCH))[nearest] == labels).mean() > 0.8


def test_patches_of_spectrograms_are_averaged_over_bands() -> None:
    options = {"sample_rate": "8000", "mels": "32", "width": "32", "depth": "1", "patch": "8"}
    encoder = build_encoder(recipe_for("spectrogram:vit_micro", 400, 1, options)).eval()
    reader = frame_reader(encoder, "checkpoint", "last")
    assert (reader.length, reader.hop) == (640, 640)
    sound = 0.1 * torch.randn(2, 3200)
    frames = reader.read(sound)["last"]
    tokens = encoder.tokens(sound)[:, encoder.prefix :].unflatten(1, encoder.grid(3200))
    assert frames.shape == (2, 5, 32) and torch.allclose(frames, tokens.mean(dim=1)[:, :5])
    assert mfcc_reader(reader).read(sound)["last"].shape == (2, 5, 39)
    with pytest.raises(SslkitError, match="--ckpt: checkpoint has no frames"):
        frame_reader(build_encoder(recipe_for("audio_micro", 400, 1)), "checkpoint", "last")
