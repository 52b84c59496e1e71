"""The ladder of few labels: rungs, their comparison, resume, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslkit import SslkitError
from sslkit.engine.checkpoint import read_model
from sslkit.engine.classifier import read_classifier
from sslkit.evaluation.ladder import ladder
from sslkit.evaluation.predict import predict
from sslkit.specs.evaluation import LadderSpec
from sslkit.specs.use import PredictSpec

Run = Callable[..., Any]


@pytest.fixture
def pretrained(trained: Path, tmp_path: Path) -> Path:
    """Copy the run, to whose results a ladder adds its own."""
    shutil.copytree(trained.parent, tmp_path / "pretrained")
    return tmp_path / "pretrained" / "model.safetensors"


def spec(pretrained: Path, digits: Path, out: Path, **values: Any) -> LadderSpec:
    quick = {"steps": 3, "seeds": 1, "batch_size": 8, "workers": 0}
    return LadderSpec(ckpt=str(pretrained), data=str(digits), out=str(out), **{**quick, **values})


def test_rungs_are_compared_with_supervised_training_alone(pretrained: Path, digits: Path, tmp_path: Path) -> None:
    result = ladder(spec(pretrained, digits, tmp_path / "out", shares=[0.5, 1.0]))
    rungs = ["probe", "fine-tuned", "distilled", "joint", "supervised only"]
    assert [row.model for row in result.rows] == [f"{rung}, 50% of the labels" for rung in rungs] + rungs
    half = result.rows[4]
    assert half.role == "random" and not half.comparisons
    assert all(list(row.comparisons) == [half.model] for row in result.rows[:4])
    assert result.rows[0].comparisons[half.model].difference == pytest.approx(
        result.rows[0].headline.value - half.headline.value
    )
    assert [row.n_train for row in result.rows[:5]] == [result.rows[5].n_train // 2] * 5
    assert result.protocol is None and result.settings["task"] == "rotation"
    assert any("against supervised only" in note for note in result.notes)


def test_accuracies_are_those_of_the_kept_classifiers(pretrained: Path, digits: Path, tmp_path: Path) -> None:
    result = ladder(spec(pretrained, digits, tmp_path / "out", shares=[0.5]))
    folder = tmp_path / "out" / "share-50-seed-0"
    for rung in ("fine-tuned", "distilled", "joint", "supervised-only"):
        file = tmp_path / "classes.csv"
        predict(PredictSpec(ckpt=str(folder / rung / "model.safetensors"), data=str(digits / "test"), out=str(file), workers=0))
        lines = [line.split(",") for line in file.read_text().splitlines()[1:]]
        correct = np.mean([Path(path).parent.name == name for path, name, _ in lines])
        row = next(row for row in result.rows if row.model.startswith(rung.replace("-only", " only")))
        assert row.headline.value == pytest.approx(correct)
        file.unlink()
    joint = json.loads((folder / "joint" / "spec.json").read_text())
    tuned = json.loads((folder / "fine-tuned" / "spec.json").read_text())
    assert joint["task"] == "rotation+supervised" and (joint["label_share"], joint["steps"]) == (0.5, 3)
    assert (tuned["shares"], tuned["steps"], tuned["seed"]) == ([0.5], 3, 0)
    assert read_classifier(read_model(folder / "joint" / "model.safetensors")).classes


def test_a_ladder_goes_on_where_it_stopped(sslkit: Run, pretrained: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["ladder", "--ckpt", pretrained, "--data", digits, "--steps", 3, "--batch-size", 8]
    flags += ["--seeds", 2, "--shares", 0.5, "--workers", 0, "--out", out]
    first = sslkit(*flags, "--json").json
    assert sslkit(*flags).code == 2
    shutil.rmtree(out / "share-50-seed-1" / "joint")
    again = sslkit(*flags, "--resume", "--json").json
    assert [row["metrics"] for row in again["rows"]] == [row["metrics"] for row in first["rows"]]
    assert first["rows"][0]["metrics"][0]["deviation"] is not None


def test_what_is_refused(sslkit: Run, pretrained: Path, digits: Path, tmp_path: Path) -> None:
    ladder(spec(pretrained, digits, tmp_path / "few", shares=[0.01]))  # one label of each class
    with pytest.raises(SslkitError, match="--test: missing"):
        ladder(LadderSpec(ckpt=str(pretrained), data=str(digits / "train"), out=str(tmp_path / "out"), workers=0))
    assert not (tmp_path / "out").exists()
    ran = sslkit("ladder", "--ckpt", pretrained, "--data", digits, "--task", "nothing", "--workers", 0)
    assert ran.code == 2 and "nothing" in ran.err
    for task, message in (("clusterfit", "--task: clusterfit needs options of its own"), ("mae", "requires tokens")):
        ran = sslkit("ladder", "--ckpt", pretrained, "--data", digits, "--task", task, "--workers", 0, "--out", tmp_path / "no")
        assert ran.code == 2 and message in ran.err and not (tmp_path / "no").exists()
