"""Which task is ahead: the same answer as in the report, and a command with the data of the comparison."""

import shlex
from pathlib import Path

import pytest

from sslkit.contract.result import Comparison, Data, Metric, Result, Role, Row, TestData
from sslkit.evaluation import ranking
from sslkit.evaluation.ranking import describe_best, find_best
from sslkit.reporting.comparison import _sentence
from sslkit.specs.evaluation import KnnSpec
from sslkit.specs.train import CompareSpec


def row(role: Role, model: str, value: float, p_value: float | None = None) -> Row:
    comparisons = {} if p_value is None else {"checkpoint": Comparison(p_value, "a test", 3 * p_value)}
    return Row(model, [Metric("top-1", value)], test="test", role=role, comparisons=comparisons)


def result_of(*rows: Row) -> Result:
    return Result("knn", None, {}, "model.safetensors", "0", Data("f", [TestData("test", "", 200)]), list(rows))


def test_baselines_do_not_count_in_the_adjustment(monkeypatch: pytest.MonkeyPatch) -> None:
    def paired(spec: KnnSpec) -> Result:
        rows = row("random", "random weights", 0.2, 0.9), row("baseline", "raw pixels", 0.3, 0.9)
        return result_of(row("checkpoint", "checkpoint", 0.6), *rows, row("other", spec.against[0], 0.5, 0.03))

    monkeypatch.setattr(ranking, "knn", paired)
    results = {"a": result_of(row("checkpoint", "checkpoint", 0.5)), "b": result_of(row("checkpoint", "checkpoint", 0.6))}
    assert find_best(results, {"a": Path("a"), "b": Path("b")}, {}) == ["b"]
    assert _sentence([], [("a", 0.5, "b", 0.6, 0.03)]).startswith("b is ahead")


def test_the_next_command_has_the_data(trained: Path, digits: Path) -> None:
    data = f"{digits} of mine"
    spec = CompareSpec(tasks="rotation,jigsaw", data=data, label="kind", test=["elsewhere"])
    values = {"data": data, "label": "kind", "test": ["elsewhere"]}
    finding = describe_best(["rotation"], {"rotation": trained.parent, "jigsaw": Path("j")}, spec, values)
    assert finding.text == "rotation is ahead of jigsaw in k-NN."
    words = ["finetune", "--ckpt", str(trained), "--data", data, "--label", "kind", "--test", "elsewhere", "--scratch"]
    assert shlex.split(finding.command) == ["sslkit", *words]


def test_a_longer_comparison_has_a_folder_beside_the_first() -> None:
    spec = CompareSpec(tasks="rotation, jigsaw,simclr", out="cmp/", minutes=2)
    folders = {name: Path("cmp", name) for name in ("rotation", "jigsaw", "simclr")}
    finding = describe_best(["rotation", "jigsaw"], folders, spec, {})
    assert finding.text == "k-NN cannot distinguish rotation from jigsaw; longer training or more test samples may."
    flags = {"--tasks", "rotation,jigsaw", "--minutes", "8", "--out", "cmp-longer"}
    assert set(shlex.split(finding.command)) == {"sslkit", "compare", *flags}
