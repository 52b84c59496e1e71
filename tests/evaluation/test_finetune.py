"""Fine-tuning: what learns and what does not, several labels, seeds and shares, resume."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sslkit import SslkitError
from sslkit.contract.errors import RunInterruptedError
from sslkit.contract.task import DataInfo
from sslkit.encoders.build import build_encoder
from sslkit.encoders.drop_path import drop_paths
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.checkpoint import read_model
from sslkit.engine.run_folder import METRICS, SPEC
from sslkit.engine.stepper import Stepper
from sslkit.evaluation.finetune import finetune
from sslkit.evaluation.knn import knn
from sslkit.evaluation.supervised import Supervised
from sslkit.image.augmentation import ImageAugmentation
from sslkit.nn.sync_batchnorm import convert_sync_batchnorm
from sslkit.specs.evaluation import KnnSpec
from sslkit.specs.train import FinetuneSpec
from tests.canvases import canvases

Run = Callable[..., Any]


def finetune_spec(digits: Path, out: Path, **changes: Any) -> FinetuneSpec:
    quick = {"epochs": 6, "batch_size": 16, "workers": 0, "scratch": None if "ckpt" not in changes else False}
    return FinetuneSpec(data=str(digits), out=str(out), **{**quick, **changes})


def test_finetune_a_checkpoint_and_from_scratch(trained: Path, digits: Path, tmp_path: Path) -> None:
    result = finetune(finetune_spec(digits, tmp_path / "tuned", ckpt=str(trained), lr=3e-3))
    assert result.headline.value > 0.6 and (result.rows[0].n_train, result.headline.n, result.protocol) == (48, 12, None)
    checkpoint = read_model(result.checkpoint)
    assert checkpoint.metadata["classes"] == ["digit 0", "digit 1", "digit 2"]
    assert checkpoint.part("head")["weight"].shape == (3, 64)
    assert knn(KnnSpec(ckpt=result.checkpoint, k=3)).headline.n == 12  # its data is known, too
    scratch = finetune(
        finetune_spec(digits, tmp_path / "scratch", encoder="resnet_micro", size=16, encoder_option={"width": "8"})
    )
    assert scratch.headline.n == 12


def test_finetune_from_the_command_line(sslkit: Run, trained: Path, digits: Path, tmp_path: Path) -> None:
    ran = sslkit(
        "finetune", "--ckpt", trained, "--data", digits, "--out", tmp_path / "f", "--epochs", 1, "--batch-size", 16, "--json"
    )
    assert {"protocol", "rows", "data", "notes", "checkpoint"} <= set(ran.json)
    training = ran.json["rows"][0]["fits"][0]["training"]
    assert training["steps"] == 3 and training["run"] == str(tmp_path / "f") and training["samples_per_second"] > 0
    ran = sslkit("finetune", "--ckpt", trained, "--data", digits, "--encoder", "vit_micro", "--out", tmp_path / "g")
    assert ran.code == 2 and "the checkpoint holds resnet_micro" in ran.err
    assert "--ckpt and --init" in sslkit("finetune", "--ckpt", trained, "--init", trained, "--out", tmp_path / "g").err
    assert "there is no --ckpt" in sslkit("finetune", "--scratch", "--data", digits, "--out", tmp_path / "g").err
    assert not (tmp_path / "g").exists()


def supervised(labels: torch.Tensor | None = None, encoder: str = "resnet_micro", **settings: Any) -> Supervised:
    spec = FinetuneSpec(**{"lr": 0.1, **settings})
    torch.manual_seed(0)
    built = build_encoder(recipe_for(encoder, 16, 3, {"width": "8"} if encoder == "resnet_micro" else {}))
    labels = torch.tensor([0, 1, 2, 0]) if labels is None else labels
    return Supervised(spec, built, DataInfo(samples=4, size=16), labels, ("a", "b", "c"))


def batch() -> dict[str, torch.Tensor]:
    return canvases(torch.rand(4, 3, 16, 16), index=torch.arange(4))


def test_frozen_blocks_do_not_learn_and_keep_their_statistics() -> None:
    task = supervised(last_blocks=1).train()
    learning = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert learning and all(name.startswith(("encoder.blocks.3", "head")) for name in learning)
    before = {name: value.clone() for name, value in task.encoder.named_buffers()}
    task.predict(task.transform(batch()))
    changed = {name for name, value in task.encoder.named_buffers() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("blocks.3") for name in changed)
    assert all(not p.requires_grad for p in supervised(freeze_blocks=5).encoder.parameters())
    with pytest.raises(SslkitError, match="has 5 blocks, its stem counted"):
        supervised(freeze_blocks=6)


def test_batchnorm_in_eval_mode_learns_but_keeps_its_statistics() -> None:
    task = supervised(batchnorm="eval").train()
    before = {name: value.clone() for name, value in task.named_buffers()}
    task.predict(task.transform(batch()))
    assert all(torch.equal(value, before[name]) for name, value in task.named_buffers())
    assert all(parameter.requires_grad for parameter in task.parameters())


def test_the_head_learns_first() -> None:
    task = supervised(head_first=2).train()
    for epoch, learns in ((0, False), (1, False), (2, True)):
        task.clock.epoch = epoch
        task.transform(batch())
        assert all(parameter.requires_grad == learns for parameter in task.encoder.parameters())
        assert task.encoder.training == learns and task.head.weight.requires_grad


def test_learning_rates_fall_with_depth() -> None:
    groups = supervised(encoder_lr=0.5, layer_decay=0.1).param_groups()
    assert [group["lr"] for group in groups] == pytest.approx([0.05 * 0.1**place for place in (5, 4, 3, 2, 1)])
    assert supervised().param_groups() == []
    vit = supervised(encoder="vit_micro", layer_decay=0.5)
    assert len(vit.param_groups()) == 5  # patches and four blocks
    grouped = {id(parameter) for group in vit.param_groups() for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in vit.encoder.parameters()}


def test_losses_against_naive_loops() -> None:
    several = torch.tensor([[1, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]])
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    task = supervised(several, loss="multi-hot")
    expected = [-sum(logits[i].log_softmax(0)[c] / several[i].sum() for c in range(3) if several[i, c]) for i in range(3)]
    assert task.loss(logits, task.transform(batch())) == pytest.approx(float(sum(expected)) / 4)
    task = supervised(several)
    assert task.kind == "sigmoid"
    naive = [
        -float(F.logsigmoid(logits[i, c]) if several[i, c] else F.logsigmoid(-logits[i, c])) for i in range(4) for c in range(3)
    ]
    assert task.loss(logits, task.transform(batch())).item() == pytest.approx(sum(naive) / 12)
    smoothed = supervised(label_smoothing=0.3)
    assert smoothed.loss(logits, smoothed.transform(batch())).item() == pytest.approx(
        F.cross_entropy(logits, smoothed.labels, label_smoothing=0.3).item()
    )
    with pytest.raises(SslkitError, match="--loss: softmax needs one label"):
        supervised(several, loss="softmax")


def augment(spec: FinetuneSpec, image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, target = ImageAugmentation(spec, 16)(canvases(image), target)
    return batch["image"], target


def test_augmentation_changes_each_image_by_itself_and_mixes_targets() -> None:
    image, target = torch.rand(8, 3, 16, 16), F.one_hot(torch.arange(8) % 3, 3).float()
    torch.manual_seed(0)
    changed, same = augment(FinetuneSpec(randaugment=9, erasing=1.0), image, target)
    assert torch.equal(same, target) and changed.shape == image.shape
    holes = [(changed[i] == 0).all(dim=0).nonzero()[0].tolist() for i in range(8) if (changed[i] == 0).all(dim=0).any()]
    assert len({tuple(hole) for hole in holes}) > 1
    torch.manual_seed(0)
    mixed, shares = augment(FinetuneSpec(mixup=0.5), image, target)
    assert not torch.equal(mixed, image) and torch.allclose(shares.sum(dim=1), torch.ones(8))
    assert ((shares > 0) & (shares < 1)).any()
    torch.manual_seed(0)
    again, _ = augment(FinetuneSpec(mixup=0.5), image, target)
    assert torch.equal(again, mixed)


def test_dropped_paths() -> None:
    task = supervised(drop_path=0.5).train()
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in task.encoder.blocks]
    assert rates == pytest.approx([0, 1 / 6, 1 / 3, 0.5])
    image = torch.rand(2, 3, 16, 16)
    assert torch.equal(task.eval().encoder(image), task.encoder(image))
    with pytest.raises(SslkitError, match="no residual branches to skip"):
        drop_paths(build_encoder(recipe_for("vgg11", 32)), 0.1)


def test_averaged_weights_are_what_is_kept() -> None:
    task = supervised(ema=0.5).train()
    assert task.exports()["encoder"] is not task.encoder
    with torch.no_grad():
        for parameter in task.encoder.parameters():
            parameter.add_(1)
    before = next(task.exports()["encoder"].parameters()).clone()
    task.clock.step = 100
    task.after_step({})
    after = next(task.exports()["encoder"].parameters())
    assert torch.allclose(after, before + 0.5)


def test_protocols_of_fine_tuning(trained: Path, digits: Path, tmp_path: Path) -> None:
    from sslkit.evaluation.protocols import FINETUNE_PROTOCOLS
    from sslkit.evaluation.protocols import finetune_protocol as protocol_of
    from sslkit.evaluation.protocols import with_protocol_values as resolved

    assert protocol_of(resolved(FinetuneSpec())) == "finetune/full-v1"
    assert protocol_of(resolved(FinetuneSpec(protocol="finetune/partial-v1", data="x", seed=3))) == "finetune/partial-v1"
    assert resolved(FinetuneSpec(protocol="finetune/partial-v1")).last_blocks == 1
    for by_hand in (
        {"lr": 0.1},
        {"loss": "sigmoid"},
        {"micro_batch": 4},
        {"canvas": 64},
        {"recipe": "strong"},
        {"steps": 3},
        {"size": 64},
        {"shares": 0.5},
    ):
        assert protocol_of(resolved(FinetuneSpec(**by_hand))) is None
    assert protocol_of(resolved(FinetuneSpec(part="text"))) == "finetune/full-v1"  # another start
    assert protocol_of(resolved(FinetuneSpec(seeds=2))) == "finetune/full-v1"  # more of the same
    assert protocol_of(resolved(FinetuneSpec(seeds=2, protocol="finetune/fewlabel-v1"))) is None  # three are part of it
    # Another value here is another protocol: a new id, not a new default.
    assert FINETUNE_PROTOCOLS[0].id == "finetune/full-v1" and FINETUNE_PROTOCOLS[0].settings == {
        "batch_size": 64,
        "epochs": 20,
        "steps": None,
        "minutes": None,
        "micro_batch": "auto",
        "optimizer": "adamw",
        "lr": 0.001,
        "lr_scale": "none",
        "betas": "0.9,0.999",
        "sgd_momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.05,
        "weight_decay_end": None,
        "warmup": 0.05,
        "clip": None,
        "clip_by": "group",
        "precision": "auto",
        "extend_to": None,
        "recipe": "plain",
        "loss": "auto",
        "encoder_lr": 1.0,
        "layer_decay": 1.0,
        "head_first": 0,
        "freeze_blocks": 0,
        "last_blocks": None,
        "batchnorm": "train",
        "crop_scale": 0.6,
        "label_smoothing": 0.0,
        "drop_path": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "randaugment": 0,
        "erasing": 0.0,
        "ema": 0.0,
        "shares": [1.0],
        "seeds": 1,
    }
    few = resolved(FinetuneSpec(protocol="finetune/fewlabel-v1"))
    assert (few.shares, few.seeds) == ([0.01, 0.1], 3)
    assert resolved(FinetuneSpec(recipe="strong", mixup=0.0)).mixup == 0.0


@pytest.mark.slow
def test_shares_seeds_and_scratch(trained: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "few"
    spec = finetune_spec(digits, out, ckpt=str(trained), epochs=1, batch_size=4, shares=[0.25, 0.5], seeds=2, scratch=True)
    result = finetune(spec)
    names = ["fine-tuned, 25% of the labels", "fine-tuned, 50% of the labels", "from scratch, 25% of the labels"]
    assert [row.model for row in result.rows[:3]] == names and len(result.rows) == 4
    assert [row.n_train for row in result.rows] == [12, 24, 12, 24]
    assert result.headline.deviation is not None and set(result.rows[2].comparisons) == {names[0]}
    assert (
        sorted(path.name for path in out.iterdir() if path.is_dir())[0] == "scratch-share-25-seed-0"
        and len(list(out.glob("*/"))) == 8
    )
    again = finetune(spec.model_copy(update={"resume": True}))
    assert [row.metrics for row in again.rows] == [row.metrics for row in result.rows]
    with pytest.raises(SslkitError, match="holds a run"):
        finetune(spec)


@pytest.mark.slow
def test_from_scratch_too_where_that_takes_a_minute_at_most(
    trained: Path, digits: Path, tmp_path: Path, sslkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--ckpt", trained, "--data", digits, "--steps", 2, "--batch-size", 16, "--workers", 0]
    ran = sslkit("finetune", *flags, "--out", tmp_path / "short")
    assert ran.code == 0 and "also training from random weights for comparison" in ran.err and "from scratch" in ran.out
    for folder in ("short", "short/scratch"):  # a single training from the checkpoint has the folder for itself
        assert (tmp_path / folder / "model.safetensors").exists()
    with monkeypatch.context() as patch:
        patch.setattr("sslkit.evaluation.finetune._AFFORDABLE", -1.0)  # as if it had taken long
        again = sslkit("finetune", "--resume", "--out", tmp_path / "short")
        assert again.out.splitlines()[:5] == ran.out.splitlines()[:5] and "from scratch" in again.out  # what was begun goes on
        ran = sslkit("finetune", *flags, "--out", tmp_path / "long")
        assert "add it with --resume --scratch" in ran.err and "from scratch" not in ran.out
        following = f"sslkit finetune --resume --scratch --out {tmp_path / 'long'}"
        assert following in ran.out
        assert "from scratch" in sslkit(*following.split()[1:]).out
    ran = sslkit("finetune", *flags, "--no-scratch", "--out", tmp_path / "none")
    assert ran.code == 0 and "from scratch" not in ran.out and not (tmp_path / "none" / "scratch").exists()


def test_a_single_training_in_a_subfolder_is_refused(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    flags = ["--ckpt", trained, "--data", digits, "--steps", 1, "--batch-size", 16, "--workers", 0, "--no-scratch"]
    out, former = tmp_path / "run", tmp_path / "run" / "share-100-seed-0"
    assert sslkit("finetune", *flags, "--out", former).code == 0
    shutil.copy(former / SPEC, out / SPEC)  # as earlier versions left it
    ran = sslkit("finetune", "--resume", "--out", out)
    assert ran.code == 2 and f"{former} was written by an earlier version" in ran.err.replace("\n", " ")
    assert not (out / METRICS).exists()


def test_several_labels_in_one_cell(trained: Path, tmp_path: Path, digits: Path, sslkit: Run) -> None:
    rows = ["path,label"]
    for path in sorted((digits / "train").rglob("*.png")):
        digit = path.parent.name.split()[-1]
        rows.append(f"{path},{'round;' if digit == '0' else ''}{'even' if int(digit) % 2 == 0 else 'odd'}")
    table = tmp_path / "several.csv"
    table.write_text("\n".join(rows) + "\n")
    settings = [
        "--ckpt",
        trained,
        "--data",
        table,
        "--label",
        "label",
        "--epochs",
        8,
        "--batch-size",
        12,
        "--lr",
        0.003,
        "--no-scratch",
        "--json",
    ]
    result = sslkit("finetune", *settings, "--out", tmp_path / "run", "--json").json
    (row,) = result["rows"]
    metrics = {metric["name"]: metric["value"] for metric in row["metrics"]}
    assert metrics["mAP"] > 0.8 and "macro F1" not in metrics and set(row["by_class"]) == {"even", "odd", "round"}
    assert "only finetune accepts them" in sslkit("knn", "--ckpt", trained, "--data", table, "--label", "label").err
    ran = sslkit("finetune", *settings, "--loss", "softmax", "--out", tmp_path / "soft")
    assert ran.code == 2 and "--loss: softmax" in ran.err


def test_strong_recipe_stopped_while_the_head_learns_first_resumes_bit_equal(
    trained: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run
) -> None:
    from safetensors.torch import load_file

    settings = {"ckpt": str(trained), "recipe": "strong", "epochs": 3, "head_first": 1, "lr": 0.002}
    whole = finetune(finetune_spec(digits, tmp_path / "whole", **settings))
    training = whole.rows[0].fits[0].training
    assert whole.protocol is None and training is not None and np.isfinite(training.loss or np.nan)
    with stopped_after(2, monkeypatch) as message:
        finetune(finetune_spec(digits, tmp_path / "parts", **settings))
    assert f"--resume --out {tmp_path / 'parts'}" in message[0]
    # As printed: nothing but the folder.
    parts = sslkit("finetune", "--resume", "--out", tmp_path / "parts", "--json").json
    assert parts["protocol"] is None and parts["settings"] == whole.settings
    assert parts["rows"][0]["fits"][0]["training"]["steps"] == training.steps
    whole_weights, resumed_weights = load_file(whole.checkpoint), load_file(parts["checkpoint"])
    assert all(torch.equal(whole_weights[name], resumed_weights[name]) for name in whole_weights)
    assert parts["rows"][0]["metrics"][0]["value"] == whole.headline.value
    ran = sslkit("finetune", "--resume", "--out", tmp_path / "parts", "--lr", 0.5)
    assert ran.code == 2 and "--lr 0.5 (the run has 0.002)" in ran.err


def test_several_trainings_go_on_where_they_were_stopped(
    trained: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run
) -> None:
    settings = {"ckpt": str(trained), "epochs": 1, "seeds": 2, "shares": [0.5], "batch_size": 8, "seed": 3}
    whole = finetune(finetune_spec(digits, tmp_path / "whole", **settings))
    with stopped_after(5, monkeypatch):  # in the second training
        finetune(finetune_spec(digits, tmp_path / "parts", **settings))
    parts = sslkit("finetune", "--resume", "--out", tmp_path / "parts", "--json").json
    assert [row["metrics"][0]["value"] for row in parts["rows"]] == [row.headline.value for row in whole.rows]
    assert [fit["seed"] for fit in parts["rows"][0]["fits"]] == [3, 4]


def test_a_resumed_run_keeps_its_id(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    flags = ["--ckpt", trained, "--data", digits, "--out", tmp_path / "run", "--batch-size", 24]
    assert sslkit("finetune", *flags, "--epochs", 1, "--json").json["protocol"] is None
    assert sslkit("finetune", "--resume", "--out", tmp_path / "run", "--json").json["protocol"] is None
    from sslkit.engine.parallel import ALONE
    from sslkit.engine.precision import choose_machine
    from sslkit.evaluation.finetune import _with_auto
    from sslkit.evaluation.protocols import finetune_protocol
    from sslkit.evaluation.splits import find_labeled
    from sslkit.image.source import ImageSource

    precision = choose_machine("auto").precision
    recorded = FinetuneSpec(size=16, canvas=16, precision=precision, data=str(digits))
    checkpoint = read_model(trained)
    parts = find_labeled(recorded, [], checkpoint)
    requested = _with_auto(recorded, checkpoint, parts, ImageSource, ALONE)
    assert finetune_protocol(requested) == "finetune/full-v1"
    assert finetune_protocol(requested.updated({"canvas": 20})) is None


@contextmanager
def stopped_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Send the signal of Ctrl-C after so many steps, of all trainings together."""
    step, taken, message = Stepper.step, [0], list[str]()

    def counted(self: Stepper, raw: Any) -> dict[str, float]:
        metrics = step(self, raw)
        taken[0] += 1
        if taken[0] == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return metrics

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", counted)
        with pytest.raises(RunInterruptedError) as stopped:
            yield message
        message.append(str(stopped.value))


