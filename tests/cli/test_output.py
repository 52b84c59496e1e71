"""Tables of results: nothing in them is cut off."""

import pytest

from sslkit.cli.output import show_result
from sslkit.contract.result import Comparison, Data, Metric, Result, Row


def test_wide_tables_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = [Metric("top-1", 0.5, 0.4, 0.6), *(Metric(name, 0.9) for name in ("top-5", "macro F1", "balanced accuracy"))]
    model = "from scratch, 10% of the labels of [a] data set with a long name"
    row = Row(model, metrics, test="t", comparisons={"fine-tuned": Comparison(0.0123, "McNemar's exact test", 0.0246)})
    result = Result("finetune", "finetune/fewlabel-v1", {}, "c", "w", Data(train="d"), [row], ["1,000 training samples."])
    show_result(result)
    printed = capsys.readouterr().out
    assert "…" not in printed and "McNemar" not in printed and "1,000 training samples." in printed
    line = next(line for line in printed.splitlines() if line.startswith(model))
    assert "50.0% (40.0 to 60.0)" in line and line.rstrip().endswith("90.0%") and len(line) > 80
    show_result(result, details=True)
    assert "p 0.012, Holm-adjusted 0.025 (McNemar's exact test)" in capsys.readouterr().out
