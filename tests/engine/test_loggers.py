"""Loggers: found by entry point, rewound on a resume, refused by one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit.engine.loggers import FileLogger, build_loggers

PACKAGE = """
import json


class LineLogger:
    def __init__(self, folder):
        self.folder = folder / "lines"

    def rewind(self, step):
        self.folder.mkdir(exist_ok=True)
        self.stream = open(self.folder / "log.txt", "a")

    def log(self, line):
        self.stream.write(json.dumps(line) + "\\n")

    def close(self):
        self.stream.close()
"""


def test_an_unknown_logger_is_refused_before_anything_is_written(
    digits: Path, quick: list[str], tmp_path: Path, sslkit: Callable[..., Any]
) -> None:
    for command, task in (("pretrain", ["rotation"]), ("finetune", [])):
        flags = ["--data", digits, *quick, "--log", "tensorbord", "--out", tmp_path / "run"]
        result = sslkit(command, *task, *flags)
        assert result.code == 2
        assert "error: --log: unknown logger tensorbord (did you mean tensorboard?)" in result.err
    assert not list(tmp_path.iterdir())


def test_a_logger_of_another_package(
    digits: Path, quick: list[str], tmp_path: Path, sslkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "site" / "line_logger-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "line_logger.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: line-logger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sslkit.loggers]\nlines = line_logger:LineLogger\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    out = tmp_path / "run"
    result = sslkit("pretrain", "rotation", "--data", digits, *quick, "--steps", 3, "--log", "lines", "--out", out)
    assert result.code == 0, result.err
    assert (out / "lines" / "log.txt").read_text() == (out / "metrics.jsonl").read_text()


def test_the_file_is_always_there_and_is_rewound(tmp_path: Path) -> None:
    (logger,) = build_loggers("file", tmp_path)
    assert isinstance(logger, FileLogger)
    logger.rewind(0)
    for step in range(4):
        logger.log({"loss": 1.0, "step": step})
    logger.rewind(2)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1]


def test_a_checkpoint_without_the_start_of_its_schedule_is_refused(
    digits: Path, quick: list[str], tmp_path: Path, sslkit: Callable[..., Any]
) -> None:
    flags = ["--data", digits, *quick, "--steps", 2, "--out", tmp_path / "run"]
    assert sslkit("pretrain", "rotation", *flags).code == 0
    file = tmp_path / "run" / "resume.pt"
    state = torch.load(file, weights_only=True)
    state["began"] = state.pop("schedule_start")
    torch.save(state, file)
    result = sslkit("pretrain", "rotation", *flags, "--resume")
    assert result.code == 2
    (error,) = [line for line in result.err.splitlines() if line.startswith("error:")]
    assert "resume.pt is not a checkpoint of this version of sslkit" in error
