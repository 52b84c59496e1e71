"""videomae: what is hidden, and the targets against loops."""

from typing import Any

import pytest
import torch
from sslkit_plugins.video.masked.videomae import denormalize_tubelets, normalize_tubelets

from sslkit import DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task

ENCODER = {"width": "32", "depth": "2", "patch": "4", "frames": "8"}


def build(frames: int = 8, size: int = 16, **options: Any) -> Any:
    task_class, data = load_task("videomae"), DataInfo(4, size, 3, "video", {"frames": frames})
    parsed = task_class.Options(**options)
    builder = RecipeBuilder(recipe_for("video_micro", size, 3, ENCODER), data, "video")
    return task_class(parsed, task_class.build_encoder(parsed, builder), data)


def batch_of(frames: int = 8) -> dict[str, torch.Tensor]:
    return {"video": torch.rand(4, frames, 3, 20, 20), "aspect": torch.ones(4)}


def test_targets_are_normalized_per_tubelet_and_channel() -> None:
    torch.manual_seed(0)
    tubelets = torch.rand(2, 5, 2 * 4 * 4 * 3)
    whole = normalize_tubelets(tubelets, 1)
    assert torch.allclose(whole.mean(dim=2), torch.zeros(2, 5), atol=1e-5) and torch.allclose(
        whole.std(dim=2), torch.ones(2, 5)
    )
    assert torch.allclose(denormalize_tubelets(whole, tubelets, 1), tubelets, atol=1e-5)
    normalized = normalize_tubelets(tubelets, 3)
    for sample in range(2):
        for number in range(5):
            pixels = tubelets[sample, number].view(32, 3)
            for channel in range(3):
                values = pixels[:, channel]
                expected = (values - values.mean()) / (values.var().sqrt() + 1e-6)  # unbiased, as by the authors
                assert torch.allclose(normalized[sample, number].view(32, 3)[:, channel], expected, atol=1e-5)
    assert torch.allclose(denormalize_tubelets(normalized, tubelets, 3), tubelets, atol=1e-5)


def test_predictions_see_no_hidden_tubelet() -> None:
    torch.manual_seed(0)
    task = build().eval()
    batch = task.transform(batch_of())
    assert batch["visible"].shape == (4, 4 * 4) and batch["masked"].shape == (4, 4 * 12)  # 12 of 16 places
    clip = batch["video"]
    tubelets = task._cut(clip)
    changed = tubelets.scatter(1, batch["masked"][..., None].expand(-1, -1, tubelets.shape[2]), 0.0)
    other = {**batch, "video": task._join(changed, clip.shape)}
    assert torch.equal(task.predict(batch), task.predict(other))


def test_loss_and_metrics_of_known_predictions() -> None:
    torch.manual_seed(0)
    for target in ("normalized", "channels", "pixels"):
        task = build(target=target)
        batch = task.transform(batch_of())
        assert task.loss(batch["target"], batch).item() == 0
        pixels = batch["target"].unflatten(2, (-1, 3 if target == "channels" else 1))
        mean = pixels.mean(dim=2, keepdim=True).expand_as(pixels).flatten(2)
        assert torch.allclose(task.metrics(mean, batch)["error_share"], torch.ones(4), atol=1e-4)


def test_pictures_show_predictions_in_place() -> None:
    torch.manual_seed(0)
    for target in ("normalized", "channels", "pixels"):
        task = build(target=target)
        batch = task.transform(batch_of())
        frames, masked, predicted = task.preview(batch, batch["target"]).unbind(1)
        assert torch.allclose(frames, predicted, atol=1e-4) and (masked == 0.5).float().mean() > 0.6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 7}, "--frames: 7 is not a multiple"),
        ({"size": 18}, "--size: 18 is not a multiple"),
        ({"size": 4}, "--size: the encoder's tubelets have a single place"),
        ({"frames": 2, "mask": "frame"}, "--frames: the encoder's tubelets have a single moment"),
    ],
)
def test_clips_that_cannot_be_masked_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SslkitError, match=message):
        build(**settings)
