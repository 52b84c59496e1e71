"""Printing: nothing is cut off, and a reader may leave."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslkit.cli.commands import Demo
from sslkit.cli.output import show_findings, show_result, show_results
from sslkit.console import stdout
from sslkit.contract.result import Comparison, Data, Finding, Metric, Result, Results, Row
from sslkit.evaluation.evaluate import markdown
from sslkit.image.demo import DemoResult


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


def test_findings_are_followed_by_commands_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"sslkit pretrain rotation --data '/data/{'long ' * 30}name' --steps 300"
    findings = [
        Finding("random", "Not distinguishable from [random] weights.", command),
        Finding("few-steps", 30 * "few ", command),
    ]
    monkeypatch.setattr(stdout, "_width", 80)
    show_findings(findings)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [findings[0].text, findings[1].text, f"next: {command}"]  # once
    monkeypatch.setattr(stdout, "_force_terminal", True)
    monkeypatch.setattr(stdout, "no_color", True)
    show_findings(findings)
    printed = capsys.readouterr().out
    assert f"next: {command}" in printed and all(len(line) < 100 for line in printed.splitlines() if "next:" not in line)


def test_a_reason_that_several_protocols_share_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    few = Finding("few-steps", "Pretrained for only 14 steps.", "sslkit pretrain x")
    row = Row("checkpoint", [Metric("top-1", 0.5)])
    results = [
        Result(verb, None, {}, "c", "w", Data(), [row], findings=[Finding("helped", f"{verb} is well."), few])
        for verb in ("knn", "probe")
    ]
    show_results(Results("c", results))
    printed = capsys.readouterr().out
    assert printed.count(few.text) == 1 and "knn is well." in printed and "probe is well." in printed
    table = markdown(Results("c", results))
    assert table.count(few.text) == 1 and "- custom settings" not in table and "Next: `sslkit pretrain x`" in table


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


@pytest.mark.parametrize(
    "command",
    [
        ["report", "{run}", "--out", "/proc/report.html"],
        ["embed", "--ckpt", "{checkpoint}", "--out", "/proc/features.npz"],
        ["map", "--ckpt", "{checkpoint}", "--out", "/proc/map.png"],
        ["search", "--ckpt", "{checkpoint}", "--out", "/proc/near.png"],
        ["preview", "rotation", "--ckpt", "{checkpoint}", "--out", "/proc/previews.png"],
        ["evaluate", "--ckpt", "{checkpoint}", "--out", "/proc/table"],
    ],
)
def test_an_unwritable_place_is_reported_before_the_work(command: list[str], trained: Path, sslkit: Callable[..., Any]) -> None:
    ran = sslkit(*(word.format(run=trained.parent, checkpoint=trained) for word in command))
    assert ran.code == 2 and "error: --out: cannot write" in ran.err and "test part" not in ran.err, ran.err


def test_without_words_the_commands_are_listed(sslkit: Callable[..., Any]) -> None:
    ran = sslkit()
    assert ran.code == 0 and "pretrain" in ran.out and not ran.err


def test_an_error_in_a_file_of_the_users_names_it(tmp_path: Path, digits: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from sslkit import PretextTask\nclass Mine(PretextTask):\n    def transform(self, batch):\n        return {}[0]\n"
        "    loss = transform\n"
    )
    command = [sys.executable, "-m", "sslkit", "pretrain", tmp_path / "mine.py", "--data", digits, "--steps", "1"]
    command += ["--batch-size", "8", "--size", "16", "--out", tmp_path / "run"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 1 and f"KeyError in {tmp_path / 'mine.py'}, line 4: 0 (" in done.stderr
    assert "sslkit check" in done.stderr and "please report it" not in done.stderr


def test_commands_after_the_demo_are_quoted() -> None:
    result = DemoResult("my demo/images", "my demo/run", "my demo/run/model.safetensors", "my demo/export")
    lines = [*Demo().lines(result), *Demo().lines(DemoResult("my demo/images"))]
    commands = [line.strip() for line in lines if isinstance(line, str) and line.startswith("  sslkit")]
    assert len(commands) == 4 and sum("'my demo/" in command for command in commands) == 3
