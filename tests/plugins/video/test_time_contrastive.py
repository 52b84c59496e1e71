"""time_contrastive: positives, negatives and the triplet loss against loops."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sslkit import DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task


def build(frames: int = 8, cameras: int = 1, **options: Any) -> Any:
    details = {"frames": frames, **({"cameras": cameras} if cameras > 1 else {})}
    task_class, data = load_task("time_contrastive"), DataInfo(8, 16, 3, "video", details)
    parsed = task_class.Options(**options)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("resnet_micro", 16, 3, {"width": "8"}), data))
    return task_class(parsed, encoder, data)


def test_positives_are_near_and_frames_cropped_each_on_its_own() -> None:
    torch.manual_seed(0)
    task = build(positive_radius=2)
    still = torch.rand(64, 1, 3, 20, 20).expand(-1, 8, -1, -1, -1)
    batch = task.transform({"video": still, "aspect": torch.ones(64)})
    apart = (batch["positive"] - torch.arange(8)).abs()
    assert apart.min() == 1 and apart.max() == 2 and batch["positive"].min() == 0 and batch["positive"].max() == 7
    assert batch["image"].shape == (64, 8, 3, 16, 16)
    assert (batch["image"][:, 0] - batch["image"][:, 1]).abs().mean(dim=(1, 2, 3)).min() > 1e-3


def test_positives_are_what_another_camera_saw_at_the_same_time() -> None:
    torch.manual_seed(0)
    task = build(cameras=3)
    cameras = torch.zeros(64, 3, 8, 3, 20, 20)
    for camera in range(3):
        cameras[:, camera, :, camera] = 1.0
    batch = {"video": cameras[:, 0], "cameras": cameras[:, 1:], "aspect": torch.ones(64), "cameras_aspect": torch.ones(64, 2)}
    batch = task.transform(batch)
    assert batch["image"].shape == (64, 16, 3, 16, 16)
    assert (batch["positive"] == (torch.arange(16) + 8) % 16).all()
    camera_of = batch["image"].mean(dim=(3, 4)).argmax(dim=2)
    assert (
        (camera_of[:, :8] == camera_of[:, :1]).all()
        and (camera_of[:, 8:] == camera_of[:, 8:9]).all()
        and (camera_of[:, 0] != camera_of[:, 8]).all()
    )
    assert len(torch.stack([camera_of[:, 0], camera_of[:, 8]], dim=1).unique(dim=0)) == 6
    far = task.far
    for anchor in range(16):
        expected = [n for n in range(16) if n // 8 == anchor // 8 and abs(n - anchor) >= 3]
        assert far[anchor].nonzero()[:, 0].tolist() == expected
    with pytest.raises(SslkitError, match="--positive-radius: positives are of another camera, at the same time"):
        build(cameras=2, positive_radius=2)
    output = F.normalize(torch.randn(64, 16, 5), dim=2)
    assert task.loss(output, batch).isfinite() and task.preview(batch, output).shape == (64, 3, 3, 16, 16)


def test_loss_against_loops() -> None:
    torch.manual_seed(0)
    task = build(margin=0.3)
    output = F.normalize(torch.randn(3, 8, 5), dim=2)
    positive = torch.tensor([[1, 0, 1, 4, 3, 6, 7, 6]]).expand(3, -1)
    total, active, farther = 0.0, 0, 0
    for clip in range(3):
        for anchor in range(8):
            near = float((output[clip, anchor] - output[clip, positive[clip, anchor]]).square().sum())
            others = [float((output[clip, anchor] - output[clip, n]).square().sum()) for n in range(8) if abs(n - anchor) >= 3]
            beyond = [distance for distance in others if distance > near]
            negative = min(beyond) if beyond else max(others)
            total += max(0.0, near - negative + 0.3)
            active += near - negative + 0.3 > 0
            farther += len(beyond)
    batch = {"positive": positive}
    assert task.loss(output, batch).item() == pytest.approx(total / 24, rel=1e-4)
    metrics = task.metrics(output, batch)
    assert metrics["active"].mean().item() == pytest.approx(active / 24)
    assert metrics["accuracy"].mean().item() == pytest.approx(farther / (3 * int(task.far.sum())))


def test_a_clip_that_moves_along_an_arc_has_no_loss() -> None:
    task = build(positive_radius=1, negative_radius=3, margin=0.01)
    angle = torch.linspace(0, 1.5, 8)
    output = torch.stack([angle.cos(), angle.sin()], dim=1)[None]
    batch = {"positive": torch.tensor([[1, 0, 1, 2, 3, 4, 5, 6]])}
    assert task.loss(output, batch).item() == 0 and task.metrics(output, batch)["accuracy"].item() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positive_radius": 3}, "--negative-radius: 3 is not more than --positive-radius 3"),
        ({"negative_radius": 5}, "--negative-radius: in windows of 8 frames, none is 5 from the middle .use at most 4"),
    ],
)
def test_radii_that_leave_no_frame_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(SslkitError, match=message):
        build(**options)
