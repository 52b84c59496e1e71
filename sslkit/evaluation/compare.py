"""`sslkit compare`: several tasks for the same time on the same data, and a report."""

import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from sslkit.console import duration, say, silence
from sslkit.contract.encoder import over_views
from sslkit.contract.errors import RunFailedError, RunInterruptedError, SslkitError, renamed_flags
from sslkit.contract.presentation import metric_text
from sslkit.contract.result import Finding, Result
from sslkit.contract.task import Clock
from sslkit.data.indexed_source import IndexedSource
from sslkit.engine.job import TrainingJob, build_task
from sslkit.engine.memory_fit import settle_micro_batch
from sslkit.engine.pretrain import prepare
from sslkit.engine.rehearsal import measure_step
from sslkit.engine.run_folder import MODEL, holds_run
from sslkit.engine.signals import catch_stop_signals
from sslkit.engine.stepper import Stepper, to_device
from sslkit.evaluation.knn import knn
from sslkit.evaluation.notes import join_names
from sslkit.evaluation.probe import probe
from sslkit.evaluation.ranking import describe_best, find_best
from sslkit.evaluation.splits import find_labeled
from sslkit.nn import in_eval_mode
from sslkit.registry import data_options, load_modality
from sslkit.reporting.report import report
from sslkit.specs.evaluation import KnnSpec, ProbeSpec
from sslkit.specs.look import ReportSpec
from sslkit.specs.train import ENOUGH_STEPS, FEW_STEPS, CompareSpec, PretrainSpec
from sslkit.tasks.load import absolute, load_task, task_name

_MEASURED_SECONDS = 5  # of steps of each task, before anything is trained
_FEATURES = 32  # samples on which the speed of an encoder is measured


@dataclass(frozen=True)
class CompareResult:
    """The runs and the report; accuracies are shares of 1, None without labels.

    `best` has the tasks that no paired test can distinguish from the one with the highest k-NN accuracy, and that one first;
    `findings` say so, and how this one stands to random weights and the data's baseline.
    """

    report: str
    runs: dict[str, str]
    knn: dict[str, float] | None
    probe: dict[str, float] | None
    best: list[str] | None
    findings: list[Finding] = field(default_factory=list)


def compare(spec: CompareSpec) -> CompareResult:
    """Train tasks for the same time, one after the other, evaluate each when it is done, and write a report.

    All have the same image size and micro-batch. Each trains in a process of its own, so that its peak memory is measured
    alone. A stopped comparison continues when it is started again. Raises SslkitError, before anything is trained, for
    everything that any of the tasks refuses.
    """
    tasks = _split_tasks(spec)
    folders = {name: Path(spec.out, name.replace("+", "-and-")) for name in tasks}
    values = _common_values(spec)
    specs = {name: PretrainSpec(**{**values, "task": task, "minutes": spec.minutes}) for name, task in tasks.items()}
    report_values = {name: value for name, value in values.items() if name in ReportSpec.model_fields and name != "batch_size"}
    # A checkpoint has its size: given again, it would be a setting by hand, and the results had no protocol.
    evaluation_values = {
        **{name: value for name, value in report_values.items() if name != "encoder" and name not in spec.tables()},
        "test": spec.test,
    }
    shared = _agree([_check(each, folders[name]) for name, each in specs.items()])
    specs = {name: each.updated(shared) for name, each in specs.items()}
    unlabeled = _unlabeled(KnnSpec(ckpt="", **evaluation_values), next(iter(tasks.values())))
    specs = _with_micro_batches(specs, folders, spec.minutes, unlabeled is None)
    results: dict[str, tuple[Result, Result]] = {}
    for name, each in specs.items():
        _train(each, folders[name])
        if unlabeled is None:
            results[name] = _evaluate(name, str(folders[name] / MODEL), evaluation_values)
    if unlabeled is not None:
        say(f"no evaluation: the report has curves and pictures only: {unlabeled}")
    best, findings = None, list[Finding]()
    if results:
        best = find_best({name: result for name, (result, _) in results.items()}, folders, evaluation_values)
        findings = [describe_best(best, folders, spec, evaluation_values), *results[best[0]][0].findings[:1]]
    runs = {name: str(folder) for name, folder in folders.items()}
    page = report(ReportSpec(**report_values, runs=list(runs.values()), test=spec.test, out=str(Path(spec.out, "report.html"))))
    knn_accuracies, probe_accuracies = (
        {name: both[place].headline.value for name, both in results.items()} for place in (0, 1)
    )
    return CompareResult(page.path, runs, knn_accuracies or None, probe_accuracies or None, best, findings)


def _split_tasks(spec: CompareSpec) -> dict[str, str]:
    """Return the tasks, files with absolute paths, by name; fewer than two or a repeated one is an SslkitError."""
    tasks = [absolute(task.strip()) for task in spec.tasks.split(",") if task.strip()]
    by_name = {task_name(task): task for task in tasks}
    if len(tasks) < 2 or len(by_name) < len(tasks):
        raise SslkitError(f"two or more different tasks are needed (got {spec.tasks})", "such as rotation,simclr", flag="tasks")
    for task in tasks:
        try:
            load_task(task)  # before anything is measured for another
        except SslkitError as error:
            error.flags = error.flags or ("tasks",)
            raise
    return by_name


