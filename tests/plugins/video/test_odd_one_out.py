"""odd_one_out: which sequences are shuffled, and that the head treats all alike."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sslkit_plugins.video.predictive.odd_one_out import shuffled_orders

from sslkit import DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task


def build(frames: int = 12, **options: Any) -> Any:
    task_class, data = load_task("odd_one_out"), DataInfo(8, 16, 3, "video", {"frames": frames})
    parsed = task_class.Options(**options)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("resnet_micro", 16, 3, {"width": "8"}), data))
    return task_class(parsed, encoder, data)


def clips(count: int, frames: int = 12) -> dict[str, torch.Tensor]:
    return {"video": torch.rand(count, frames, 3, 20, 20), "aspect": torch.ones(count)}


@pytest.mark.parametrize(("length", "count"), [(3, 4), (4, 22), (6, 718)])
def test_shuffled_orders_are_neither_forwards_nor_backwards(length: int, count: int) -> None:
    orders = shuffled_orders(length)
    assert orders.shape == (count, length) and len(orders.unique(dim=0)) == count
    assert (orders.sort(dim=1).values == torch.arange(length)).all()
    steps = orders.diff(dim=1)
    assert not (steps == 1).all(dim=1).any() and not (steps == -1).all(dim=1).any()


def test_one_sequence_is_shuffled_at_a_uniform_place() -> None:
    torch.manual_seed(0)
    task = build()
    batch = task.transform(clips(1200))
    frames, odd = batch["frames"], batch["odd"]
    assert frames.shape == (1200, 6, 4) and frames.min() == 0 and frames.max() == 11
    in_order = (frames.diff(dim=2) == 1).all(dim=2)
    assert ((~in_order).sum(dim=1) == 1).all() and torch.equal((~in_order).int().argmax(dim=1), odd)
    assert (torch.bincount(odd, minlength=6) - 200).abs().max() < 60
    assert batch["valid"].all()
    still = torch.rand(8, 1, 3, 20, 20).expand(-1, 12, -1, -1, -1)
    assert not task.transform({"video": still, "aspect": torch.ones(8)})["valid"].any()


def test_the_head_treats_all_sequences_alike() -> None:
    torch.manual_seed(0)
    task = build().eval()
    batch, order = task.transform(clips(4)), torch.tensor([3, 0, 5, 1, 4, 2])
    scores = task.predict(batch)
    assert torch.allclose(task.predict({**batch, "frames": batch["frames"][:, order]}), scores[:, order], atol=1e-5)


def test_loss_and_accuracy_count_clips_that_move() -> None:
    task = build()
    output, odd = torch.randn(4, 6), torch.tensor([0, 5, 2, 2])
    batch = {"odd": odd, "valid": torch.tensor([True, True, False, True]), "most_changed": odd}
    terms, counts = task.loss(output, batch), task.counts(batch)
    expected = sum(F.cross_entropy(output[i : i + 1], odd[i : i + 1]) for i in (0, 1, 3)) / 3
    assert torch.allclose(terms["odd_one"] / counts["odd_one"], expected)
    right = F.one_hot(odd, 6).float()
    assert task.metrics(right, batch)["accuracy"].tolist() == pytest.approx([1, 1, 1 / 6, 1])
    assert task.metrics(-right, batch)["accuracy"].tolist() == pytest.approx([0, 0, 1 / 6, 0])
    assert task.metrics(right, batch)["difference_accuracy"].tolist() == pytest.approx([1, 1, 1 / 6, 1])


def test_frames_that_differ_most_are_told() -> None:
    """In clips of constant speed, shuffled frames are farther from each other than frames in order."""
    torch.manual_seed(0)
    task = build(crop_scale=1.0)
    ramp = (torch.arange(12) / 12).view(1, 12, 1, 1, 1).expand(64, 12, 3, 20, 20)
    batch = task.transform({"video": ramp, "aspect": torch.ones(64)})
    assert torch.equal(batch["most_changed"], batch["odd"])


def test_short_windows_are_refused() -> None:
    with pytest.raises(SslkitError, match=r"--sequence-frames: windows have 5 frames, and sequences 4 .use at most 3"):
        build(frames=5)
