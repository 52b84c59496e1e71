"""What has to be known about a result before it is believed, and results stored in a run folder."""

from pathlib import Path
from typing import Any

from sslkit.contract.result import Data, Result, Row
from sslkit.engine.run_folder import read_json_lines
from sslkit.evaluation.gain import gain_over

LAYER_WEIGHTS = "layer weights"  # among what a fit chose: learned, not chosen on held-out data


def read_results(file: Path) -> list[Result]:
    """Return the results in a run's `results.jsonl`; a line that is damaged or of a newer schema is skipped."""
    results = []
    for line in read_json_lines(file):
        try:
            results.append(Result.from_json(line))
        except ValueError:
            continue
    return results


def write_notes(rows: list[Row], data: Data) -> list[str]:
    """Return the facts below a table, derived from its rows and its data alone."""
    notes = _compare_with_others(rows)
    n_train = f"{rows[0].n_train:,} training and " if rows[0].n_train else ""
    if len(data.tests) == 1:
        notes.append(f"{n_train}{count(data.tests[0].n, 'test sample')}.")
    else:
        tests = ", ".join(f"{test.n:,} of {test.name}" for test in data.tests)
        notes.append(
            f"{count(rows[0].n_train, 'training sample')}; test samples: {tests}." if n_train else f"Test samples: {tests}."
        )
    for test in data.tests:
        where = f" of {test.name}" if len(data.tests) > 1 else ""
        if test.duplicates:
            verb = "occurs" if test.duplicates == 1 else "occur"
            notes.append(f"{count(test.duplicates, 'test sample')}{where} also {verb} in the training set.")
        if test.seen_in_pretraining:
            notes.append(f"The test data{where} was part of pretraining.")
    same = [row for row in rows if (row.model, row.test) == (rows[0].model, rows[0].test)]
    chosen = [
        (f"layer {row.layer}: " if len(same) > 1 else "")
        + ", ".join(f"{name} {value}" for name, value in fit.chosen.items() if name != LAYER_WEIGHTS)
        for row in same
        for fit in row.fits
        if fit.chosen.keys() - {LAYER_WEIGHTS}
    ]
    if chosen:
        notes.append(f"Chosen on held-out training data: {'; '.join(chosen)}.")
    learned = [str(fit.chosen[LAYER_WEIGHTS]) for fit in same[0].fits if LAYER_WEIGHTS in fit.chosen]
    if learned:
        notes.append(f"Weights of the layers, from the input on: {'; '.join(learned)}.")
    return notes


def note_on_labels(metadata: dict[str, Any]) -> list[str]:
    """Return a sentence about labels that the task of a checkpoint has seen, which few other rows of a table have."""
    labeled = metadata.get("labeled")
    if not isinstance(labeled, int):
        return []
    return [f"The checkpoint was pretrained with {count(labeled, 'label')} of {metadata['labeled_classes']} classes."]


def count(number: int, noun: str) -> str:
    """Return a number with its noun, which has an `s` unless there is exactly one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def join_names(names: list[str]) -> str:
    """Return names as a list in a sentence: "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def p_text(value: float | None) -> str:
    """Return a p-value as people read it, nothing if there is none."""
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def describe_comparisons(rows: list[Row]) -> list[str]:
    """Return a sentence for every comparison of the rows, with its p-value, adjusted too if it was adjusted."""
    sentences = []
    for row in rows:
        place = "".join(f", {name} {value}" for name, value in (("layer", row.layer), ("test part", row.test)) if value)
        for other, comparison in row.comparisons.items():
            adjusted = f", Holm-adjusted {p_text(comparison.adjusted)}" if comparison.adjusted is not None else ""
            sentences.append(
                f"{row.model} against {other}{place}: p {p_text(comparison.p_value)}{adjusted} ({comparison.method})"
            )
    return sentences


def _compare_with_others(rows: list[Row]) -> list[str]:
    """Return a sentence for each model named by --against: how the first row's model differs from it on a test part."""
    sentences = []
    for row in rows:
        of_test = [first for first in rows if (first.model, first.test) == (rows[0].model, row.test)]
        if row.role != "other" or not of_test:
            continue
        first = next((same for same in of_test if same.layer == row.layer), of_test[-1])
        gain = gain_over(first, row)
        if gain.is_positive or gain.is_negative:
            how = "better" if gain.is_positive else "worse"
            sentences.append(f"{first.model}: {gain.amount()} {how} than {row.model}{gain.interval()}.")
        else:
            sentences.append(f"{first.model}: not distinguishable from {row.model}, {gain.difference()}{gain.interval()}.")
    return sentences