def test_frozen_norms_stay_frozen_when_they_are_synchronized() -> None:
    task = supervised(last_blocks=1)
    convert_sync_batchnorm(task)
    norms = {name: norm for name, norm in task.train().encoder.named_modules() if "norm" in name}
    assert {name for name, norm in norms.items() if norm.training} == {name for name in norms if name.startswith("blocks.3")}
    task = supervised(batchnorm="eval")
    convert_sync_batchnorm(task)
    assert not any(norm.training for name, norm in task.train().encoder.named_modules() if "norm" in name)


def test_an_encoder_of_one_block_has_no_last_one(digits: Path, tmp_path: Path, sslkit: Run) -> None:
    flags = ["--encoder", "torchvision:resnet18", "--size", 32, "--data", digits, "--epochs", 1, "--batch-size", 16]
    ran = sslkit("finetune", *flags, "--protocol", "finetune/partial-v1", "--out", tmp_path / "x")
    assert ran.code == 2 and "torchvision:resnet18 is not divided into blocks" in ran.err and not (tmp_path / "x").exists()
    ran = sslkit("finetune", "--minutes", 1, "--head-first", 1, "--data", digits, "--out", tmp_path / "x")
    assert ran.code == 2 and "--minutes and --head-first" in ran.err


def test_duplicates_of_images_that_are_not_square_are_counted(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        (tmp_path / part / name).mkdir(parents=True)
        for number in range(8):
            image = Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8))
            image.save(tmp_path / part / name / f"{number}.png")
    shutil.copy(tmp_path / "train" / "a" / "3.png", tmp_path / "test" / "a" / "copy.png")
    spec = FinetuneSpec(data=str(tmp_path), encoder="resnet_micro", steps=1, batch_size=4, size=16, out=str(tmp_path / "run"))
    assert finetune(spec).data.tests[0].duplicates == 1
