"""Tables of results: nothing in them is cut off."""

from typing import Any

import pytest

from sslkit.cli.output import show_rows


def test_wide_tables_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    row: dict[str, Any] = {
        "model": "from scratch, 10% of the labels of [a] data set with a long name",
        "test": "t",
        "layer": None,
    }
    row |= {"top1": 0.5, "top1_interval": [0.4, 0.6], "top5": 0.9, "macro_f1": 0.5, "balanced_accuracy": 0.5, "p_value": 0.0123}
    row |= {"test_seen_in_pretraining": False, "n_train": 1000, "n_test": 200, "duplicates": 0}
    result = {
        "protocol": "finetune/fewlabel-v1",
        "command": "finetune",
        "weights": "w",
        "data": {"train": "d"},
        "checkpoint": "c",
    }
    show_rows({**result, "rows": [row]})
    said = capsys.readouterr().out
    assert "…" not in said
    line = next(line for line in said.splitlines() if line.startswith(str(row["model"])))
    assert "50.0% (40.0 to 60.0)" in line and line.rstrip().endswith("0.012") and len(line) > 80
