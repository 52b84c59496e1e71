"""The card beside an exported file: what it is, how it was made, measured results, and how to load it."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sslkit.contract.exporter import Exporter, ExportJob, Settings
from sslkit.contract.modality import InputGuide, Snippet
from sslkit.encoders.recipe import encoder_name
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.run_folder import RESULTS
from sslkit.evaluation.notes import read_results
from sslkit.files import write_atomically
from sslkit.registry import load_modality
from sslkit.specs.data import MAIN_PART


@dataclass(frozen=True)
class Card:
    """Everything a card describes: the file, the checkpoint it was made from, and the verification."""

    path: Path  # of the file
    exporter: Exporter
    job: ExportJob
    checkpoint: Checkpoint
    settings: Settings  # of the reader
    difference: float  # largest, between file and network
    guide: InputGuide | None


def card_path(file: Path, exporter: Exporter) -> Path:
    """Return where the card of a file lies: beside it, of a folder in it."""
    return file / "README.md" if exporter.files else Path(f"{file}.md")


def write_card(card: Card, path: Path) -> None:
    """Write the card, Markdown with a table of results, to a path."""
    weights, contents = card.job.description["weights"], card.exporter.contents(card.job)
    facts = {
        **({**_origin(card), **contents} if contents else _network_facts(card)),
        "data": f"fingerprint {card.job.metadata['data']}",
        "weights": f"hash {weights}",
        "made by": f"sslkit {version('sslkit')}",
        "license": card.job.license or "not stated: fill in",
    }
    front = card.exporter.front_matter(card.job)
    # JSON is YAML, too.
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""] if front else []
    lines += [
        f"# {card.path.name}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in facts.items()),
    ]
    if card.job.classes:
        lines += ["", f"Classes, in order: {', '.join(card.job.classes)}."]
    if not contents:
        lines += ["", "## Results", "", *_results(card.checkpoint.path.parent / RESULTS, weights)]
    loading = card.exporter.loading(card.path.name, card.settings, card.job.output)
    if card.guide is not None and not contents:
        lines += ["", "## Input", "", *_with_file_names(card.guide.text, card)]
        for snippet in card.guide.snippets:
            lines += ["", f"With {snippet.title}:", "", "```python", *_code(snippet, card), "```"]
    lines += ["", "## Loading", "", "```python", *loading, "```", ""]
    with write_atomically(path) as stream:
        stream.write("\n".join(lines).encode(errors="replace"))  # class names may contain lone surrogates


def _code(snippet: Snippet, card: Card) -> list[str]:
    """Return the lines of a snippet, and those that make of its result what the lines of `loading` take."""
    name, lines = card.job.input, _with_file_names(snippet.lines, card)
    if snippet.makes_tensor == card.exporter.takes_tensors:
        return lines
    if snippet.makes_tensor:
        return [*lines, f"{name} = {name}.numpy()"]
    return ["import torch", *lines, f"{name} = torch.from_numpy({name})"]


def _with_file_names(lines: list[str], card: Card) -> list[str]:
    """Return lines that call the files beside an export by their full names."""
    for file in card.guide.files if card.guide else ():
        lines = [line.replace(file, f"{card.path.name}.{file}") for line in lines]
    return lines


def _origin(card: Card) -> dict[str, Any]:
    """Return the rows of the table on task and training."""
    return {"task": card.job.metadata["task"], "trained": f"{card.job.metadata['step']:,} steps"}


def _network_facts(card: Card) -> dict[str, Any]:
    """Return the rows of the table on task, training, encoder, input and output."""
    job, metadata = card.job, card.job.metadata
    run, pretraining = metadata.get("spec", {}), metadata.get("pretrained_by")
    options = ", ".join(f"{name} {value}" for name, value in run.get("options", {}).items())
    origin = _origin(card)
    data = load_modality(card.checkpoint.modality).options
    size = f"{job.size:,} {data.size_unit}" + (" and more" if job.dynamic_size else "")
    channels = f"{card.checkpoint.channels} channel" + ("" if card.checkpoint.channels == 1 else "s")
    batch = "" if job.dynamic_batch or not card.exporter.normalizes else ", one at a time"
    normalization = "not yet normalized: that is inside" if card.exporter.normalizes else "normalized as below"
    described = f"{channels} of {size} in {data.value_range}{batch}, {normalization}" if data.value_range else size + batch
    difference = f"within {card.difference:.1g} of sslkit's" if card.difference else "equal to sslkit's"
    library, role = metadata.get("encoder_from", "sslkit"), metadata.get("role", "student")
    part = "" if card.checkpoint.part_name == MAIN_PART else f"{card.checkpoint.part_name}: "
    return {
        "task": origin["task"] + (f" ({options})" if options else ""),
        **({} if pretraining is None else {"pretrained by": f"{pretraining['task']}, weights {pretraining['weights']}"}),
        "trained": f"{origin['trained']} of {run.get('batch_size', '?')} samples of {card.checkpoint.size:,} {data.size_unit}",
        "encoder": f"{part}{encoder_name(job.recipe)} of {library}" + ("" if part or role == "student" else f"; the {role}'s"),
        "input": described,
        "output": f"{job.output}, {difference}",
    }


def _results(file: Path, weights: str) -> list[str]:
    """Return a table of the run's results with these weights; a test part is named by its hash, not its path."""
    rows = []
    for result in read_results(file):
        for row in result.rows:
            if row.weights != weights:
                continue
            metric, test = row.headline, result.data.test(row.test)
            size = f"{metric.n:,}" + (f", {test.fingerprint}" if test is not None else "")
            interval = f" ({metric.interval_text()})" if metric.interval_text() else ""
            rows.append(f"| {result.title} | {size} | {row.layer or ''} | {metric.text()}{interval} {metric.name} |")
    if not rows:
        return ["None were measured beside the checkpoint: run `sslkit evaluate`."]
    head = "| protocol | test samples, hash of samples and labels | layer | headline metric and 95% interval |"
    return [head, "|---|---|---|---|", *dict.fromkeys(rows)]


def _cell(value: Any) -> str:
    """Return a value as a cell of a table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
