"""Loggers: found by entry point, rewound on a resume, refused by one line."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit.contract.errors import SslkitError
from sslkit.engine.loggers import FileLogger, build_loggers, load_loggers, numbers
from sslkit.engine.run_folder import read_json_lines

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

    def close(self, failed):
        self.stream.write(f"failed: {failed}")
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
    assert (out / "lines" / "log.txt").read_text() == (out / "metrics.jsonl").read_text() + "failed: False"
    flags = ["--steps", 3, "--lr", 1e30, "--lr-scale", "none", "--log", "lines", "--out", tmp_path / "failed"]
    assert sslkit("pretrain", "rotation", "--data", digits, *quick, *flags).code == 1
    assert (tmp_path / "failed" / "lines" / "log.txt").read_text().endswith("failed: True")


def test_the_file_is_always_there_and_is_rewound(tmp_path: Path) -> None:
    (logger,) = build_loggers([], tmp_path)
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


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Return the records of an offline run: LevelDB's log format, in blocks of 32 KiB, after seven bytes of its own."""
    place, record = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # the rest of a block
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def logged_by_wandb(run: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Return settings and lines of the one offline run in a folder."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # the process that writes ends, which `sslkit` itself does when it ends
    (file,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    settings, lines = dict[str, Any](), []
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for update in (*record.run.config.update, *record.config.update):
            settings[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
        values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        if values:
            step = record.history.step.num
            lines.append({"step": step} | {name: value for name, value in values.items() if name[0] != "_"})
    return settings, lines


def logged_by_mlflow(run: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Return settings and lines of the one run in a folder that is not in the trash."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sslkit")
    (stored,) = client.search_runs([experiment.experiment_id])
    lines: dict[int, dict[str, float]] = {}
    for name in stored.data.metrics:
        for metric in client.get_metric_history(stored.info.run_id, name):
            lines.setdefault(metric.step, {"step": metric.step})[name] = metric.value
    return stored.data.params, [lines[step] for step in sorted(lines)]


def logged_by_tensorboard(run: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Return settings and lines of the event files in a folder, without what was purged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    lines: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            lines.setdefault(event.step, {"step": event.step})[name] = event.value
    text = events.Tensors("settings/text_summary")[-1].tensor_proto.string_val[0].decode()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
    return {row[0]: row[1] if len(row) > 1 else "" for row in rows}, [lines[step] for step in sorted(lines)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of packages about packages
def test_loggers_have_the_lines_of_the_file_after_a_resume(
    name: str, digits: Path, quick: list[str], tmp_path: Path, sslkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name, reason=f"pip install 'sslkit[{name}]'")
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    out = tmp_path / "run"
    flags = ["--data", digits, *quick, "--steps", 6, "--checkpoint-every", 2, "--log", name, "--out", out]
    assert sslkit("pretrain", "rotation", *flags).code == 0
    state = torch.load(out / "resume.pt", weights_only=True)
    assert state["step"] == 6
    lines = (out / "metrics.jsonl").read_text().splitlines()
    (out / "metrics.jsonl").write_text("\n".join(lines[:4]) + "\n")  # as if it had been killed after four of eight steps
    Logger = next(kind for kind in load_loggers([name]) if kind is not FileLogger)
    logger = Logger(out)
    logger.rewind(3)
    FileLogger(out).rewind(3)
    for step in (3, 4):
        line = {"loss": float(step), "accuracy": 0.5, "norm": float("nan"), "alarms": ["a"], "epoch": 1, "step": step}
        FileLogger(out).log(line)
        logger.log(line)
    logger.close(failed=False)
    expected = [numbers(line) | {"step": line["step"]} for line in read_json_lines(out / "metrics.jsonl")]
    settings, logged = globals()[f"logged_by_{name}"](out)
    assert [line["step"] for line in logged] == [0, 1, 2, 3, 4]
    for have, want in zip(logged, expected, strict=True):
        assert have == pytest.approx(want, rel=1e-6)
    assert float(settings["lr"]) == 0.06 and str(settings["image.size"]) == "16" and str(settings["seed"]) == "0"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_logger_whose_package_is_missing_names_its_extra(
    name: str, digits: Path, quick: list[str], tmp_path: Path, sslkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    ran = sslkit("pretrain", "rotation", "--data", digits, *quick, "--log", name, "--out", tmp_path / "run")
    assert ran.code == 2 and f"--log {name} needs {name} (pip install 'sslkit[{name}]')" in ran.err
    assert not list(tmp_path.iterdir())


def sessions_of(name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a logger write two sessions of one run, the second of which fails; pause before the second."""
    pytest.importorskip(name, reason=f"pip install 'sslkit[{name}]'")
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    (out / "spec.json").write_text('{"seed": 0}')
    (Logger,) = load_loggers([name])[1:]
    for failed in (False, True):
        logger = Logger(out)
        logger.rewind(0)
        logger.log({"loss": 1.0, "step": 0})
        logger.close(failed)
        yield


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb_replaces_the_run_that_it_recorded_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = sessions_of("wandb", tmp_path, monkeypatch)
    next(sessions)
    import wandb
    from wandb.proto import wandb_internal_pb2

    (first,) = (tmp_path / "wandb").glob("offline-run-*")
    other = tmp_path / "wandb" / "offline-run-20200101_000000-mine"
    other.mkdir()
    with monkeypatch.context() as patch, pytest.raises(SslkitError, match="wandb"):
        patch.setenv("WANDB_MODE", "online")
        patch.delenv("WANDB_API_KEY", raising=False)
        load_loggers(["wandb"])[1](tmp_path).rewind(0)
    assert first.is_dir()  # as no other run began
    next(sessions)
    assert other.is_dir() and not first.exists()
    wandb.teardown()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    records = [wandb_internal_pb2.Record.FromString(data) for data in wandb_records(file.read_bytes())]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_unknown_mode_of_wandb_is_refused_before_anything_is_written(
    digits: Path, quick: list[str], tmp_path: Path, sslkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="pip install 'sslkit[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    ran = sslkit("pretrain", "rotation", "--data", digits, *quick, "--log", "wandb", "--out", tmp_path / "run")
    assert ran.code == 2 and "--log: nonsense is no mode of wandb's (WANDB_MODE: Input should be 'online'" in ran.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_replaces_the_run_that_it_recorded_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = sessions_of("mlflow", tmp_path, monkeypatch)
    next(sessions)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    first = (tmp_path / "mlflow" / "run_id").read_text()
    assert client.get_run(first).info.status == "FINISHED"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    next(sessions)
    second = (tmp_path / "mlflow" / "run_id").read_text()
    assert client.get_run(first).info.lifecycle_stage == "deleted"
    assert client.get_run(second).info.status == "FAILED"
    (tmp_path / "mlflow" / "run_id").write_text("0" * 32)  # of another database
    load_loggers(["mlflow"])[1](tmp_path).rewind(0)
    assert client.get_run(second).info.lifecycle_stage == "active"
