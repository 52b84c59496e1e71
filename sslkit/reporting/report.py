"""`sslkit report`: runs in one HTML file that needs nothing else, to show to others."""

import base64
import html
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

from sslkit.contract.errors import SslkitError
from sslkit.contract.result import Metric, Result
from sslkit.engine.run_folder import PREVIEWS
from sslkit.evaluation.metrics import TOP1
from sslkit.evaluation.models import CHECKPOINT
from sslkit.evaluation.notes import p_text
from sslkit.evaluation.statistics import mcnemar_of_answers
from sslkit.files import output_path, write_atomically
from sslkit.reporting import charts
from sslkit.reporting.figures import Figures, make_figures
from sslkit.reporting.runs import RunRecord, names_of
from sslkit.reporting.style import HOVER_SCRIPT, STYLE
from sslkit.specs.look import ReportSpec
from sslkit.tasks.load import task_name

_CLASSES = 30  # as many fit into a table of all pairs


@dataclass(frozen=True)
class ReportResult:
    """The page `sslkit report` wrote."""

    path: str
    runs: list[str]
    bytes: int


def report(spec: ReportSpec) -> ReportResult:
    """Write a page about runs, as `sslkit report` does.

    It shows the contents of run folders; map, neighbors and confusion matrix need the samples to be readable.
    """
    out = output_path(spec.out, ".html")
    if not spec.runs:
        raise SslkitError("no run is named", "sslkit report RUN...")
    folders = [Path(run).resolve() for run in spec.runs]
    runs = [RunRecord.read(folder, name, spec.encoder) for folder, name in zip(folders, names_of(folders), strict=True)]
    parts = [f"<h1>{_text(', '.join(run.name for run in runs))}</h1>", f"<p>sslkit {version('sslkit')}, {date.today()}</p>"]
    figures = [make_figures(run.checkpoint, spec) for run in runs]
    if len(runs) > 1:
        parts += ["<h2>Compared</h2>", _compare(runs), _compare_pairs(runs, figures)]
    for run, run_figures in zip(runs, figures, strict=True):
        parts += _describe(run, run_figures)
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{_text(', '.join(run.name for run in runs))}</title><style>{STYLE}</style><body>{''.join(parts)}"
        f"<script>{HOVER_SCRIPT}</script></body></html>\n"
    ).encode(errors="replace")  # names of files may be no text
    with write_atomically(out) as stream:
        stream.write(page)
    return ReportResult(str(out), [str(run.path) for run in runs], len(page))


def _describe(run: RunRecord, figures: Figures) -> Iterable[str]:
    """Return the sections about one run."""
    metadata = run.checkpoint.metadata
    yield f"<h2>{_text(run.name)}</h2>"
    before = metadata.get("pretrained_by")
    facts = {
        "task": task_name(metadata["task"]),
        "pretrained by": "" if before is None else before["task"],
        "encoder": run.spec["encoder"],
        "steps": f"{metadata['step']:,} of {run.spec['batch_size']} samples of size {run.checkpoint.size}",
        "time": "" if run.minutes is None else f"{run.minutes:.1f} minutes",
        "data": Path(run.spec.get("data") or "").name,
        "data fingerprint": metadata["data"],
        "made by": ", ".join(f"{name} {number}" for name, number in metadata.get("versions", {}).items()),
    }
    yield _table(["", ""], [[name, value] for name, value in facts.items() if value])
    longer = " (its first part: the run was extended)" if metadata.get("extended_from") else ""
    yield f"<p>To repeat it{longer}:</p><pre>{_text(run.command)}</pre>"
    alarms = [f"step {line['step'] + 1}: {alarm}" for line in run.lines for alarm in line.get("alarms", [])]
    if alarms:
        yield "<h3>Warnings</h3><ul>" + "".join(f"<li>{_text(alarm)}</li>" for alarm in alarms) + "</ul>"
    if len(run.lines) > 1:
        yield "<h3>Training</h3>" + _curves(run.lines)
    pictures = sorted((run.path / PREVIEWS).glob("step-*.png"), key=lambda file: int(file.stem.partition("-")[2]))
    if pictures:
        yield "<h3>Inputs and outputs of the task</h3>"
        steps = [int(file.stem.partition("-")[2]) for file in pictures]
        yield _side_by_side(
            _figure(file.read_bytes(), f"After {step:,} steps." if step else "Before the first step.", "pixels")
            for step, file in zip(steps, pictures, strict=True)
        )
    if run.results:
        yield "<h3>Evaluations</h3>" + _table(*_evaluations(run))
        layers = _by_layer(run.results)
        if layers:
            yield _figure(charts.intervals(layers, "layer", "accuracy"), "Accuracy by layer, with 95% intervals.")
    if figures.confusion is not None:
        yield f"<h3>Confusion matrix</h3>{_confusion(*figures.confusion)}<p>{_text(figures.confusion_title)}</p>"
    if figures.places:
        yield f"<h3>Features in two dimensions</h3>{_map(figures)}"
    if figures.neighbors is not None:
        yield "<h3>Nearest images</h3>" + _figure(figures.neighbors, "A sample in each row, and its nearest neighbors.")
    for reason in figures.missing:
        yield f"<p>{_text(reason)}</p>"