def _common_values(spec: CompareSpec) -> dict[str, Any]:
    """Return the settings made by the user that all tasks are pretrained with."""
    names = [name for name in CompareSpec.model_fields if name in PretrainSpec.model_fields and name != "out"]
    return {name: getattr(spec, name) for name in names if name in spec.model_fields_set}


def _with_micro_batches(
    specs: dict[str, PretrainSpec], folders: dict[str, Path], minutes: float, labeled: bool
) -> dict[str, PretrainSpec]:
    """Rehearse the tasks that are still to begin, announce their steps, and return the specs with one micro-batch for all.

    Where a batch has to be split, all tasks that are still to begin compute as few samples at once.
    """
    with silence():  # the first check has printed all of it
        jobs = {name: _check(each, folders[name]) for name, each in specs.items()}
    rehearsals = {name: _rehearse(job) for name, job in jobs.items() if not holds_run(job.out)}
    _announce(rehearsals, minutes, labeled)
    micro_batches: dict[str, int | Literal["auto"]] = {
        name: rehearsals[name].micro_batch if name in rehearsals else job.settings.spec.micro_batch
        for name, job in jobs.items()
    }
    split = [size for name, size in micro_batches.items() if size != "auto" and size < jobs[name].settings.spec.batch_size]
    return specs | {name: specs[name].updated({"micro_batch": min(split)}) for name in rehearsals if split}


def _evaluate(name: str, checkpoint: str, values: dict[str, Any]) -> tuple[Result, Result]:
    """Return what k-NN and a linear probe measure of a task's checkpoint."""
    results = knn(KnnSpec(ckpt=checkpoint, **values)), probe(ProbeSpec(ckpt=checkpoint, **values))
    say(f"{name}: {', '.join(f'{result.verb} {metric_text(result.headline)}' for result in results)}", style="bold")
    return results


def _agree(jobs: list[TrainingJob]) -> dict[str, Any]:
    """Return the size of samples for all tasks: of a run that continues, else the smallest; of several modalities none."""
    modalities = {job.settings.data.modality for job in jobs}
    begun = [job for job in jobs if holds_run(job.out)]
    if len(modalities) > 1:
        return {}
    return data_options()[modalities.pop()].of_size(min(job.settings.data.size for job in begun or jobs))


@dataclass(frozen=True)
class _Rehearsal:
    """What was measured of a task before anything is trained; times in seconds."""

    micro_batch: int
    step: float
    features: float  # of all training samples


def _rehearse(job: TrainingJob) -> _Rehearsal:
    """Measure the memory and time of a task's steps, and the speed of its encoder."""
    with silence():
        stepper = Stepper(build_task(job, initialize=False), job.settings, Clock(steps=10**6))
        stepper.before_epoch(0)
        settle_micro_batch(stepper)
        step, raw = measure_step(stepper, _MEASURED_SECONDS)
    source, encoder = stepper.settings.source, stepper.task.encoder
    few = {name: value[:_FEATURES] for name, value in raw.items() if isinstance(value, Tensor)}
    started_at = time.perf_counter()
    with torch.no_grad(), in_eval_mode(encoder):
        view = source.view(to_device(few, source, stepper.machine.device), encoder.modality)
        over_views(lambda images: {"": encoder(images).cpu()}, encoder.sample_dims, view)
    return _Rehearsal(stepper.micro_batch, step, (time.perf_counter() - started_at) / len(view) * job.settings.data.samples)


def _announce(rehearsals: dict[str, _Rehearsal], minutes: float, labeled: bool) -> None:
    """Print the steps of each task and how long all of it takes, and which tasks have too few steps to learn anything."""
    if not rehearsals:
        return
    seconds = 60 * minutes * len(rehearsals) + (sum(each.features for each in rehearsals.values()) if labeled else 0.0)
    tasks = f"{len(rehearsals)} tasks of {duration(60 * minutes)}{', and evaluation' if labeled else ''}"
    say(f"{tasks}: about {duration(seconds)}", style="bold")
    steps = {name: max(1, round(60 * minutes / each.step)) for name, each in rehearsals.items()}
    for name, number in steps.items():
        say(f"  {name:<16} about {number:,} steps")
    few = [name for name, number in steps.items() if number < FEW_STEPS]
    if few:
        needed = math.ceil(minutes * ENOUGH_STEPS / min(steps.values()))
        say(
            f"  too few steps to learn anything: {join_names(few)}; {ENOUGH_STEPS} for each take --minutes {needed}",
            style="bold yellow",
        )


def _check(spec: PretrainSpec, folder: Path) -> TrainingJob:
    """Return the job of a task, which an earlier comparison may have begun; raises SslkitError for what `pretrain` refuses."""
    try:
        with renamed_flags({"resume": "out"}):
            return prepare(spec.updated({"out": str(folder), "resume": True}))
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
        file.write_text(spec.model_dump_json(exclude_unset=True), encoding="utf-8")
        words = ["pretrain", "--spec", str(file), "--out", str(folder), "--resume", "--json"]
        # In a session of its own: a terminal's Ctrl-C would reach it beside ours, and two mean at once.
        command = [sys.executable, "-P", "-m", "sslkit", *words]  # -P: a folder sslkit here, such as a checkout, is not it
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        forwarded = False
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if stop.signal and not forwarded:
                    if hasattr(os, "setsid"):  # without sessions, on Windows, it has come to both
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
