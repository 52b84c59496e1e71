"""video_colorization: colors that are copied by pointing, against loops."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_run import FakeRun

from sslkit import DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task


def build(frames: int = 8, **options: Any) -> Any:
    task_class, data = load_task("video_colorization"), DataInfo(8, 16, 3, "video", {"frames": frames})
    parsed = task_class.Options(**options)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("resnet_micro", 16, 3, {"width": "8"}), data))
    return task_class(parsed, encoder, data)


class ClipRun(FakeRun):
    """Returns given clips."""

    def __init__(self, clips: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.clips = clips

    def batch(self, count: int, select: Any = lambda batch: batch) -> dict[str, torch.Tensor]:
        return select(self.clips)


def clips(count: int) -> dict[str, torch.Tensor]:
    """Return clips of four colored squares, `[count, 8, 3, 20, 20]`."""
    torch.manual_seed(0)
    colors = torch.rand(count, 1, 3, 2, 2).expand(-1, 8, -1, -1, -1).flatten(0, 1)
    return {"video": F.interpolate(colors, size=(20, 20)).unflatten(0, (count, 8)), "aspect": torch.ones(count)}


def prepared(count: int = 8, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    task = build(colors=4, **options)
    task.before_epoch(ClipRun(clips(16)))
    return task, task.transform(clips(count))


def test_colors_are_copied_from_the_references_that_are_pointed_at() -> None:
    task, batch = prepared(3, references=2)
    output = F.normalize(torch.randn(3, 3, 16, 5), dim=3)
    color = batch["color"].flatten(2)
    total = 0.0
    for clip in range(3):
        for place in range(16):
            weights = {
                (frame, other): float(torch.exp(output[clip, 2, place] @ output[clip, frame, other] / 0.07))
                for frame in range(2)
                for other in range(16)
            }
            right = sum(w for (frame, other), w in weights.items() if color[clip, frame, other] == color[clip, 2, place])
            total -= torch.tensor(right / sum(weights.values()) + 1e-4).log().item() / 16
    batch["valid"] = torch.ones(3, dtype=torch.bool)
    terms, counts = task.loss(output, batch), task.counts(batch)
    assert (terms["pointing"] / counts["pointing"]).item() == pytest.approx(total / 3, rel=1e-3)


def test_a_still_clip_with_places_that_know_themselves_is_copied_without_loss() -> None:
    task, batch = prepared(shift=0.0, references=1)
    places = F.normalize(torch.eye(16), dim=1).expand(8, 2, -1, -1)
    metrics = task.metrics(places, batch)
    assert metrics["accuracy"].min() == metrics["copy_accuracy"].min() == 1
    assert task.loss(places, batch)["pointing"].item() < 1e-3


def test_only_lightness_is_seen() -> None:
    task, batch = prepared()
    task.eval()
    gray = batch["image"].mean(dim=2, keepdim=True).expand_as(batch["image"])
    recipe = task.encoder.recipe
    assert recipe["select"] == "l" and recipe["in_channels"] == 3
    assert task.predict(batch).shape == (8, 4, 16, 64)
    assert not torch.allclose(task.predict(batch), task.predict({**batch, "image": gray}))  # its mean is not its lightness


def test_clips_of_one_color_do_not_count() -> None:
    task, _ = prepared()
    batch = {"video": torch.rand(4, 1, 3, 1, 1).expand(-1, 8, -1, 20, 20).contiguous(), "aspect": torch.ones(4)}
    batch = task.transform(batch)
    assert not batch["valid"].any() and task.counts(batch)["pointing"] == 0
    assert task.loss(task.predict(batch), batch)["pointing"] == 0


def test_gray_videos_and_short_windows_are_refused() -> None:
    gray = clips(16)
    gray["video"] = gray["video"].mean(dim=2, keepdim=True).expand(-1, -1, 3, -1, -1)
    with pytest.raises(SslkitError, match=r"--colors: 16 are more colors than frames have .1."):
        build().before_epoch(ClipRun(gray))
    with pytest.raises(SslkitError, match=r"--references: windows have 3 frames, of which 3 are references .use at most 2"):
        build(frames=3)
