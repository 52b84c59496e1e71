"""`sslkit compare`: several tasks for the same time on the same data, and a report."""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from sslkit.console import say
from sslkit.contract.errors import RunFailedError, RunInterruptedError, SslkitError, renamed_flags
from sslkit.data.indexed_source import IndexedSource
from sslkit.engine.pretrain import prepare
from sslkit.engine.run_folder import MODEL
from sslkit.engine.signals import catch_stop_signals
from sslkit.evaluation.knn import knn
from sslkit.evaluation.probe import probe
from sslkit.evaluation.splits import find_labeled
from sslkit.registry import load_modality
from sslkit.reporting.report import report
from sslkit.specs.evaluation import KnnSpec, ProbeSpec
from sslkit.specs.look import ReportSpec
from sslkit.specs.train import CompareSpec, PretrainSpec
from sslkit.tasks.load import absolute, load_task, task_name


@dataclass(frozen=True)
class CompareResult:
    """The runs and the report; accuracies are shares of 1, None without labels."""

    report: str
    runs: dict[str, str]
    knn: dict[str, float] | None
    probe: dict[str, float] | None


def compare(spec: CompareSpec) -> CompareResult:
    """Train tasks for the same time, one after the other, evaluate them and write a report.

    Each trains in a process of its own, so that its peak memory is measured alone. A stopped comparison continues when it is
    started again. Raises SslkitError, before anything is trained, for everything that any of the tasks refuses.
    """
    tasks = [absolute(task.strip()) for task in spec.tasks.split(",") if task.strip()]
    names = [task_name(task) for task in tasks]
    if len(tasks) < 2 or len(set(names)) < len(names):
        raise SslkitError(f"two or more different tasks are needed (got {spec.tasks})", "such as rotation,simclr", flag="tasks")
    folders = {name: Path(spec.out, name.replace("+", "-and-")) for name in names}
    values = {name: getattr(spec, name) for name in CompareSpec.model_fields if name in PretrainSpec.model_fields}
    values = {name: value for name, value in values.items() if name in spec.model_fields_set and name != "out"}
    for task, folder in zip(tasks, folders.values(), strict=True):
        _check(PretrainSpec(**{**values, "task": task, "minutes": spec.minutes, "out": str(folder), "resume": True}))
    report_values = {name: value for name, value in values.items() if name in ReportSpec.model_fields and name != "batch_size"}
    # A checkpoint has its size: given again, it would be a setting by hand, and the results had no protocol.
    evaluation_values = {
        **{name: value for name, value in report_values.items() if name != "encoder" and name not in spec.tables()},
        "test": spec.test,
    }
    unlabeled = _unlabeled(KnnSpec(ckpt="", **evaluation_values), tasks[0])
    for task, folder in zip(tasks, folders.values(), strict=True):
        _train(PretrainSpec(**{**values, "task": task, "minutes": spec.minutes}), folder)
    accuracies: dict[str, dict[str, float]] = {}
    for name, folder in folders.items() if unlabeled is None else ():
        checkpoint = str(folder / MODEL)
        accuracies.setdefault("knn", {})[name] = knn(KnnSpec(ckpt=checkpoint, **evaluation_values)).headline.value
        accuracies.setdefault("probe", {})[name] = probe(ProbeSpec(ckpt=checkpoint, **evaluation_values)).headline.value
    if unlabeled is not None:
        say(f"no evaluation: the report has curves and pictures only: {unlabeled}")
    runs = {name: str(folder) for name, folder in folders.items()}
    page = report(ReportSpec(**report_values, runs=list(runs.values()), test=spec.test, out=str(Path(spec.out, "report.html"))))
    return CompareResult(page.path, runs, accuracies.get("knn"), accuracies.get("probe"))


def _check(spec: PretrainSpec) -> None:
    """Raise SslkitError for what `pretrain` would refuse."""
    try:
        with renamed_flags({"resume": "out"}):  # by which an earlier comparison continues
            prepare(spec)
    except ValidationError as error:
        missing = ", ".join(str(problem["loc"][0]) for problem in error.errors())
        raise SslkitError(
            f"{task_name(spec.task)} needs options of its own: {missing}",
            "train it with sslkit pretrain, and compare the runs with sslkit report",
            flag="tasks",
        ) from error


def _unlabeled(spec: KnnSpec, task: str) -> SslkitError | None:
    """Return why the data of a task cannot be evaluated on, None if it can."""
    source_class = load_modality(load_modality(load_task(task).modality).evaluated_as).source
    if not issubclass(source_class, IndexedSource):
        return SslkitError(f"{source_class.noun} have no labels")
    try:
        find_labeled(spec, spec.test, None, source_class=source_class)
    except SslkitError as error:
        return error
    return None


def _train(spec: PretrainSpec, folder: Path) -> None:
    """Run `sslkit pretrain` in a process of its own; signals are handed on, and it writes a checkpoint before it ends."""
    with tempfile.TemporaryDirectory() as temporary, catch_stop_signals() as stop:
        file = Path(temporary, "spec.json")
        file.write_text(spec.model_dump_json(exclude_unset=True))
        words = ["pretrain", "--spec", str(file), "--out", str(folder), "--resume", "--json"]
        # In a session of its own: a terminal's Ctrl-C would reach it beside ours, and two mean at once.
        command = [sys.executable, "-m", "sslkit", *words]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        forwarded = False
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if stop.signal and not forwarded:
                    process.send_signal(stop.signal)
                    forwarded = True
        finally:
            process.kill()  # nothing, where it has ended
    if stop.signal:
        stopped = RunInterruptedError(f"stopped while {task_name(spec.task)} was training", stop.signal)
        stopped.hint = "rerun the same command to continue"
        raise stopped
    if process.returncode:
        raise RunFailedError(f"{task_name(spec.task)} failed, for the reason above", "rerun the same command to continue")
