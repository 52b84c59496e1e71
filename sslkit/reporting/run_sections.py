"""The sections of a report about one run, the verdict first."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from sslkit import registry
from sslkit.console import duration
from sslkit.engine.curves import Curve
from sslkit.engine.run_folder import MODEL
from sslkit.evaluation.notes import count
from sslkit.evaluation.search import Neighborhood, Sample
from sslkit.reporting.figures import Figures
from sslkit.reporting.page import command_block, figure, fold, image, row, section, table, text
from sslkit.reporting.previews import preview_steps, read_preview
from sslkit.reporting.projected import draw_map
from sslkit.reporting.result_tables import all_evaluations
from sslkit.reporting.runs import RunRecord
from sslkit.reporting.tiles import encode
from sslkit.reporting.training_charts import plan_charts
from sslkit.reporting.verdict import plain_card, result_bars, verdict_card
from sslkit.tasks.load import split_names, task_name

_FEW, _TILE_SIDE = 4, 96  # neighbors whose names fit into a line, and pixels of a picture's side


def describe_run(run: RunRecord, figures: Figures) -> Iterator[str]:
    """Yield the sections about one run: verdict, what was trained, curves, previews, neighbors, map, tables."""
    yield _verdict(run)
    yield section("What was trained", _facts(run, figures))
    yield _training(run)
    yield _previews(run)
    yield section("Nearest neighbors", _neighbors(figures))
    yield section("Map of the features", draw_map(figures))
    yield all_evaluations(run, figures)
    yield section("Settings", _settings(run), _command(run), _missing(figures))


def _verdict(run: RunRecord) -> str:
    """Return the newest evaluation's verdict and bars of the others; of a run without any, what its training says."""
    alarms = _alarms(run)
    if not run.results:
        verb = "finetune" if "task" not in run.spec else "knn"
        hint = [f'<p class="quiet">{text("To evaluate it:")}</p>']
        command = shlex.join(["sslkit", verb, "--ckpt", str(run.path / MODEL)]) if verb == "knn" else ""
        sentence = f"Not evaluated yet. {_training_sentence(run)}"
        return plain_card(sentence.strip(), [alarms, *(hint if command else [])], command, "warn" if alarms else "")
    *earlier, newest = run.results
    latest = {result.title: result for result in earlier if result.title != newest.title}
    others = [bars for result in reversed(latest.values()) if (bars := result_bars(result))]
    return verdict_card(newest, alarms) + (row(others, "more") if others else "")


def _training_sentence(run: RunRecord) -> str:
    """Return in one sentence what the logged lines say."""
    losses = [line["loss"] for line in run.lines if isinstance(line.get("loss"), int | float)]
    if len(losses) < 2:
        return ""
    first, last = (f"{loss:.4g}" for loss in (losses[0], losses[-1]))
    verb = "fell" if losses[-1] < losses[0] else "did not fall"
    parts = [f"In {count(run.checkpoint.metadata['step'], 'step')} the loss {verb} from {first} to {last}"]
    metric = _last_task_metric(run)
    if metric is not None:
        curve, value = metric
        parts.append(f"{curve.title} reached {curve.text(value)}")
    return f"{'; '.join(parts)}."


def _last_task_metric(run: RunRecord) -> tuple[Curve, float] | None:
    """Return the first curve with a chance level, and its last value."""
    for name, curve in run.curves.items():
        values = [line[name] for line in run.lines if isinstance(line.get(name), int | float)]
        if curve.chance is not None and values:
            return curve, values[-1]
    return None


def _alarms(run: RunRecord) -> str:
    alarms = [f"Step {line['step'] + 1:,}: {alarm}." for line in run.lines for alarm in line.get("alarms", [])]
    return f'<ul class="alarms">{"".join(f"<li>{text(alarm)}</li>" for alarm in alarms)}</ul>' if alarms else ""


def _facts(run: RunRecord, figures: Figures) -> str:
    """Return a strip of samples, one line of facts, and what the task is."""
    metadata, spec = run.checkpoint.metadata, run.spec
    strip = ""
    if figures.strip:
        pixels = "pixels" if figures.strip[0].startswith(b"\x89PNG") else ""
        strip = row([image(picture, "", pixels) for picture in figures.strip], "strip")
    data = Path(spec.get("data") or "").name
    before = metadata.get("pretrained_by")
    facts = [
        task_name(metadata["task"]) + ("" if before is None else f" after {before['task']}"),
        f"{spec['encoder']}, {_millions(run.parameters)} parameters",
        f"{data}: {figures.samples:,} {figures.noun}" if figures.samples is not None else data,
        f"size {run.checkpoint.size}",
        f"{count(metadata['step'], 'step')} of {spec['batch_size']}",
        "" if run.minutes is None else duration(60 * run.minutes),
    ]
    summary = " ".join(entry.summary for entry in _tasks(str(metadata["task"])))
    about = f'<p class="quiet">{text(summary)}</p>' if summary else ""
    return f"{strip}<p>{text(' · '.join(fact for fact in facts if fact))}</p>{about}"


