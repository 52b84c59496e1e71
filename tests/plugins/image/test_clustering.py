"""Tasks of clustering: labels, reassignment and reset of the classifier. swav: prototypes, codes, queue."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_run import FakeRun
from pydantic import Field

from sslkit import SslkitError, load, read_model
from sslkit.image.examples import example_checkpoint
from sslkit.nn import sinkhorn, swapped_prediction
from sslkit.tasks.load import load_task
from sslkit.testing import check_task
from tests.canvases import canvases


def grouped_features(samples: int = 64, groups: int = 4, width: int = 64) -> torch.Tensor:
    centers = 5 * torch.randn(groups, width, generator=torch.Generator().manual_seed(0))
    return centers[torch.arange(samples) % groups] + 0.1 * torch.randn(samples, width)


def test_deepcluster_labels_groups_and_resets_the_classifier(build: Callable[..., Any]) -> None:
    task, run = build("deepcluster", clusters=4, components=3), FakeRun(grouped_features())
    before = task.head.weight.clone()
    task.before_epoch(run)
    for group in range(4):
        assert len(task.label[group::4].unique()) == 1
    assert len(task.label.unique()) == 4
    assert torch.equal(run.balanced, task.label) and run.forgotten == [task.head] and run.encoder is None
    assert not torch.equal(task.head.weight, before) and float(task.head.weight.detach().std()) == pytest.approx(0.01, rel=0.2)
    batch = task.transform(canvases(torch.rand(5, 3, 36, 36), index=torch.tensor([3, 9, 3, 60, 0])))
    assert torch.equal(batch["label"], task.label[[3, 9, 3, 60, 0]])


def test_deepcluster_keeps_labels_between_clusterings(build: Callable[..., Any]) -> None:
    task = build("deepcluster", clusters=4, reassign=3)
    clustered = []
    for epoch in range(7):
        run = FakeRun(grouped_features())
        task.clock.epoch = epoch
        task.before_epoch(run)
        clustered.append(run.balanced is not None)
    assert clustered == [True, False, False, True, False, False, True]


def test_deepcluster_of_edges(build: Callable[..., Any]) -> None:
    task = build("deepcluster", sobel=True).eval()
    assert task.encoder.recipe["select"] == "sobel"
    image = torch.rand(2, 3, 32, 32) * 0.8
    assert torch.allclose(task.encoder(image), task.encoder(image + 0.1), atol=1e-4)  # edges ignore brightness
    with pytest.raises(SslkitError, match="--sobel: the images have 1 channels"):
        build("deepcluster", sobel=True, channels=1)


def test_deepercluster_divides_groups_into_clusters(build: Callable[..., Any]) -> None:
    task, run = build("deepercluster", clusters=8, groups=2, components=3, reassign=2), FakeRun(grouped_features())
    task.before_epoch(run)
    both, group = task.label, task.label // 4
    kinds = torch.arange(64) % 4
    assert all(len(kinds[both == label].unique()) == 1 for label in both.unique())
    assert all(len(group[kinds == kind].unique()) == 1 for kind in range(4))
    assert len(group.unique()) == 2 and len(both.unique()) == 8
    assert torch.equal(run.balanced, both) and run.forgotten == [task.head]
    assert float(task.head.weight.detach().std()) == pytest.approx(0.01, rel=0.2) and task.head.bias.abs().max() == 0
    task.clock.epoch, again = 1, FakeRun(grouped_features())
    task.before_epoch(again)
    assert again.balanced is None
    with pytest.raises(SslkitError, match="--groups: 5 exceeds the 4 clusters"):
        build("deepercluster", clusters=4, groups=5)
    assert (
        build("deepercluster", clusters=2).groups == 2
        and build("deepercluster", sobel=True).encoder.recipe["select"] == "sobel"
    )


def test_deepercluster_loss_against_a_loop(build: Callable[..., Any]) -> None:
    task = build("deepercluster", clusters=6, groups=2)  # 8 superclasses of 3 clusters
    task.label.copy_(3 * (torch.arange(64) % 2) + torch.arange(64) // 2 % 3)
    index = torch.tensor([3, 9, 60])
    batch = task.transform(canvases(torch.rand(3, 3, 36, 36), index=index))
    assert batch["image"].shape == (3, 4, 3, 32, 32)
    output = torch.randn(3, 4, 8 + 24)
    superclass, cluster, right = [], [], torch.zeros(3, 4)
    for row, image in enumerate(index.tolist()):
        for rotation in range(4):
            scores, expected = output[row, rotation], 4 * (image % 2) + rotation
            of_superclass = scores[8 + 3 * expected : 8 + 3 * expected + 3]  # of the superclass's own classifier
            superclass.append(-F.log_softmax(scores[:8], dim=0)[expected])
            cluster.append(-F.log_softmax(of_superclass, dim=0)[image // 2 % 3])
            right[row, rotation] = int(scores[:8].argmax()) == expected and int(of_superclass.argmax()) == image // 2 % 3
    terms = task.loss(output, batch)
    assert torch.allclose(terms["superclass"], torch.stack(superclass).mean())
    assert torch.allclose(terms["cluster"], torch.stack(cluster).mean())
    assert torch.equal(task.metrics(output, batch)["accuracy"], right.mean(dim=1))
    assert task.chance() == {"accuracy": 1 / 24, "superclass_accuracy": 1 / 8}


def test_clusterfit_clusters_the_teacher_once(build: Callable[..., Any], tmp_path: Path) -> None:
    teacher = example_checkpoint(tmp_path)
    task, run = build("clusterfit", clusters=4, teacher=str(teacher)), FakeRun(grouped_features())
    task.before_epoch(run)
    labels = task.label.clone()
    assert len(labels.unique()) == 4 and len(labels[::4].unique()) == 1
    assert all(torch.equal(value, load(teacher).state_dict()[name]) for name, value in run.encoder.state_dict().items())
    assert run.balanced is None
    task.clock.epoch = 1
    task.before_epoch(FakeRun(torch.randn(64, 8)))
    assert torch.equal(task.label, labels)


def test_clusterfit_refuses_an_unsuitable_teacher(
    build: Callable[..., Any], sslkit: Callable[..., Any], tmp_path: Path
) -> None:
    run = sslkit("pretrain", "clusterfit", "--data", tmp_path)
    assert run.code == 2 and "--teacher is missing" in run.err
    with pytest.raises(SslkitError, match=r"--teacher: nowhere\.safetensors is not a file"):
        build("clusterfit", teacher="nowhere.safetensors").before_epoch(FakeRun())
    teacher = example_checkpoint(tmp_path)
    with pytest.raises(SslkitError, match="--teacher: the teacher expects 3 channels, the data has 1"):
        build("clusterfit", teacher=teacher, channels=1).before_epoch(FakeRun())
    with pytest.raises(SslkitError, match="--teacher: the teacher was trained at 32 px, the images are 64 px"):
        build("clusterfit", teacher=teacher, size=64).before_epoch(FakeRun())


def test_clusterfit_resumes_without_its_teacher(
    sslkit: Callable[..., Any], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher, out = example_checkpoint(tmp_path), tmp_path / "run"
    flags = ["clusterfit", "--data", digits, "--size", 32, "--batch-size", 16, "--workers", 0, "--encoder-option", "width=8"]
    assert sslkit("pretrain", *flags, "--out", out, "--epochs", 1, "--clusters", 4, "--teacher", "model.safetensors").code == 0
    assert json.loads((out / "spec.json").read_text())["options"]["teacher"] == str(teacher)
    assert "teacher" not in read_model(out / "model.safetensors").metadata["spec"]["options"]  # a path of this machine
    teacher.unlink()
    run = sslkit("pretrain", "clusterfit", "--extend-to", 2, "--out", out)
    assert run.code == 0, run.err
    assert sslkit("preview", "--ckpt", out / "model.safetensors", "--out", "p.png").code == 0
    assert sslkit("preview", "clusterfit", "--clusters", 4, "--ckpt", out / "model.safetensors").code == 0
    missing = sslkit("pretrain", "clusterfit", "--resume", "--data", digits, "--out", tmp_path / "none")
    assert missing.code == 2 and "--teacher is missing" in missing.err


@pytest.mark.parametrize("name", ["deepcluster", "clusterfit"])
def test_more_clusters_than_images_are_refused(build: Callable[..., Any], name: str, tmp_path: Path) -> None:
    options = {"teacher": str(example_checkpoint(tmp_path))} if name == "clusterfit" else {}
    with pytest.raises(SslkitError, match="--clusters: 65 exceeds the 64 training samples"):
        build(name, clusters=65, **options)
    assert build(name, samples=64, **options).clusters == 6 and build(name, samples=5000, **options).clusters == 100


@pytest.mark.parametrize(("crops", "size", "views", "small"), [("2+6", 32, 8, 16), ("2+0", 32, 2, 16), ("2+2", 224, 4, 96)])
def test_swav_crops(build: Callable[..., Any], crops: str, size: int, views: int, small: int) -> None:
    task = build("swav", crops=crops, size=size, prototypes=10).eval()
    batch = task.transform(canvases(torch.rand(2, 3, size + 4, size + 4)))
    assert batch["image"].shape == (2, 2, 3, size, size)
    assert task.crops.small_size == small and ("small" in batch) == (views > 2)
    if views > 2:
        assert batch["small"].shape == (2, views - 2, 3, small, small)
    output = task.predict(batch)
    assert output.shape == (2, views, 128) and torch.allclose(output.norm(dim=2), torch.ones(2, views), atol=1e-5)


def test_swav_loss_against_its_parts(build: Callable[..., Any]) -> None:
    task = build("swav", prototypes=6)
    output = F.normalize(torch.randn(5, 4, 128), dim=2)
    scores = output @ task.prototypes.T
    codes = torch.stack([sinkhorn(scores[:, view], 0.05, 3) for view in range(2)], dim=1)
    assert torch.allclose(task.loss(output, {}), swapped_prediction(scores, codes, 0.1))


def test_swav_codes_use_the_queue_once_it_is_full(build: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    task = build("swav", prototypes=6, queue=8, queue_from=2)
    output = F.normalize(torch.randn(4, 2, 128), dim=2)
    alone = task._codes(output)
    for step, epoch, used in ((0, 2, False), (1, 2, False), (2, 1, False), (2, 2, True)):
        task.clock.step, task.clock.epoch = step, epoch
        assert torch.equal(task._codes(output), alone) != used
    vectors = torch.cat([output[:, 1], task.queues[1].rows])
    expected = sinkhorn(vectors @ task.prototypes.T, 0.05, 3)[:4]
    assert torch.allclose(task._codes(output)[:, 1], expected)
    with torch.no_grad():
        task.after_step({"large": output})
    assert torch.allclose(task.queues[0].rows[:4], output[:, 0]) and torch.allclose(task.queues[1].rows[:4], output[:, 1])


class WithQueue(load_task("swav")):  # type: ignore[misc]
    """SwAV with a queue that is used from the first epoch."""

    class Options(load_task("swav").Options):  # type: ignore[misc]
        queue: int = Field(default=12, ge=0, description="Past images that codes are computed with.")
        queue_from: int = Field(default=0, ge=0, description="First epoch in which the queue is used.")


def test_swav_with_a_queue_keeps_the_contract() -> None:
    assert not [verdict for verdict in check_task(WithQueue) if not verdict.passed]


@pytest.mark.slow
def test_swav_with_a_queue_keeps_the_contract_in_full() -> None:
    assert not [verdict for verdict in check_task(WithQueue, full=True) if not verdict.passed]


def test_swav_prototypes_have_unit_length_and_are_frozen_at_first(
    sslkit: Callable[..., Any], digits: Path, tmp_path: Path, quick: list[str]
) -> None:
    def prototypes(steps: int) -> torch.Tensor:
        flags = ["swav", "--data", digits, "--steps", steps, "--queue", 16, "--queue-from", 1, "--prototypes", 12, *quick]
        assert sslkit("pretrain", *flags, "--out", tmp_path / str(steps)).code == 0
        state = torch.load(tmp_path / str(steps) / "resume.pt", weights_only=True)["task"]
        assert "queues.0.rows" in state
        encoder = load(tmp_path / str(steps) / "model.safetensors")
        assert encoder.width == 64  # without prototypes and projector
        return state["prototypes"]

    first, frozen, moved = prototypes(1), prototypes(3), prototypes(6)  # three steps are an epoch
    assert torch.allclose(first, frozen, atol=1e-6) and not torch.allclose(frozen, moved, atol=1e-4)
    assert torch.allclose(moved.norm(dim=1), torch.ones(12), atol=1e-5)