def _compare(runs: list[RunRecord]) -> str:
    """Return accuracy against minutes and memory, as a table and as a picture."""
    costs = [
        (run, _last_layer(run), max((line["memory"] for line in run.lines if "memory" in line), default=None)) for run in runs
    ]
    rows = [
        [
            run.name,
            f"{run.checkpoint.metadata['step']:,}",
            "" if run.minutes is None else f"{run.minutes:.1f}",
            "" if memory is None else f"{memory / 1e9:.2f} GB",
            "; ".join(f"{protocol} {metric.text()}" for protocol, metric in accuracies.items()) or "none measured",
        ]
        for run, accuracies, memory in costs
    ]
    table = _table(["run", "steps", "minutes", "peak memory", "accuracy of the last layer"], rows)
    complete = [(run, accuracies, memory) for run, accuracies, memory in costs if accuracies and run.minutes and memory]
    if not complete:
        return table
    pictures = []
    for title in ("minutes of training", "peak memory, GB"):
        groups: dict[str, charts.Points] = {}
        for run, accuracies, memory in complete:
            for protocol, metric in accuracies.items():
                cost = (run.minutes or 0.0) if title.startswith("minutes") else memory / 1e9
                groups.setdefault(protocol, []).append((cost, metric.value, run.name))
        picture = charts.points(groups, title, "accuracy")
        pictures.append(_figure(picture, f"Accuracy of the last layer against {title}."))
    return table + _side_by_side(pictures)


def _last_layer(run: RunRecord) -> dict[str, Metric]:
    """Return the headline of a run's last layer on its first test part, by protocol: accuracies only."""
    headlines = {}
    for result in run.results:
        rows = [row for row in result.rows if row.model == CHECKPOINT and row.headline.name == TOP1]
        rows = [row for row in rows if row.test == rows[0].test]
        if rows and result.settings.get("layer", "last") in ("last", "all"):
            headlines[result.title] = rows[-1].headline
    return headlines


def _compare_pairs(runs: list[RunRecord], figures: list[Figures]) -> str:
    """Return McNemar's test of every two runs evaluated on the same test samples, nothing if there are none."""
    rows = []
    for (first, first_figures), (second, second_figures) in combinations(zip(runs, figures, strict=True), 2):
        mine, theirs = first_figures.answers, second_figures.answers
        if mine is not None and theirs is not None and mine[0] == theirs[0]:
            shares = [_share(answers.correct.mean().item()) for _, answers in (mine, theirs)]
            p_value = p_text(mcnemar_of_answers(mine[1], theirs[1]))
            rows.append([first.name, shares[0], second.name, shares[1], p_value])
    if not rows:
        return ""
    caption = "Probability of a difference this large between equally good encoders (McNemar's test of the answers below):"
    return f"<p>{_text(caption)}</p>" + _table(["run", "correct", "run", "correct", "p"], rows)


def _evaluations(run: RunRecord) -> tuple[list[str], list[list[str]]]:
    head = ["protocol", "model", "test data", "layer", "metric", "value", "95% interval", "other metrics"]
    rows, folder = [], f"{Path(run.spec.get('data') or '.').parent}/"
    for result in run.results:
        for row in result.rows:
            others = ", ".join(f"{metric.name} {metric.text()}" for metric in row.metrics[1:])
            test = row.test.replace(folder, "")  # readers of the page have no such folder
            headline = row.headline
            cells = [row.model, test, row.layer or "", headline.name, headline.text(), headline.interval_text(), others]
            rows.append([result.title, *cells])
    return head, rows


def _by_layer(results: list[Result]) -> dict[str, list[tuple[str, float, float, float]]]:
    """Return, by protocol and model, the accuracy and interval of numbered layers on the first test part."""
    lines: dict[str, list[tuple[str, float, float, float]]] = {}
    for result in results:
        for row in result.rows:
            metric, layer = row.headline, row.layer or ""
            if not layer.isdigit() or metric.name != TOP1 or row.test != result.rows[0].test:
                continue
            if metric.low is not None and metric.high is not None:
                lines.setdefault(f"{result.title}, {row.model}", []).append((layer, metric.value, metric.low, metric.high))
    return {name: rows for name, rows in lines.items() if len({row[0] for row in rows}) == len(rows) > 1}


