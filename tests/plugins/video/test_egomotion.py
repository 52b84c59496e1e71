"""egomotion: windows of a simulated camera, poses, and classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_run import FakeRun
from PIL import Image

from sslkit import DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task


def build(frames: int = 8, pose: int = 0, **options: Any) -> Any:
    task_class = load_task("egomotion")
    data = DataInfo(8, 16, 3, "video", {"frames": frames, **({"pose": pose} if pose else {})})
    parsed = task_class.Options(**options)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("resnet_micro", 16, 3, {"width": "8"}), data))
    return task_class(parsed, encoder, data)


def test_windows_lie_inside_and_as_far_apart_as_their_motion_says() -> None:
    torch.manual_seed(0)
    task = build()
    (first, second), motion = task._windows(500, torch.device("cpu"))
    for box in (first, second):
        assert (box.top >= -1e-6).all() and (box.left >= -1e-6).all()
        assert (box.top + box.down <= 1 + 1e-6).all() and (box.left + box.across <= 1 + 1e-6).all()
    right = second.left + second.across / 2 - first.left - first.across / 2
    down = second.top + second.down / 2 - first.top - first.down / 2
    closer = (first.across / second.across).log()
    assert torch.allclose(torch.stack([right, down, closer], dim=1), motion, atol=1e-5)
    assert motion[:, :2].abs().max() <= 0.25 * 0.6 + 1e-6
    # Where the first window lies is no hint.
    assert torch.corrcoef(torch.stack([first.left, motion[:, 0]]))[0, 1].abs() < 0.75


def test_classes_are_equally_frequent_and_no_motion_is_in_the_middle() -> None:
    torch.manual_seed(0)
    task = build(bins=5)
    task.before_epoch(FakeRun())
    batch = task.transform({"video": torch.rand(600, 8, 3, 20, 20), "aspect": torch.ones(600)})
    assert batch["image"].shape == (600, 2, 3, 16, 16) and batch["motion"].shape == (600, 3)
    for kind in range(3):
        counts = torch.bincount(batch["motion"][:, kind], minlength=5)
        assert counts.min() > 80 and counts.max() < 165
    assert ((torch.zeros(3, 1) > task.edges).sum(dim=1) == 2).all()
    # Back is the opposite of there.
    assert torch.allclose(task.edges, -task.edges.flip(1), atol=0.03)


class PoseRun(FakeRun):
    """Returns clips whose camera moves at a speed of their own, and does not turn."""

    def batch(self, count: int, select: Any = lambda batch: batch) -> dict[str, torch.Tensor]:
        speed = torch.linspace(-1, 1, 400)[:, None]
        place = speed * torch.arange(8)
        return {"pose": torch.stack([place, -2 * place], dim=2), "video": torch.rand(400, 8, 3, 4, 4)}


def test_poses_become_classes_by_their_differences() -> None:
    torch.manual_seed(0)
    task = build(pose=2, motion="poses", gap=1, bins=4)
    run = PoseRun()
    task.before_epoch(run)
    assert torch.allclose(task.edges, torch.tensor([[-0.5, 0, 0.5], [-1, 0, 1]]), atol=0.02)
    batch = task.transform({**run.batch(0), "aspect": torch.ones(400)})
    expected = (torch.linspace(-1, 1, 400)[:, None] > torch.tensor([-0.5, 0, 0.5])).sum(dim=1)
    assert (batch["motion"][:, 0] == expected).float().mean() > 0.98
    assert (batch["motion"][:, 1] == 3 - expected).float().mean() > 0.98


def test_loss_and_accuracy() -> None:
    task = build(bins=4)
    output, motion = torch.randn(6, 3, 4), torch.randint(4, (6, 3))
    expected = sum(-output[i, k].log_softmax(0)[motion[i, k]] for i in range(6) for k in range(3)) / 18
    assert torch.allclose(task.loss(output, {"motion": motion}), expected)
    right = torch.nn.functional.one_hot(motion, 4).float()
    assert task.metrics(right, {"motion": motion})["accuracy"].min() == 1 and task.chance() == {"accuracy": 0.25}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"motion": "poses"}, "--motion: poses are not read .name the file in each clip's folder with --poses"),
        ({"frames": 4}, "--gap: windows have 4 frames"),
    ],
)
def test_missing_poses_and_short_windows_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SslkitError, match=message):
        build(**settings)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for clip in range(6):
        folder = tmp_path / "clips" / str(clip)
        folder.mkdir(parents=True)
        for frame in range(6):
            Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{frame}.png")
        lines = ["x,y", *(f"{clip * frame},{-frame * frame}" for frame in range(6))]
        (folder / "poses.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "clips"


def test_poses_are_read_beside_frames(clips: Path, sslkit: Callable[..., Any]) -> None:
    flags = ["--data", clips, "--motion", "poses", "--poses", "poses.csv", "--batch-size", 2, "--workers", 0, "--steps", 2]
    out = clips.parent / "run"
    ran = sslkit("pretrain", "egomotion", *flags, "--out", out)
    assert ran.code == 0, ran.err
    (clips / "0" / "poses.csv").write_text("1,2\n")
    refused = sslkit("pretrain", "egomotion", *flags, "--out", clips.parent / "other")
    assert refused.code == 2 and "--poses: 0: poses.csv has 1 rows for 6 frames" in refused.err
    (clips / "0" / "poses.csv").unlink()
    refused = sslkit("pretrain", "egomotion", *flags, "--out", clips.parent / "other")
    assert refused.code == 2 and "--poses: 0: no poses.csv beside the frames" in refused.err


def test_windows_that_do_not_fit_and_poses_without_effect_are_refused() -> None:
    with pytest.raises(SslkitError, match=r"--window: windows of 0.9 .* do not fit the frame .use at most 0.73"):
        build(window=0.9)
    with pytest.raises(SslkitError, match="--poses: poses have no effect on a simulated camera"):
        build(pose=2)


def test_poses_that_never_change_are_refused() -> None:
    task = build(pose=2, motion="poses")

    class StillRun(PoseRun):
        def batch(self, count: int, select: Any = lambda batch: batch) -> dict[str, torch.Tensor]:
            batch = super().batch(count)
            return {**batch, "pose": batch["pose"] * torch.tensor([1.0, 0.0])}

    with pytest.raises(SslkitError, match="--poses: number 2 of the poses never changes"):
        task.before_epoch(StillRun())


def test_windows_keep_the_proportions_of_frames() -> None:
    """Of a wide frame, stretched to a square canvas, circles stay circles."""
    torch.manual_seed(0)
    task = build(bins=3)
    task.before_epoch(FakeRun())
    place = (torch.arange(64) + 0.5) / 32 - 1
    ellipse = ((2 * place) ** 2 + place[:, None] ** 2 < 0.6).float()  # half as wide: the frame was 2:1
    batch = task.transform({"video": ellipse.expand(8, 8, 3, 64, 64), "aspect": torch.full((8,), 2.0)})
    for image in batch["image"].flatten(0, 1)[:, 0]:
        inside = image > 0.5
        if not (inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any()):
            assert abs(int(inside.any(dim=0).sum()) - int(inside.any(dim=1).sum())) <= 2
