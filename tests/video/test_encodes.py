"""Encoders of frames and of clips share one source of videos."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit import SslkitError
from sslkit.contract.source import ReadSeed
from sslkit.engine.checkpoint import read_model
from sslkit.engine.pretrain import prepare, pretrain
from sslkit.engine.stepper import to_device
from sslkit.specs.data import DataSpec
from sslkit.specs.train import PretrainSpec
from sslkit.video.encoders.video_micro import video_micro
from sslkit.video.source import VideoSource

Run = Callable[..., Any]

CLIPS = """
from torch import nn
from sslkit import Encoder, PretextTask

class ClipNet(Encoder):
    modality = "video"
    sample_dims = 4  # [T, C, H, W]

    def __init__(self, in_channels=3, size=16, width=8, frames=8, frame_step=1):
        super().__init__(width, in_channels)
        self.convolution = nn.Conv3d(in_channels, width, 3, padding=1)

    def forward(self, clip):
        assert clip.dim() == 5
        return self.convolution(clip.transpose(1, 2)).relu().mean(dim=(2, 3, 4))

class Reversal(PretextTask):
    "Tell clips from clips that run backwards."
    modality = "video"

    def build_head(self):
        return nn.Linear(self.encoder.width, 1)

    def transform(self, batch):
        clip = batch["video"]
        return {"clip": clip, "target": clip[:, 0].mean(dim=(1, 2, 3)) - clip[:, -1].mean(dim=(1, 2, 3))}

    def predict(self, batch):
        return self.head(self.encoder(batch["clip"]))

    def loss(self, output, batch):
        return (output[:, 0] - batch["target"]).square().mean()
"""


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return eight clips of two classes: brighter and darker ones."""
    random = np.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / "videos" / ("bright" if number % 2 else "dark") / str(number)
        folder.mkdir(parents=True)
        for frame in range(8):
            pixels = random.integers(0, 100, (16, 16, 3)) + 100 * (number % 2) + 4 * frame
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{frame}.png")
    (tmp_path / "clip_net.py").write_text(CLIPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "videos"


def test_a_task_trains_an_encoder_of_clips(videos: Path, tmp_path: Path, sslkit: Run) -> None:
    task, run = tmp_path / "clip_net.py", tmp_path / "run"
    flags = ["--encoder", "clip_net:ClipNet", "--batch-size", 4, "--steps", 3, "--workers", 0]
    ran = sslkit("pretrain", task, "--data", videos, *flags, "--out", run)
    assert ran.code == 0, ran.err
    checkpoint = read_model(run / "model.safetensors")
    assert (checkpoint.modality, checkpoint.evaluated_as) == ("video", "video")
    evaluated = sslkit(
        "knn", "--ckpt", checkpoint.path, "--encoder", "clip_net:ClipNet", "--data", videos, "--workers", 0, "--k", 3, "--json"
    ).json
    assert evaluated["rows"][0]["metrics"][0]["name"] == "top-1"


def test_frames_are_views_and_clips_are_whole(videos: Path) -> None:
    source = VideoSource.open(DataSpec(data=str(videos)))
    arrays, _ = source.read(np.array([0, 1]), ReadSeed(0, 0))
    batch = to_device({name: torch.from_numpy(array) for name, array in arrays.items()}, source, torch.device("cpu"))
    assert source.view(batch, "video").shape == source.view(batch, "image").shape == (2, 8, 3, 32, 32)


@pytest.mark.parametrize(
    ("encodes", "encoder", "message"),
    [
        ("image", "clip_net:ClipNet", "is an encoder of video data, and clip_net needs one of image data"),
        ("video", "resnet_micro", "is an encoder of image data, and clip_net needs one of video data"),
        ("sound", "auto", "clip_net encodes 'sound', and video data is for encoders of image and video"),
    ],
)
def test_other_encoders_are_refused_in_one_line(videos: Path, tmp_path: Path, encodes: str, encoder: str, message: str) -> None:
    task = tmp_path / "clip_net.py"
    task.write_text(CLIPS.replace('modality = "video"\n\n', f'modality = "video"\n    encodes = "{encodes}"\n\n'))
    spec = PretrainSpec(
        task=str(task), data=str(videos), encoder=encoder, batch_size=4, steps=1, workers=0, out=str(tmp_path / "run")
    )
    with pytest.raises(SslkitError, match=message):
        pretrain(spec)


def test_tasks_that_encode_different_things_cannot_be_joined(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(SslkitError, match="order_verification encodes image, clip_net encodes video"):
        prepare(PretrainSpec(task=f"order_verification+{tmp_path / 'clip_net.py'}", data=str(videos)))


def test_encoders_of_clips_are_shown_windows_as_in_training(videos: Path, tmp_path: Path, sslkit: Run) -> None:
    source = VideoSource.open(DataSpec(data=str(videos)))
    encoder = video_micro(3, 16, frames=4, frame_step=2)
    samples = VideoSource.for_evaluation(source.index, DataSpec(), encoder, 16)
    arrays, broken = samples.read(np.array([0, 1]))
    assert not broken and arrays["video"].shape[:2] == (2, 8)
    # Frames become brighter by 4; windows of four frames two apart begin at 0 and at 1.
    brightness = np.median(arrays["video"], axis=(2, 3, 4))
    assert brightness[0, 3] > brightness[0, 0] and brightness[0, 7] > brightness[0, 4]
    batch = to_device({name: torch.from_numpy(array) for name, array in arrays.items()}, samples, torch.device("cpu"))
    assert samples.view(batch, "video").shape == (2, 2, 4, 3, 16, 16)
    longer = VideoSource.for_evaluation(source.index, DataSpec(), video_micro(3, 16, frames=12, frame_step=1), 16)
    arrays, _ = longer.read(np.array([0]))
    assert (arrays["video"][0, 7:12] == arrays["video"][0, 7]).all() and longer.key() != samples.key()


def test_clips_are_finetuned_on_the_windows_of_pretraining(videos: Path, tmp_path: Path, sslkit: Run) -> None:
    run, options = tmp_path / "run", ["--encoder-option", "width=32", "--encoder-option", "depth=1", "--workers", 0]
    ran = sslkit("pretrain", "videomae", "--data", videos, "--batch-size", 4, "--steps", 2, "--out", run, *options)
    assert ran.code == 0, ran.err
    model = ["--ckpt", run / "model.safetensors", "--data", videos, "--workers", 0]
    tuned = sslkit("finetune", *model, "--batch-size", 4, "--steps", 2, "--out", tmp_path / "tuned", "--scratch", "--json")
    assert tuned.code == 0, tuned.err
    assert [row["role"] for row in tuned.json["rows"][:2]] == ["checkpoint", "random"]
    refused = sslkit("finetune", *model, "--steps", 2, "--frames", 6, "--out", tmp_path / "other")
    assert refused.code == 2 and "--frames: the encoder was trained with 8 (got 6) (leave it out)" in refused.err
    pixels = sslkit("finetune", *model, "--steps", 2, "--batch-size", 4, "--mixup", 0.2, "--out", tmp_path / "other")
    assert pixels.code == 2 and "this is video data" in pixels.err