def _curves(lines: list[dict[str, Any]]) -> str:
    """Return curves of loss, rate, health and speed by step."""
    known = {"step", "epoch", "lr", "samples_per_second", "transform_share", "gradient_norm", "seconds", "memory", "alarms"}
    health_names = ("rankme", "feature_deviation", "feature_alignment", "uniformity", "teacher_entropy", "online_knn")
    health = [name for name in health_names if sum(name in line for line in lines) > 1]
    others = [name for name in lines[-1] if name not in known and name not in health_names]
    groups = {
        "Loss": [name for name in others if "loss" in name],
        "Other metrics of the task": [name for name in others if "loss" not in name],
        "Feature health, relative to the first measurement": health,
        "Learning rate": ["lr"],
        "Samples per second": ["samples_per_second"],
    }
    pictures = []
    for title, names in groups.items():
        curves = {}
        for name in names:
            steps = [line["step"] + 1 for line in lines if line.get(name) is not None]
            values = [line[name] for line in lines if line.get(name) is not None]
            if values and names is health:
                values = [value / (abs(values[0]) or 1.0) for value in values]
            curves[name] = steps, values
        if curves:
            pictures.append(_figure(charts.lines(curves, "step"), f"{title}."))
    return _side_by_side(pictures)


def _confusion(counts: Any, classes: list[str]) -> str:
    """Return the confusion matrix, true class by row, as shares of the row; of many classes the most frequent confusions."""
    share = counts / counts.sum(axis=1, keepdims=True).clip(1)
    if len(classes) > _CLASSES:
        wrong = [(share[r, c], r, c) for r in range(len(classes)) for c in range(len(classes)) if r != c and counts[r, c]]
        worst = sorted(wrong, reverse=True)[:20]
        return _table(["true", "predicted", "share"], [[classes[r], classes[c], _share(part)] for part, r, c in worst])
    head = "".join(f"<th>{_text(name)}</th>" for name in classes)
    body = ""
    for name, row in zip(classes, share, strict=True):
        cells = (
            f'<td style="background:rgba(30,100,180,{part:.2f});color:{"#fff" if part > 0.5 else "#222"}">'
            f"{f'{part:.0%}' if part >= 0.005 else ''}</td>"
            for part in row
        )
        body += f"<tr><th>{_text(name)}</th>{''.join(cells)}</tr>"
    return f'<div class="wide"><table class="confusion"><tr><th></th>{head}</tr>{body}</table></div>'


def _map(figures: Figures) -> str:
    """Return the map: a point for each image, its picture where the pointer is."""
    names = sorted({place.label for place in figures.places if place.label is not None})
    hue = {name: f"hsl({360 * number / max(1, len(names)):.0f} 65% 45%)" for number, name in enumerate(names)}
    points = "".join(
        f'<circle cx="{place.x:.1f}" cy="{place.y:.1f}" r="5" fill="{hue.get(place.label or "", "#777")}" fill-opacity=".8" '
        f'data-image="{number}"><title>{_text(place.label or "")}</title></circle>'
        for number, place in enumerate(figures.places)
    )
    legend = " ".join(f'<span style="color:{color}">&#9679;</span>&nbsp;{_text(name)}' for name, color in hue.items())
    pictures = json.dumps([base64.b64encode(place.picture).decode() for place in figures.places])
    return (
        f'<div class="map"><svg viewBox="0 0 900 640" role="img">{points}</svg><img alt="">'
        f'<script type="application/json">{pictures}</script></div><p>{legend}</p><p>{_text(figures.places_title)}</p>'
    )


def _figure(picture: bytes, caption: str, kind: str = "") -> str:
    data = base64.b64encode(picture).decode()
    attribute = f' class="{kind}"' if kind else ""
    image = f'<img{attribute} alt="{_text(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{_text(caption)}</figcaption></figure>"


def _side_by_side(figures: Iterable[str]) -> str:
    """Return figures in a row, or below each other where it is narrow."""
    return f'<div class="side">{"".join(figures)}</div>'


def _table(head: list[str], rows: list[list[str]]) -> str:
    titles = "".join(f"<th>{_text(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>{f"<tr>{titles}</tr>" if any(head) else ""}{body}</table></div>'


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _text(value: Any) -> str:
    return html.escape(str(value))