def _tasks(task: str) -> list[registry.Entry]:
    return [entry for name in split_names(task) for entry in registry.entries(registry.TASKS, name)]


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"


def _training(run: RunRecord) -> str:
    """Return the curves: those that are read first, and the others folded."""
    if len(run.lines) < 2:
        return ""
    charts = plan_charts(run.curves)
    main = [chart_html for chart in charts if chart.main and (chart_html := chart.draw(run.lines))]
    others = [chart_html for chart in charts if not chart.main and (chart_html := chart.draw(run.lines))]
    more = fold("Learning rate, gradients, speed and more", row(others, "charts")) if others else ""
    return section("Training", row(main, "charts"), more)


def _previews(run: RunRecord) -> str:
    pictures = {step: picture for step in preview_steps(run.path) if (picture := read_preview(run.path, step)) is not None}
    figures = [
        figure(picture, f"After {count(step, 'step')}" if step else "Before the first step")
        for step, picture in pictures.items()
    ]
    return section("What the task sees and predicts", row(figures, "side")) if figures else ""


def _neighbors(figures: Figures) -> str:
    """Return samples with their nearest neighbors, as pictures where they have some; the nearest words of words."""
    if figures.word_neighbors:
        near = figures.word_neighbors
        rows = [[query, ", ".join(f"{name} {cosine:.2f}" for name, cosine in nearest)] for query, nearest in near.items()]
        return table(["word", "nearest words, with cosine"], rows)
    if all(each.query.picture is None for each in figures.neighbors):
        rows = [
            [each.query.name, ", ".join(f"{sample.name} {sample.cosine:.2f}" for sample in each.neighbors[:_FEW])]
            for each in figures.neighbors
        ]
        return table(["sample", "nearest, with cosine"], rows) if rows else ""
    rows_of_pictures = "".join(_neighborhood(each) for each in figures.neighbors)
    caption = "First the sample, then its nearest neighbors in feature space, with cosine and label."
    return f'<p class="quiet">{caption}</p><div class="wide"><div class="neighbors">{rows_of_pictures}</div></div>'


def _neighborhood(each: Neighborhood) -> str:
    tiles = [_neighbor(each.query, "", "query")]
    for sample in each.neighbors:
        known = sample.label is not None and each.query.label is not None
        kind = "" if not known else "right" if sample.label == each.query.label else "wrong"
        tiles.append(_neighbor(sample, f"{sample.cosine:.2f}", kind))
    return "".join(tiles)


def _neighbor(sample: Sample, value: str, kind: str) -> str:
    picture = encode(sample.picture, _TILE_SIDE) if sample.picture is not None else b""
    pixels = "pixels" if picture.startswith(b"\x89PNG") else ""
    tile = image(picture, sample.name, pixels) if picture else ""
    return f'<figure class="{kind}">{tile}<figcaption>{value} {text(sample.label or "")}</figcaption></figure>'


def _settings(run: RunRecord) -> str:
    metadata = run.checkpoint.metadata
    facts = {
        "task": task_name(metadata["task"]),
        "encoder": run.spec["encoder"],
        "data": Path(run.spec.get("data") or "").name,
        "data fingerprint": metadata["data"],
        "weights": run.weights,
        "trained with": ", ".join(f"{name} {number}" for name, number in metadata.get("versions", {}).items()),
    }
    return table(["", ""], [[name, value] for name, value in facts.items() if value])


def _command(run: RunRecord) -> str:
    part = " (up to where it was extended)" if run.checkpoint.metadata.get("extended_from") else ""
    return f"<h3>Command to reproduce this run{part}</h3>{command_block(run.command)}"


def _missing(figures: Figures) -> str:
    reasons = "".join(f"<li>{text(reason)}</li>" for reason in figures.missing)
    return f'<h3>Left out</h3><ul class="quiet">{reasons}</ul>' if reasons else ""
