"""hubert, wavlm and wav2vec2: labels, losses against loops, mixing."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_run import FakeRun
from sslkit_plugins.audio.masked.wav2vec2 import Quantizer, other_masked
from sslkit_plugins.audio.masked.wavlm import mix

from sslkit import Clock, DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task

RATE, SAMPLES = 8000, 4000
ENCODERS = {"hubert": "speech_micro", "wavlm": "wavlm_micro", "wav2vec2": "speech_micro"}


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    task_class, data = load_task(name), DataInfo(8, 500, 1, "audio", {"sample_rate": RATE})
    parsed = task_class.Options(**options)
    values = {"width": "32", "depth": "2", "channels": "16", "sample_rate": str(RATE)}
    builder = RecipeBuilder(recipe_for(ENCODERS[name], 500, 1, values), data)
    return task_class(parsed, task_class.build_encoder(parsed, builder), data)


def recordings(count: int = 6) -> dict[str, torch.Tensor]:
    """Return two windows of recordings; the last one ends after half of its window."""
    random = torch.Generator().manual_seed(1)
    pitch = 200 + 1500 * torch.rand(count, 1, 4, generator=random).repeat_interleave(SAMPLES // 4, dim=2)
    noise = torch.randn(count, 2, SAMPLES, generator=random)
    sound = 0.3 * torch.sin(2 * math.pi * (pitch / RATE).cumsum(dim=2)) + 0.01 * noise
    sound[-1, :, SAMPLES // 2 :] = 0
    return {"audio": sound}


class Sound(FakeRun):
    """Offers recordings."""

    def batch(self, count: int) -> dict[str, torch.Tensor]:
        return recordings(16)


@pytest.mark.parametrize("name", ["hubert", "wavlm"])
def test_labels_are_the_nearest_centers_of_the_unmasked_recording(name: str) -> None:
    task = build(name, clusters=6)
    task.before_epoch(Sound())
    batch = task.transform(recordings())
    sound = recordings()["audio"][:, 0]
    recorded = task.encoder.recorded_frames(sound)
    features = (task.mfcc(sound, recorded)[0] - task.mean[:39]) / task.scale[:39]
    expected = torch.cdist(features, task.centers[:6, :39].expand(6, -1, -1)).argmin(dim=2)
    assert torch.equal(batch["target"], expected) and expected.unique().tolist() == list(range(6))
    assert not (batch["mask"] & ~recorded).any() and not recorded[-1, 14:].any()
    interior = task._label(sound[:, 320:])[:, 4:-4]  # the same samples, two frames later
    assert (interior == expected[:, 6:-4][:, : interior.shape[1]]).float().mean() > 0.8  # but for the mean that is taken off


def test_only_masked_frames_count() -> None:
    task = build("hubert", clusters=5, penalty=0.0)
    task.before_epoch(Sound())
    batch = task.transform(recordings())
    output = task.predict(batch)
    terms, count = task.loss(output, batch), task.counts(batch)["masked_nats"]
    total = 0.0
    for sample, frame in batch["mask"].nonzero().tolist():
        scores = output["clusters"][sample, frame, :5].detach().double()
        total += float(scores.logsumexp(0) - scores[batch["target"][sample, frame]])
    assert terms["masked_nats"].item() == pytest.approx(total, rel=1e-4) and count == batch["mask"].sum()
    other = torch.where(batch["mask"], batch["target"], (batch["target"] + 1) % 5)
    assert torch.equal(task.loss(output, {**batch, "target": other})["masked_nats"], terms["masked_nats"])
    assert output["clusters"].detach().abs().max() <= 10.001  # cosines / 0.1
    metrics = task.metrics(output, batch)
    assert (metrics["majority"] <= 1).all() and metrics["majority"].mean() > 0.1


def test_the_second_iteration_clusters_features_of_a_copy_that_stays() -> None:
    task, run = build("hubert", clusters=5, feature_clusters=7), Sound()
    task.before_epoch(run)
    assert not task.labels_features and run.forgotten == []
    first = task.transform(recordings())["target"]
    vectors = task.head.vectors.detach().clone()
    task.clock = Clock(step=50, steps=101, epoch=3)
    task.before_epoch(run)
    assert task.labels_features and run.forgotten == [task.head] and not torch.equal(task.head.vectors, vectors)
    second = task.transform(recordings())["target"]
    assert second.max() == 6 and not torch.equal(first, second) and task.unused.sum() == 0
    with torch.no_grad():
        for parameter in task.encoder.parameters():
            parameter.add_(0.1)
    assert torch.equal(task.transform(recordings())["target"], second)
    centers = task.centers.clone()
    task.clock = Clock(step=60, steps=101, epoch=4)
    task.before_epoch(run)
    assert torch.equal(task.centers, centers)
    again = build("hubert", clusters=5, feature_clusters=7)
    again.load_state_dict(task.state_dict())
    assert torch.equal(again.transform(recordings())["target"], second)


def test_more_clusters_than_frames_are_refused() -> None:
    with pytest.raises(SslkitError, match="90 is too many for"):
        build("hubert", clusters=90).before_epoch(Sound())


def test_mixing_leaves_the_labels_and_half_of_the_recording() -> None:
    clean, task = build("wavlm", clusters=5, mix=0.0), build("wavlm", clusters=5, mix=1.0)
    for each in (clean, task):
        torch.manual_seed(2)
        each.before_epoch(Sound())
    batch, mixed = clean.transform(recordings()), task.transform(recordings())
    assert torch.equal(batch["target"], mixed["target"]) and torch.equal(batch["audio"], recordings()["audio"][:, 0])
    assert torch.equal(mixed["recorded"], batch["recorded"])  # although noise follows the last recording, which is short
    changed = batch["audio"] != mixed["audio"]
    share = changed.float().mean(dim=1)
    assert (share[:-1] > 0).any() and (share <= 0.5).all()


def test_levels_of_a_mix() -> None:
    torch.manual_seed(3)
    sound, added = torch.randn(3, 1000), 5 * torch.randn(3, 1000)
    inside = torch.zeros(3, 1000, dtype=torch.bool)
    inside[:, 200:600] = True
    decibels = torch.tensor([[-5.0], [0.0], [20.0]])
    part = mix(sound, added, inside, decibels) - sound
    energies = [each[:, 200:600].square().sum(dim=1, keepdim=True) for each in (sound, part)]
    assert torch.allclose(10 * (energies[0] / energies[1]).log10(), decibels, atol=1e-3)
    assert not part[:, :200].any() and not part[:, 600:].any()
    assert torch.equal(mix(sound, torch.zeros_like(sound), inside, decibels), sound)


def test_contrastive_loss_against_a_loop() -> None:
    task = build("wav2vec2", entries=4, negatives=7, width=8, penalty=0.0)
    batch = task.transform(recordings())
    output = task.predict(batch)
    terms = task.loss(output, batch)
    total = 0.0
    for sample, frame in batch["mask"].nonzero().tolist():
        context, codes, numbers = (output[name][sample].detach() for name in ("context", "code", "numbers"))
        scores = [float(context[frame] @ codes[frame]) / 0.1]
        for other in batch["negatives"][sample, frame].tolist():
            assert other != frame and batch["mask"][sample, other]
            if not torch.equal(numbers[other], numbers[frame]):
                scores.append(float(context[frame] @ codes[other]) / 0.1)
        total += math.log(sum(math.exp(score - scores[0]) for score in scores))
    assert terms["masked_nats"].item() == pytest.approx(total, rel=1e-4)


def test_diversity_and_perplexity() -> None:
    task = build("wav2vec2", entries=4, groups=2)
    batch = task.transform(recordings())
    output = task.predict(batch)
    count = batch["recorded_count"][:, None, None]
    uniform = {**output, "probability": (count / 4).expand(6, 2, 4)}
    assert task.loss(uniform, batch)["diversity"].item() == pytest.approx(0, abs=1e-5)
    single = {**output, "probability": count * F.one_hot(torch.zeros(6, 2, dtype=torch.int64), 4)}
    assert task.loss(single, batch)["diversity"].item() == pytest.approx(0.1 * 3 / 4, rel=1e-4)
    frames = batch["recorded"].shape[1]
    cycle = torch.arange(frames).expand(6, -1)[..., None].expand(-1, -1, 2) % 4
    perplexity = task.metrics({**output, "numbers": cycle}, batch)["code_perplexity"]
    assert perplexity[0].item() == pytest.approx(4, rel=0.02)
    same = task.metrics({**output, "numbers": torch.zeros_like(cycle)}, batch)
    assert same["code_perplexity"][0].item() == pytest.approx(1, abs=1e-4) and not same["accuracy"].any()


def test_codes_are_single_entries_with_the_gradient_of_a_softmax() -> None:
    torch.manual_seed(4)
    quantizer = Quantizer(16, 2, 5, 8)
    frames, noise = torch.randn(2, 3, 16), torch.randn(2, 3, 2, 5)
    codes, numbers, probability = quantizer(frames, noise, 1.0)
    scores = quantizer.choose(frames).unflatten(2, (2, 5))
    assert torch.equal(numbers, (scores + noise).argmax(dim=3)) and torch.allclose(probability, scores.softmax(dim=3))
    chosen = torch.cat([quantizer.codes[group][numbers[..., group]] for group in range(2)], dim=2)
    assert torch.allclose(codes, quantizer.project(chosen), atol=1e-5)
    codes.sum().backward()
    assert quantizer.choose.weight.grad is not None and quantizer.choose.weight.grad.any()


def test_negatives_of_few_masked_frames() -> None:
    mask = torch.tensor([[False, True, False, True], [False, False, True, False]])
    places = other_masked(mask, 5)
    assert places[0, 1].tolist() == [3] * 5 and places[0, 3].tolist() == [1] * 5 and places[1, 2].tolist() == [2] * 5
