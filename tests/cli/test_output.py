"""Printing: nothing is cut off, and a reader may leave."""

import os
import subprocess
import sys

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


@pytest.mark.parametrize("command", ["tasks", "--help", "tasks --json", "protocols", "pretrain rotation --help"])
def test_a_reader_may_leave_early(command: str) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "sslkit", *command.split()], stdout=pipe, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 0 and not done.stderr


def test_a_terminal_without_a_width() -> None:
    script = "from sslkit.cli.app import main; main(['tasks'])"
    environment = {**os.environ, "COLUMNS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "rotation" in done.stdout
