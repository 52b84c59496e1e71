"""Each rule chooses its sentence from the numbers of a result and the records of a run, and names a command that exists."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sslkit.contract.options import Spec
from sslkit.contract.result import Comparison, Data, Finding, Metric, Result, Role, Row, TestData
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.run_folder import METRICS, MODEL, SPEC, TRAINING
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.notes import write_notes
from sslkit.specs.evaluation import KnnSpec, ProbeSpec
from sslkit.specs.train import FinetuneSpec
from sslkit.tasks.load import load_task

Ran = Any
RUN = {"task": "rotation", "data": "/data/my images", "batch_size": 128, "steps": 1000, "optimizer": "sgd", "options": {}}


def metric(value: float, low: float | None = None, high: float | None = None) -> Metric:
    return Metric("top-1", value, low, high, n=200)


def row(role: Role, model: str, value: float, difference: tuple[float, float, float] | None = None, **fields: Any) -> Row:
    """Return a row; `difference` is how far it is above the checkpoint, with the interval."""
    comparison = {} if difference is None else {"checkpoint": Comparison(0.5, "a test", None, *difference)}
    return Row(model, [metric(value)], test="test", role=role, comparisons=comparison, **fields)


def result_of(*rows: Row, verb: str = "knn", train: str = "f00d") -> Result:
    return Result(verb, None, {}, "run/model.safetensors", "0", Data(train, [TestData("test", "", 200)]), list(rows))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Checkpoint]:
    """Return a checkpoint of images in a run folder with the spec and the log lines, if there are any."""

    def make(spec: dict[str, Any] | None = RUN, lines: list[dict[str, Any]] = [], **metadata: Any) -> Checkpoint:  # noqa: B006
        if spec is not None:
            (tmp_path / SPEC).write_text(json.dumps(spec))
        (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Checkpoint(tmp_path / MODEL, {}, {"task": "rotation", "step": 1000, "modality": "image", **metadata})

    return make


def knn_spec(**values: Any) -> KnnSpec:
    return KnnSpec(ckpt="run/model.safetensors", **values)


def findings(
    result: Result, checkpoint: Checkpoint, spec: Spec | None = None, by_distance: bool | None = None
) -> list[Finding]:
    distance = result.verb == "knn" if by_distance is None else by_distance
    return with_findings(result, checkpoint, spec or knn_spec(), distance).findings


CHECKPOINT_ROW = row("checkpoint", "checkpoint", 0.5)
BELOW = row("random", "random weights", 0.4, (-0.1, -0.15, -0.05))
PIXELS_BELOW = row("baseline", "raw pixels, 32 px", 0.45, (-0.05, -0.08, -0.02))


def test_random_weights_within_the_interval(checkpoint: Callable[..., Checkpoint]) -> None:
    rows = CHECKPOINT_ROW, row("random", "random weights", 0.492, (-0.008, -0.026, 0.01)), PIXELS_BELOW
    (finding,) = findings(result_of(*rows), checkpoint())
    assert finding.rule == "random"
    assert finding.text == "Not distinguishable from random weights: the difference is +0.8 points (95% interval -1.0 to 2.6)."
    assert finding.command == "sslkit pretrain rotation --data '/data/my images' --steps 4000"


def test_worse_than_random_weights(checkpoint: Callable[..., Checkpoint]) -> None:
    rows = CHECKPOINT_ROW, row("random", "random weights", 0.6, (0.1, 0.05, 0.15))
    (finding,) = findings(result_of(*rows), checkpoint())
    assert (finding.rule, finding.text) == ("random", "Worse than random weights by 10.0 points (95% interval 5.0 to 15.0).")


def test_a_metric_of_which_less_is_better(checkpoint: Callable[..., Checkpoint]) -> None:
    ours, theirs = (
        replace(each, metrics=[replace(each.headline, name="perplexity", unit="other", higher_is_better=False)])
        for each in (CHECKPOINT_ROW, row("random", "random weights", 0.6, (0.1, 0.05, 0.15)))
    )
    (finding,) = findings(result_of(ours, theirs), checkpoint())
    assert finding.text == "Pretraining helped: 0.100 better than random weights (95% interval 0.050 to 0.150)."
    comparisons = {"checkpoint": Comparison(0.5, "a test", None, 0.1, -0.05, 0.15)}
    (finding,) = findings(result_of(ours, replace(theirs, comparisons=comparisons)), checkpoint())
    assert finding.text.endswith(": the difference is -0.100 (95% interval -0.150 to 0.050).")  # ours is the lower one


@pytest.mark.parametrize(
    ("difference", "higher_is_better", "sentence"),
    [
        ((-0.1, -0.15, -0.05), True, "checkpoint: 10.0 points better than x (95% interval 5.0 to 15.0)."),
        ((0.1, 0.05, 0.15), True, "checkpoint: 10.0 points worse than x (95% interval 5.0 to 15.0)."),
        ((0.1, 0.05, 0.15), False, "checkpoint: 10.0 points better than x (95% interval 5.0 to 15.0)."),
        ((0.005, -0.004, 0.013), True, "checkpoint: not distinguishable from x, -0.5 points (95% interval -1.3 to 0.4)."),
        ((0.005, -0.004, 0.013), False, "checkpoint: not distinguishable from x, -0.5 points (95% interval -1.3 to 0.4)."),
        ((0.0, -0.01, 0.01), True, "checkpoint: not distinguishable from x, +0.0 points (95% interval -1.0 to 1.0)."),
        ((0.0, -0.01, 0.01), False, "checkpoint: not distinguishable from x, +0.0 points (95% interval -1.0 to 1.0)."),
    ],
)
def test_notes_on_models_named_by_against(
    difference: tuple[float, float, float], higher_is_better: bool, sentence: str
) -> None:
    rows = [
        replace(each, metrics=[replace(each.headline, higher_is_better=higher_is_better)])
        for each in (CHECKPOINT_ROW, row("other", "x", 0.6, difference))
    ]
    assert write_notes(rows, Data("f00d", [TestData("test", "", 200)]))[0] == sentence


def test_training_from_scratch_is_as_good(checkpoint: Callable[..., Checkpoint]) -> None:
    tuned = row("checkpoint", "fine-tuned", 0.5)
    scratch = replace(
        row("random", "from scratch", 0.5), comparisons={"fine-tuned": Comparison(1.0, "a test", None, 0.0, -0.02, 0.02)}
    )
    (finding,) = findings(result_of(tuned, scratch, verb="finetune"), checkpoint(), FinetuneSpec(ckpt="x"))
    assert finding.text.startswith("Not distinguishable from training from scratch: the difference is +0.0 points")


def test_below_the_baseline(checkpoint: Callable[..., Checkpoint]) -> None:
    rows = CHECKPOINT_ROW, BELOW, row("baseline", "raw pixels, 32 px", 0.54, (0.04, 0.016, 0.061))
    saved = checkpoint()
    (finding,) = findings(result_of(*rows), saved, knn_spec(data="digits", size=64))
    assert finding.rule == "baseline"
    assert finding.text == (
        "Better than random weights by 10.0 points, but worse than raw pixels by 4.0 points (95% interval 1.6 to 6.1)."
    )
    assert finding.command == f"sslkit probe --ckpt {saved.path} --data digits --size 64"
    (finding,) = findings(result_of(*rows, verb="probe"), saved, ProbeSpec(ckpt="x"))
    assert finding.command == f"sslkit finetune --ckpt {saved.path} --scratch"


def test_as_good_as_the_baseline(checkpoint: Callable[..., Checkpoint]) -> None:
    rows = CHECKPOINT_ROW, BELOW, row("baseline", "mean spectrum, 64 bands", 0.51, (0.01, -0.02, 0.04))
    (finding,) = findings(result_of(*rows), checkpoint())
    assert finding.text.endswith("but not distinguishable from mean spectrum: -1.0 points (95% interval -4.0 to 2.0).")


def test_all_well(checkpoint: Callable[..., Checkpoint]) -> None:
    saved = checkpoint()
    (finding,) = findings(result_of(CHECKPOINT_ROW, BELOW, PIXELS_BELOW), saved)
    assert finding.rule == "helped" and finding.command == f"sslkit probe --ckpt {saved.path}"
    assert finding.text == (
        "Pretraining helped: 10.0 points better than random weights (95% interval 5.0 to 15.0)"
        " and 5.0 points better than raw pixels (95% interval 2.0 to 8.0)."
    )


def test_nothing_stands_beside_it(checkpoint: Callable[..., Checkpoint]) -> None:
    saved = checkpoint()
    spec = knn_spec(protocol="knn/plain-v1", baselines=False, label="kind")
    (finding,) = findings(result_of(CHECKPOINT_ROW), saved, spec)
    assert finding.rule == "no-baselines" and "No baseline was evaluated" in finding.text
    assert finding.command == f"sslkit knn --ckpt {saved.path} --label kind --protocol knn/plain-v1"
    (finding,) = findings(result_of(CHECKPOINT_ROW, verb="finetune"), saved, FinetuneSpec(ckpt="x", out="my run"))
    assert finding.command == "sslkit finetune --resume --scratch --out 'my run'"


def test_few_steps(checkpoint: Callable[..., Checkpoint]) -> None:
    saved = checkpoint(lines=[{"step": 13, "seconds": 28.0}], step=14)
    verdict, reason = findings(result_of(CHECKPOINT_ROW, BELOW), saved)
    assert (verdict.rule, reason.rule) == ("helped", "few-steps")
    assert reason.text == "Pretrained for only 14 steps, too few to learn much; 300 take about 10 min."
    assert reason.command == "sslkit pretrain rotation --data '/data/my images' --steps 300"
    assert [made.rule for made in findings(result_of(CHECKPOINT_ROW, BELOW), checkpoint(step=200))] == ["helped"]


def test_few_steps_of_weights_that_were_trained_before(checkpoint: Callable[..., Checkpoint]) -> None:
    result, plain = result_of(CHECKPOINT_ROW, BELOW), checkpoint(step=14)
    pretrained = replace(plain, metadata=plain.metadata | {"spec": {"pretrained": True}})
    fine_tuned = replace(plain, metadata=plain.metadata | {"classes": ["a", "b"]})
    for saved in (pretrained, fine_tuned):
        assert [finding.rule for finding in findings(result, saved)] == ["helped"]
    initialized = checkpoint(step=14, spec=RUN | {"init": "/weights.pth"})
    assert [finding.rule for finding in findings(result, initialized)] == ["helped"]


def test_few_steps_of_a_checkpoint_without_its_run(checkpoint: Callable[..., Checkpoint]) -> None:
    _, reason = findings(result_of(CHECKPOINT_ROW, BELOW), checkpoint(spec=None, step=14), knn_spec(data="my images"))
    assert reason.text == "Pretrained for only 14 steps, too few to learn much."
    assert reason.command == "sslkit pretrain rotation --data 'my images' --steps 300"


def test_a_masked_task_judged_by_distances(checkpoint: Callable[..., Checkpoint]) -> None:
    saved, result = checkpoint(masked=True), result_of(CHECKPOINT_ROW, BELOW)
    _, reason = findings(result, saved)
    assert reason.rule == "distances" and reason.text.startswith("k-NN underestimates masked pretraining")
    assert reason.command == f"sslkit probe --ckpt {saved.path}"
    assert [made.rule for made in findings(result, saved, by_distance=False)] == ["helped"]  # as a probe does


def test_checkpoints_record_that_their_task_is_masked(digits: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    flags = ["--data", digits, "--size", 16, "--batch-size", 16, "--workers", 0, "--steps", 1, "--out", tmp_path / "run"]
    assert sslkit("pretrain", "mae", *flags).code == 0
    assert read_model(tmp_path / "run" / MODEL).metadata["masked"] is True
    assert load_task("simmim+mae").masked and not load_task("simmim+rotation").masked


def test_a_question_that_is_answered_by_chance(checkpoint: Callable[..., Checkpoint], tmp_path: Path) -> None:
    (tmp_path / TRAINING).write_text('{"chance": {"accuracy": 0.25}}')
    result = result_of(CHECKPOINT_ROW, BELOW)
    lines = [{"step": step, "accuracy": 0.6 if step < 50 else 0.27} for step in range(100)]  # only the last ones count
    saved = checkpoint(lines=lines)
    _, reason = findings(result, saved)
    assert reason.rule == "chance" and reason.command == f"sslkit preview --ckpt {saved.path}"
    assert reason.text == (
        "Pretext accuracy is at chance level: accuracy 27% (chance 25%). "
        "The data may not hold the answer, or training was too short."
    )
    assert [made.rule for made in findings(result, checkpoint(lines=lines[:50]))] == ["helped"]


def test_a_critic_at_chance_is_no_fault(checkpoint: Callable[..., Checkpoint], tmp_path: Path) -> None:
    (tmp_path / TRAINING).write_text('{"chance": {"critic_accuracy": 0.5}}')
    saved = checkpoint(lines=[{"step": 1, "critic_accuracy": 0.5}])
    assert [made.rule for made in findings(result_of(CHECKPOINT_ROW, BELOW), saved)] == ["helped"]


def test_never_more_than_two_and_the_verdict_first(checkpoint: Callable[..., Checkpoint], tmp_path: Path) -> None:
    (tmp_path / TRAINING).write_text('{"chance": {"accuracy": 0.25}}')
    saved = checkpoint(lines=[{"step": 13, "accuracy": 0.2}], step=14, masked=True)
    rows = CHECKPOINT_ROW, row("random", "random weights", 0.5, (0.0, -0.1, 0.1)), row("baseline", "raw pixels", 0.9)
    assert [finding.rule for finding in findings(result_of(*rows), saved)] == ["random", "few-steps"]


def test_of_several_layers_and_test_parts(checkpoint: Callable[..., Checkpoint]) -> None:
    rows = [
        replace(each, test=test, layer=layer)
        for each in (CHECKPOINT_ROW, BELOW)
        for layer in ("1", "2")
        for test in ("near", "far")
    ]
    (finding,) = findings(result_of(*rows), checkpoint())
    assert finding.text.startswith("near, layer 2: Pretraining helped")


def test_a_level_without_a_paired_test(checkpoint: Callable[..., Checkpoint]) -> None:
    ours = Row("checkpoint", [metric(0.5, 0.4, 0.6)], test="test")
    for level, rule in ((0.3, "helped"), (0.45, "random")):
        (finding,) = findings(result_of(ours, row("random", "chance", level)), checkpoint())
        assert finding.rule == rule and "chance" in finding.text


@pytest.mark.parametrize("spec", ["[]", "not JSON", '{"task": "missing_task", "options": 3, "image": 4, "epochs": [1]}'])
def test_a_damaged_run_is_no_failure(checkpoint: Callable[..., Checkpoint], tmp_path: Path, spec: str) -> None:
    saved = checkpoint(lines=[{"seconds": "long"}, 3, {"accuracy": [1]}], step=14, spec={})  # type: ignore[list-item]
    (tmp_path / SPEC).write_text(spec)
    (tmp_path / TRAINING).write_text('{"chance": {"accuracy": 0.25}}')
    for finding in findings(result_of(CHECKPOINT_ROW, replace(BELOW, comparisons={})), replace(saved)):
        assert shlex.split(finding.command)[0] == "sslkit"


def test_a_file_of_a_task_is_not_run(checkpoint: Callable[..., Checkpoint], tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text("raise SystemExit('ran')")
    _, reason = findings(result_of(CHECKPOINT_ROW, BELOW), checkpoint(spec=RUN | {"task": str(task)}, step=14))
    assert f"sslkit pretrain {task}" in reason.command


def test_results_are_read_again(checkpoint: Callable[..., Checkpoint]) -> None:
    result = with_findings(result_of(CHECKPOINT_ROW, BELOW, PIXELS_BELOW), checkpoint(step=14), knn_spec())
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result
    older = result.to_json()
    del older["findings"]
    for values in older["rows"]:
        del values["role"]
        for name in ("difference", "low", "high"):
            for comparison in values["comparisons"].values():
                del comparison[name]
    assert Result.from_json(older).findings == []
