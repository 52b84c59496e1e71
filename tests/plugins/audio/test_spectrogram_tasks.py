"""audio_mae and best_rq: what counts, and losses and codes against loops."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_run import FakeRun

from sslkit import DataInfo
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task

OPTIONS = {"sample_rate": "8000", "mels": "32", "width": "32", "depth": "2", "patch": "8"}


def build(name: str, size: int = 500, **options: Any) -> Any:
    torch.manual_seed(0)
    task_class, data = load_task(name), DataInfo(8, size, 1, "audio", {"sample_rate": 8000})
    parsed = task_class.Options(**options)
    builder = RecipeBuilder(recipe_for("spectrogram:vit_micro", size, 1, OPTIONS), data, "audio")
    return task_class(parsed, task_class.build_encoder(parsed, builder), data)


def recordings(count: int = 4) -> dict[str, torch.Tensor]:
    """Return noise, the last recording shorter than the window."""
    sound = 0.1 * torch.randn(count, 2, 4000, generator=torch.Generator().manual_seed(1))
    sound[-1, :, 1500:] = 0
    return {"audio": sound, "length": torch.tensor([4000] * (count - 1) + [1500])}


class SoundRun(FakeRun):
    def batch(self, count: int, select: Any = lambda batch: batch) -> dict[str, torch.Tensor]:
        return select(recordings(40))


def test_masked_patches_after_the_recording_do_not_count() -> None:
    task = build("audio_mae")
    batch = task.transform(recordings())
    assert batch["visible"].shape == (4, 7) and batch["masked"].shape == (4, 21)
    assert batch["counted"][:3].all() and 0 < int(batch["counted"][3].sum()) <= 12
    output = torch.randn_like(batch["target"])
    total, count = 0.0, 0
    for sample in range(4):
        for place in range(21):
            if batch["counted"][sample, place]:
                total += float((output[sample, place] - batch["target"][sample, place]).square().mean())
                count += 1
    terms, counts = task.loss(output, batch), task.counts(batch)
    assert counts["error"] == count and terms["error"].item() == pytest.approx(total, rel=1e-4)
    metrics = task.metrics(torch.zeros_like(output), batch)["error_share"]
    assert torch.allclose(metrics, torch.ones(4), atol=1e-3)  # normalized: the mean of a patch is 0
    assert task.metrics(batch["target"], batch)["error_share"].max() < 1e-6


def test_hidden_patches_are_not_seen() -> None:
    task = build("audio_mae").eval()
    batch = task.transform(recordings())
    columns = batch["visible"] % 7
    sound = batch["audio"].clone()
    for sample in range(4):
        last = int(columns[sample].max())
        sound[sample, (last + 1) * 640 + 200 :] = 0  # behind all visible patches, and their windows
    assert torch.allclose(task.predict(batch), task.predict({**batch, "audio": sound}), atol=1e-5)


def test_codes_are_the_nearest_of_a_random_codebook() -> None:
    task = build("best_rq", codes=16)
    task.before_epoch(SoundRun())
    batch = task.transform(recordings())
    patches = task._patches(batch["audio"])
    for sample in range(4):
        for place in range(28):
            values = (patches[sample, place] - task.mean) / task.deviation
            projected = F.normalize(values @ task.projection, dim=0)
            distances = [(projected - code).square().sum().item() for code in task.codebook]
            assert batch["code"][sample, place] == distances.index(min(distances))
    assert (batch["mask"].sum(dim=1) == 21).all() and not (batch["counted"] & ~batch["mask"]).any()


def test_standardized_patches_use_more_codes() -> None:
    task = build("best_rq", codes=64)
    plain = len(task.transform(recordings(32))["code"].unique())
    task.before_epoch(SoundRun())
    assert len(task.transform(recordings(32))["code"].unique()) > 2 * plain


def test_loss_and_accuracy_are_over_counted_patches() -> None:
    task = build("best_rq", codes=16)
    batch = task.transform(recordings())
    output = torch.randn(4, 28, 16)
    expected = sum(
        F.cross_entropy(output[sample, place][None], batch["code"][sample, place][None])
        for sample in range(4)
        for place in range(28)
        if batch["counted"][sample, place]
    )
    terms, counts = task.loss(output, batch), task.counts(batch)
    assert torch.allclose(terms["masked_nats"], expected) and counts["masked_nats"] == batch["counted"].sum()
    right = F.one_hot(batch["code"], 16).float()
    assert task.metrics(right, batch)["accuracy"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["audio_mae", "best_rq"])
def test_pictures_show_low_bands_at_the_bottom(name: str) -> None:
    task = build(name)
    tone = recordings()
    tone["audio"] = 0.5 * torch.sin(2 * torch.pi * 300 * torch.arange(4000) / 8000).expand(4, 2, -1)
    pictures = task.preview(task.transform(tone), None)
    spectrogram = pictures[0, 0].mean(dim=0)
    rows = spectrogram[(spectrogram < 1).any(dim=1)].mean(dim=1)
    assert pictures.shape[:2] == (4, 2) and rows[-12:].mean() > rows[:12].mean()
