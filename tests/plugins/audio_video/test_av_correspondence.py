"""av_correspondence: which pairs belong together, and its losses against loops."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sslkit import DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.registry import load_modality
from sslkit.tasks.load import load_task


def build(**options: Any) -> Any:
    task_class = load_task("av_correspondence")
    data = DataInfo(8, 16, 3, "audio_video", {"sample_rate": 8000, "window": 100}, batch_size=8)
    parsed = task_class.Options(**options)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("resnet_micro", 16, 3, {"width": "8"}), data))
    return task_class(parsed, encoder, data)


def videos(count: int, apart: bool = True) -> dict[str, torch.Tensor]:
    """Return videos of which first moments are black and second ones white, and a sound's value tells video and moment."""
    frames = torch.tensor([0.0, 1.0])[None, :, None, None, None].expand(count, 2, 3, 20, 20)
    sounds = (torch.arange(count)[:, None] + torch.tensor([0.0, 0.5]))[..., None].expand(count, 2, 800)
    return {"video": frames, "audio": sounds, "aspect": torch.ones(count), "apart": torch.full((count,), apart)}


def moments(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the moments of frames, and videos and moments of sounds, `[B, 2]` each."""
    sound = batch["audio"].mean(dim=2)
    return (batch["image"].amax(dim=(2, 3, 4)) > 0.3).long(), sound.floor().long(), (sound % 1 > 0.25).long()


def test_every_frame_has_its_own_sound() -> None:
    torch.manual_seed(0)
    batch = build(level=0.0).transform(videos(64))
    frame, video, moment = moments(batch)
    assert torch.equal(frame, moment) and (video == torch.arange(64)[:, None]).all()
    assert (frame.sum(dim=1) == 1).all() and 16 < frame[:, 0].sum() < 48


@pytest.mark.parametrize("negatives", ["videos", "times"])
@pytest.mark.parametrize("apart", [True, False])
def test_one_of_two_pairs_does_not_belong_together(negatives: str, apart: bool) -> None:
    torch.manual_seed(0)
    batch = build(objective="correspondence", negatives=negatives, level=0.0).transform(videos(64, apart))
    frame, video, moment = moments(batch)
    rows = torch.arange(64)
    assert torch.equal(frame[:, 0], moment[:, 0]) and torch.equal(video[:, 0], rows)
    assert (frame[:, 0] != frame[:, 1]).all() and 16 < frame[:, 0].sum() < 48
    assert batch["matches"].tolist() == [[True, False]] * 64
    if negatives == "times" and apart:
        assert torch.equal(video[:, 1], rows) and (moment[:, 1] != frame[:, 1]).all()
    else:
        assert (video[:, 1] != rows).all() and len(video[:, 1].unique()) == 64


def test_levels_change() -> None:
    torch.manual_seed(0)
    ratio = (
        build(level=0.5).transform(videos(64))["audio"][1:, :, 0] / build(level=0.0).transform(videos(64))["audio"][1:, :, 0]
    )
    assert ratio.std() > 0.1


@pytest.mark.parametrize("negatives", ["videos", "times"])
def test_info_nce_and_accuracy_against_a_loop(negatives: str) -> None:
    torch.manual_seed(0)
    task = build(negatives=negatives, temperature=0.2)
    output = {f"{name}_vector": F.normalize(torch.randn(5, 2, 8), dim=2) for name in ("frame", "sound")}
    apart = torch.tensor([True, False, True, True, False])
    pairs = [(video, moment) for video in range(5) for moment in range(2)]

    def counts(frame: tuple[int, int], sound: tuple[int, int]) -> bool:
        return frame[0] != sound[0] or frame == sound or (negatives == "times" and bool(apart[frame[0]]))

    losses, farther = [], []
    for query in pairs:
        for first, second in (("frame_vector", "sound_vector"), ("sound_vector", "frame_vector")):
            scores = {
                other: float(output[first][query] @ output[second][other]) / 0.2 for other in pairs if counts(query, other)
            }
            values = torch.tensor(list(scores.values()))
            losses.append(float(values.logsumexp(0)) - scores[query])
            if first == "frame_vector":
                farther.append(sum(score < scores[query] for score in scores.values()) / (len(scores) - 1))
    batch = {"apart": apart}
    assert float(task.loss(output, batch)) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    accuracy = task.metrics(output, batch)["accuracy"]
    assert accuracy.tolist() == pytest.approx([(farther[2 * video] + farther[2 * video + 1]) / 2 for video in range(5)])


def test_correspondence_is_the_binary_cross_entropy() -> None:
    task = build(objective="correspondence")
    score, matches = torch.tensor([[2.0, -1.0], [-3.0, 0.5]]), torch.tensor([[True, False], [True, False]])
    expected = [-torch.tensor(value).sigmoid().log() for value in (2.0, 1.0, -3.0, -0.5)]
    assert float(task.loss({"score": score}, {"matches": matches})) == pytest.approx(float(sum(expected)) / 4)
    assert task.metrics({"score": score}, {"matches": matches})["accuracy"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("objective", ["info_nce", "correspondence"])
def test_an_untrained_task_guesses(objective: str) -> None:
    torch.manual_seed(0)
    task, count = build(objective=objective).eval(), 48
    batch = task.transform(
        {
            "video": torch.rand(count, 2, 3, 20, 20),
            "audio": torch.randn(count, 2, 800),
            "aspect": torch.ones(count),
            "apart": torch.ones(count, dtype=torch.bool),
        }
    )
    with torch.no_grad():
        accuracy = task.metrics(task.predict(batch), batch)["accuracy"].mean()
    assert abs(float(accuracy) - 0.5) < 0.15
    assert set(task.exports()) == {"encoder", "sound"}


def test_the_sound_tower_has_to_be_one_of_sound() -> None:
    with pytest.raises(SslkitError, match="--sound-encoder: resnet_micro is not an encoder of sound"):
        build(sound_encoder="resnet_micro")
    assert build(sound_encoder="speech_micro").sound.sample_rate == 8000


def test_both_encoders_are_evaluated_on_the_same_videos(tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    source = load_modality("audio_video").source
    for kind in "ab":
        (tmp_path / "all" / kind).mkdir(parents=True)
        for file in Path(source.example(tmp_path / "all" / kind, 6)).iterdir():
            file.rename(tmp_path / "all" / kind / file.name)
        (tmp_path / "all" / kind / "videos").rmdir()
    how = ["--steps", 2, "--batch-size", 4, "--workers", 0, "--out", tmp_path / "run"]
    ran = sslkit("pretrain", "av_correspondence", "--data", tmp_path / "all", *how)
    assert ran.code == 0, ran.err
    checkpoint = tmp_path / "run" / "model.safetensors"
    for part, baseline in (("encoder", "raw pixels"), ("sound", "MFCC")):
        result = sslkit("knn", "--ckpt", checkpoint, "--data", tmp_path / "all", "--part", part, "--k", 3, "--json")
        assert result.code == 0, result.err
        rows = json.loads(result.out)["rows"]
        assert rows[0]["metrics"][0]["n"] >= 2 and rows[2]["model"].startswith(baseline)
    joint = sslkit("preview", "av_correspondence+ambient_sound", "--data", tmp_path / "all", "--out", tmp_path / "joint.png")
    assert joint.code == 0, joint.err
    refused = sslkit("frames", "--ckpt", checkpoint, "--data", tmp_path / "all", "--alignments", "{stem}.csv")
    assert refused.code == 2 and "an encoder of audio data is needed: its part sound is one" in refused.err
