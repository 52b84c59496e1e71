"""k-NN, probe and fine-tuning: right numbers, honest parts, one line for what can't be evaluated."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslkit import FinetuneSpec, KnnSpec, ProbeSpec, SslkitError, finetune, knn, probe
from sslkit.evaluate.data import find_labelled, open_evaluation, stratified_split
from sslkit.evaluate.knn import weighted_knn
from sslkit.evaluate.probe import choose_c

Run = Callable[..., Any]


def test_knn_against_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(60, 5, generator=generator), torch.randn(17, 5, generator=generator)
    labels = torch.randint(0, 4, (60,), generator=generator)
    ours = weighted_knn(train, labels, test, k=7, temperature=0.1, classes=4, chunk=5)
    for query, predicted in zip(test, ours, strict=True):
        similar = sorted(
            ((float(torch.cosine_similarity(query, row, dim=0)), int(label)) for row, label in zip(train, labels, strict=True)),
            reverse=True,
        )
        votes = [0.0] * 4
        for similarity, label in similar[:7]:
            votes[label] += math.exp(similarity / 0.1)
        assert int(predicted) == votes.index(max(votes))


def test_knn_and_probe_of_a_run(sslkit: Run, trained: Path) -> None:
    for command, chance in (("knn", 1 / 3), ("probe", 1 / 3)):
        flags = ["--k", 5] if command == "knn" else []
        ran = sslkit(command, "--ckpt", trained, "--json", *flags)
        result = ran.json
        assert {"protocol", "top1", "n_train", "n_test", "checkpoint"} <= set(result)
        assert (result["n_train"], result["n_test"], result["test_seen_in_pretraining"]) == (48, 12, False)
        assert result["protocol"] == {"knn": None, "probe": "probe/logreg-v1"}[command]
        assert result["top1"] > chance + 0.3
        assert "test part: test of" in ran.err
    lines = [json.loads(line) for line in (trained.parent / "results.jsonl").read_text().splitlines()]
    assert {line["command"] for line in lines} == {"knn", "probe"} and len({line["weights"] for line in lines}) == 1


def test_protocol_id_only_for_untouched_settings(trained: Path) -> None:
    assert knn(KnnSpec(ckpt=str(trained))).protocol == "knn/weighted-v1"
    assert knn(KnnSpec(ckpt=str(trained), temperature=0.07)).protocol is None
    assert probe(ProbeSpec(ckpt=str(trained), c=1.0)).protocol is None


def test_evaluation_never_writes_into_the_checkpoint(trained: Path) -> None:
    before = trained.read_bytes()
    knn(KnnSpec(ckpt=str(trained), k=3))
    assert trained.read_bytes() == before


def test_features_change_nothing(trained: Path) -> None:
    evaluation = open_evaluation(KnnSpec(ckpt=str(trained)))
    encoder = evaluation.encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    one, other = evaluation.features(), evaluation.features()
    assert torch.equal(one.train, other.train) and not one.train.requires_grad
    assert encoder.training
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_data_without_a_test_part_is_split_and_said_to_be_seen(
    digits: Path, tmp_path: Path, sslkit: Run, quick: list[str]
) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(digits / "train", flat)
    assert sslkit("pretrain", "rotation", "--data", flat, "--out", tmp_path / "run", "--epochs", 1, *quick).code == 0
    ran = sslkit("knn", "--ckpt", tmp_path / "run" / "model.safetensors", "--k", 3, "--json")
    assert ran.json["test_seen_in_pretraining"] is True and (ran.json["n_train"], ran.json["n_test"]) == (39, 9)
    assert "a fifth of each class" in ran.err and "seen in pretraining" in ran.err


def test_split_is_stratified_seeded_and_disjoint(digits: Path) -> None:
    from sslkit.data.parts import read_index

    index = read_index(str(digits / "train"))
    kept, held_out = stratified_split(index, 0.25, seed=1)
    assert np.bincount(held_out.labels).tolist() == [4, 4, 4]  # type: ignore[arg-type]
    assert not set(kept.paths) & set(held_out.paths)
    assert stratified_split(index, 0.25, seed=1)[1].paths == held_out.paths
    assert stratified_split(index, 0.25, seed=2)[1].paths != held_out.paths


def test_test_labels_count_in_the_training_classes(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "test" / "digit 2", tmp_path / "only" / "digit 2")
    shutil.copytree(digits / "test" / "digit 0", tmp_path / "only" / "digit 0")
    parts = find_labelled(KnnSpec(ckpt="x", data=str(digits)), str(tmp_path / "only"), None)
    assert parts.test.labels is not None and sorted(set(parts.test.labels.tolist())) == [0, 2]


def test_c_is_chosen_on_training_data() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    useful = labels[:, None] + 0.3 * rng.normal(size=(100, 1))
    features = np.hstack([useful, 5 * rng.normal(size=(100, 400))])  # noise that only a strong penalty keeps out
    assert choose_c(features, labels, seed=0) < choose_c(useful * 0.01, labels, seed=0)  # small numbers want large weights


def test_a_moved_checkpoint_asks_for_data(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    moved = tmp_path / "model.safetensors"
    moved.write_bytes(trained.read_bytes())
    assert "--data is missing" in sslkit("knn", "--ckpt", moved).err
    assert sslkit("knn", "--ckpt", moved, "--data", digits, "--k", 3, "--json").json["n_test"] == 12
    assert not (tmp_path / "results.jsonl").exists()


def test_changed_data_is_noticed(digits: Path, tmp_path: Path, sslkit: Run, quick: list[str]) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    assert sslkit("pretrain", "rotation", "--data", data, "--out", tmp_path / "run", "--epochs", 1, *quick).code == 0
    next((data / "train" / "digit 0").iterdir()).unlink()
    ran = sslkit("knn", "--ckpt", tmp_path / "run" / "model.safetensors")
    assert ran.code == 2 and "is no longer what the run saw" in ran.err


def test_the_part_of_a_test_folder_that_is_no_training_data(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    shutil.copytree(digits / "test", tmp_path / "other" / "val")
    shutil.copytree(digits / "train", tmp_path / "other" / "train")
    ran = sslkit("knn", "--ckpt", trained, "--data", digits, "--test", tmp_path / "other", "--k", 3, "--json")
    assert ran.json["n_test"] == 12 and "test part: val of" in ran.err
    ran = sslkit("knn", "--ckpt", trained, "--data", digits, "--test", digits / "train", "--k", 3, "--json")
    assert ran.json["test_seen_in_pretraining"] is True


def test_what_cannot_be_evaluated(trained: Path, digits: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(digits / "train" / "digit 0", flat)
    with pytest.raises(SslkitError, match="has no labels"):
        probe(ProbeSpec(ckpt=str(trained), data=str(flat)))
    with pytest.raises(SslkitError, match="has one class only"):
        shutil.copytree(digits / "train" / "digit 0", tmp_path / "one" / "digit 0")
        knn(KnnSpec(ckpt=str(trained), data=str(tmp_path / "one")))
    with pytest.raises(SslkitError, match="100 neighbours of 48 training images"):
        knn(KnnSpec(ckpt=str(trained), k=100))
    shutil.copytree(digits / "test" / "digit 0", tmp_path / "unseen" / "letter")
    shutil.copytree(digits / "test" / "digit 0", tmp_path / "unseen" / "digit 0")
    with pytest.raises(SslkitError, match="classes that the training part lacks: letter"):
        knn(KnnSpec(ckpt=str(trained), data=str(digits), test=str(tmp_path / "unseen"), k=3))
    np.savez(tmp_path / "gray.npz", images=np.zeros((8, 16, 16), np.uint8), labels=np.arange(8) % 2)
    with pytest.raises(SslkitError, match="--ckpt and --init"):
        finetune(FinetuneSpec(ckpt=str(trained), init=str(trained), data=str(digits), out=str(tmp_path / "f")))
    with pytest.raises(SslkitError, match="images have 1 channels, the encoder takes 3"):
        knn(KnnSpec(ckpt=str(trained), data=str(tmp_path / "gray.npz"), k=1))


def finetune_spec(digits: Path, out: Path, **changes: Any) -> FinetuneSpec:
    return FinetuneSpec(data=str(digits), out=str(out), **{"epochs": 6, "batch_size": 16, "workers": 0, **changes})


def test_finetune_a_checkpoint_and_from_scratch(trained: Path, digits: Path, tmp_path: Path) -> None:
    result = finetune(finetune_spec(digits, tmp_path / "tuned", ckpt=str(trained), lr=3e-3))
    assert result.top1 > 0.6 and (result.n_train, result.n_test, result.protocol) == (48, 12, None)
    from sslkit.engine.checkpoint import read_model

    checkpoint = read_model(result.checkpoint)
    assert checkpoint.metadata["classes"] == ["digit 0", "digit 1", "digit 2"]
    assert checkpoint.part("head")["weight"].shape == (3, 64)
    assert knn(KnnSpec(ckpt=result.checkpoint, k=3)).n_test == 12  # its data is known, too
    scratch = finetune(
        finetune_spec(digits, tmp_path / "scratch", encoder="resnet_micro", size=16, encoder_option={"width": "8"})
    )
    assert scratch.n_test == 12


def test_finetune_resumes_bit_equal(trained: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    from sslkit.engine.stepper import Stepper
    from sslkit.errors import Interrupted

    whole = finetune(finetune_spec(digits, tmp_path / "whole", ckpt=str(trained), epochs=2))
    step = Stepper.step

    def counted(self: Stepper, raw: Any) -> dict[str, float]:
        said = step(self, raw)
        if self.clock.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return said

    monkeypatch.setattr(Stepper, "step", counted)
    with pytest.raises(Interrupted):
        finetune(finetune_spec(digits, tmp_path / "parts", ckpt=str(trained), epochs=2))
    monkeypatch.undo()
    parts = finetune(finetune_spec(digits, tmp_path / "parts", ckpt=str(trained), epochs=2, resume=True))
    assert parts.top1 == whole.top1
    assert Path(parts.checkpoint).stat().st_size == Path(whole.checkpoint).stat().st_size
    from safetensors.torch import load_file

    one, other = load_file(whole.checkpoint), load_file(parts.checkpoint)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_finetune_from_the_command_line(sslkit: Run, trained: Path, digits: Path, tmp_path: Path) -> None:
    ran = sslkit(
        "finetune", "--ckpt", trained, "--data", digits, "--out", tmp_path / "f", "--epochs", 1, "--batch-size", 16, "--json"
    )
    assert {"protocol", "top1", "n_train", "n_test", "checkpoint"} <= set(ran.json)
    ran = sslkit("finetune", "--ckpt", trained, "--data", digits, "--encoder", "vit_micro", "--out", tmp_path / "g")
    assert ran.code == 2 and "the checkpoint holds resnet_micro" in ran.err
    assert not (tmp_path / "g").exists()
