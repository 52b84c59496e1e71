"""Which of several tasks' checkpoints is ahead in k-NN, and the command to try next."""

import shlex
from pathlib import Path
from typing import Any

from sslkit.console import silence
from sslkit.contract.result import Finding, Result
from sslkit.engine.checkpoint import read_model
from sslkit.engine.run_command import flag_words
from sslkit.engine.run_folder import MODEL
from sslkit.evaluation.knn import knn
from sslkit.evaluation.next_steps import LONGER, NextSteps
from sslkit.evaluation.notes import join_names
from sslkit.evaluation.statistics import select_equal
from sslkit.specs.evaluation import KnnSpec
from sslkit.specs.train import CompareSpec
from sslkit.tasks.load import task_name


def find_best(results: dict[str, Result], folders: dict[str, Path], values: dict[str, Any]) -> list[str]:
    """Return the task of the highest accuracy, and those that no paired test can distinguish from it.

    The p-values are adjusted for the number of tasks alone, as in the report.
    """
    first, *others = sorted(results, key=lambda name: -results[name].headline.value)
    against = [str(folders[name] / MODEL) for name in others]
    with silence():
        paired = knn(KnnSpec(**values, ckpt=str(folders[first] / MODEL), against=against, baselines=False))
    rows = [row for row in paired.rows if row.role == "other" and row.test == paired.rows[0].test]
    p_values = {name: next(iter(row.comparisons.values())).p_value for name, row in zip(others, rows, strict=True)}
    return [first, *select_equal(p_values)]


def describe_best(best: list[str], folders: dict[str, Path], spec: CompareSpec, values: dict[str, Any]) -> Finding:
    """Return which task is ahead and how to fine-tune it, or which cannot be distinguished and a longer comparison."""
    first, *equal = best
    if equal:
        text = f"k-NN cannot distinguish {first} from {join_names(equal)}; longer training or more test samples may."
        return Finding("tie", text, _longer_comparison(best, spec))
    checkpoint = folders[first] / MODEL
    steps = NextSteps(KnnSpec(**values, ckpt=str(checkpoint)), read_model(str(checkpoint)))
    command = steps.evaluate("finetune", "--scratch") if steps.can_finetune else ""
    return Finding("ahead", f"{first} is ahead of {join_names([name for name in folders if name != first])} in k-NN.", command)


def _longer_comparison(best: list[str], spec: CompareSpec) -> str:
    """Return the command that compares the best tasks for longer, in another folder."""
    values = {name: getattr(spec, name) for name in spec.model_fields_set - spec.tables()} | spec.data_values()
    tasks = [task.strip() for task in spec.tasks.split(",") if task_name(task.strip()) in best]
    values |= {"tasks": ",".join(tasks), "minutes": f"{LONGER * spec.minutes:g}", "out": f"{Path(spec.out)}-longer"}
    words = [word for name, value in values.items() for word in flag_words(name, value)]
    return shlex.join(["sslkit", "compare", *words])
