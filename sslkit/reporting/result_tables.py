"""The section of a report with all numbers of a run: the table of results, accuracy by layer, the confusion matrix."""

import os
from pathlib import Path
from typing import Any

from sslkit.contract.result import Result
from sslkit.evaluation.metrics import TOP1
from sslkit.reporting.charts import Axes, interval_chart
from sslkit.reporting.figures import Figures
from sslkit.reporting.page import row, section, table, text
from sslkit.reporting.runs import RunRecord

_CLASSES = 30  # as many fit into a table of all pairs


def all_evaluations(run: RunRecord, figures: Figures) -> str:
    """Return all numbers: the table of results, accuracy by layer, the confusion matrix."""
    parts = [table(*_result_table(run)) if run.results else ""]
    layers = _by_layer(run.results)
    if layers:
        axes = Axes("Accuracy by layer", note="With 95% intervals.", x_label="layer", share=True)
        parts.append(row([interval_chart(layers, axes)], "charts"))
    if figures.confusion is not None:
        parts.append(
            f'<h3>Confusion matrix</h3>{_confusion(*figures.confusion)}<p class="quiet">{text(figures.confusion_title)}</p>'
        )
    return section("All evaluations", *parts)


def _result_table(run: RunRecord) -> tuple[list[str], list[list[str]]]:
    head = ["protocol", "model", "test data", "layer", "metric", "value", "95% interval", "other metrics"]
    rows, folder = [], f"{Path(run.spec.get('data') or '.').parent}{os.sep}"
    for result in run.results:
        for each in result.rows:
            others = ", ".join(f"{metric.name} {metric.text()}" for metric in each.metrics[1:])
            test = each.test.replace(folder, "")  # readers of the page have no such folder
            headline = each.headline
            cells = [each.model, test, each.layer or "", headline.name, headline.text(), headline.interval_text(), others]
            rows.append([result.title, *cells])
    return head, rows


def _by_layer(results: list[Result]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return, by protocol and model, the accuracy and interval of numbered layers on the first test part."""
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    for result in results:
        for each in result.rows:
            metric, layer = each.headline, each.layer or ""
            if not layer.isdigit() or metric.name != TOP1 or each.test != result.rows[0].test:
                continue
            if metric.low is not None and metric.high is not None:
                lines.setdefault(f"{result.title}, {each.model}", []).append(
                    (int(layer), metric.value, metric.low, metric.high)
                )
    return {name: rows for name, rows in lines.items() if len({each[0] for each in rows}) == len(rows) > 1}


def _confusion(counts: Any, classes: list[str]) -> str:
    """Return the confusion matrix, true class by row, as shares of the row; of many classes the most frequent confusions."""
    share = counts / counts.sum(axis=1, keepdims=True).clip(1)
    if len(classes) > _CLASSES:
        wrong = [(share[r, c], r, c) for r in range(len(classes)) for c in range(len(classes)) if r != c and counts[r, c]]
        worst = sorted(wrong, reverse=True)[:20]
        return table(["true", "predicted", "share"], [[classes[r], classes[c], f"{part:.1%}"] for part, r, c in worst])
    head = "".join(f"<th>{text(name)}</th>" for name in classes)
    body = ""
    for name, shares in zip(classes, share, strict=True):
        cells = (
            f'<td style="background:color-mix(in srgb,var(--bar) {80 * part:.0f}%,transparent)">'
            f"{f'{part:.0%}' if part >= 0.005 else ''}</td>"
            for part in shares
        )
        body += f"<tr><th>{text(name)}</th>{''.join(cells)}</tr>"
    return f'<div class="wide"><table class="confusion"><tr><th></th>{head}</tr>{body}</table></div>'
