"""relative_position: where patches lie, and what the encoder cannot exploit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sslkit import SslkitError
from sslkit.tasks.load import load_task
from tests.canvases import canvases


def places_of(task: Any, image: torch.Tensor) -> Any:
    """Return the batch of an image whose red and green encode row and column."""
    return task.transform(canvases(image))


def test_patches_lie_where_the_label_says(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = sys.modules[load_task("relative_position").__module__]
    monkeypatch.setattr(module, "resize", lambda image, side: image)
    task = build("relative_position", size=64, color="keep")
    monkeypatch.setattr(task, "crop", lambda batch: batch["canvas"])
    monkeypatch.setattr(task, "_remove_aberration", lambda patches: cut.append(patches) or patches)
    cut: list[torch.Tensor] = []
    along = torch.arange(64.0)
    image = torch.stack([along[:, None].expand(64, 64), along.expand(64, 64), torch.zeros(64, 64)]) / 64
    torch.manual_seed(0)
    side = places_of(task, image.expand(200, -1, -1, -1))["side"]
    corner = (cut[0][:, :, :2, 0, 0] * 64).round().long()  # top and left of both patches
    offset = corner[:, 1] - corner[:, 0]
    step = task.patch + task.gap
    steps = (offset / step).round().long()
    place = [divmod(number, 3) for number in (0, 1, 2, 3, 5, 6, 7, 8)]
    for label, step_count, moved in zip(side.tolist(), steps.tolist(), offset.tolist(), strict=True):
        assert step_count == [place[label][0] - 1, place[label][1] - 1]
        assert all(abs(move - step * where) <= 2 * task.jitter for move, where in zip(moved, step_count, strict=True))
    assert (offset.abs() % step != 0).any()  # jitter
    # The paper's proportions: patches never touch, whatever the jitter.
    assert (task.patch, task.gap, task.jitter) == (15, 8, 1) and task.gap > 2 * task.jitter


def test_color_and_mean_do_not_reach_the_encoder(build: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    image = torch.rand(16, 3, 32, 32)
    for color in ("drop", "project", "keep"):
        patch = build("relative_position", color=color).transform(canvases(image))["image"]
        assert patch.shape == (16, 2, 3, 16, 16)
        # Enlarging moves the mean a little.
        assert torch.allclose(patch.mean(dim=(-2, -1)), torch.full((16, 2, 3), 0.5), atol=0.06)
        alive = (patch.std(dim=(-2, -1)) > 0.05).sum(dim=2)
        assert (alive == (1 if color == "drop" else 3)).all()
        if color == "project":
            green = (2 * patch[:, :, 1] - patch[:, :, 0] - patch[:, :, 2]).abs().max()
            assert float(green) < 1e-4


def test_both_patches_decide(build: Callable[..., Any]) -> None:
    task = build("relative_position", norm="none").eval()
    batch = task.transform(canvases(torch.rand(4, 3, 32, 32)))
    output = task.predict(batch)
    assert output.shape == (4, 8)
    features = [task.encoder(batch["image"][:, view]) for view in range(2)]
    assert torch.allclose(output, task.head(torch.cat(features, dim=1)), atol=1e-5)
    expected = -torch.stack([torch.log_softmax(row, 0)[side] for row, side in zip(output, batch["side"], strict=True)]).mean()
    assert torch.allclose(task.loss(output, batch), expected)


def test_tiny_images_are_refused(build: Callable[..., Any]) -> None:
    with pytest.raises(SslkitError, match="--size: images of 16 px give patches of 3 px"):
        build("relative_position", size=16)
