"""Write docs/results.md and docs/results.html from learning/ and budgets.json: `python benchmarks/results.py`."""

import json
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from learn import BUDGETS, RESULTS

from sslkit.evaluation.notes import p_text
from sslkit.evaluation.statistics import adjust_holm
from sslkit.reporting.charts import Axes, Series, line_chart
from sslkit.reporting.page import asset, command_block, document, fold, row, section, text

DOCS = Path(__file__).parent.parent / "docs"
LEVEL = 0.05
# The measure that compares a family with random weights; chosen before anything was measured.
MEASURES = {
    "contrastive": "knn",
    "joint_embedding": "knn",
    "clustering": "knn",
    "predictive": "knn",
    "masked": "probe",
    "generative": "probe",
}
NAMES = {"knn": "k-NN", "probe": "probe", "few_labels": "1% labels"}
SETS = {
    "cifar10": "CIFAR-10: 10,000 of its training images, all 10,000 test images, 32 px.",
    "photographs": "Photographs: cats and dogs, and tiles of street scenes by CamVid, 8 classes, 64 px.",
}
# Why a task is no better than random weights, for those that are not.
REASONS: dict[tuple[str, str], str] = {}


@dataclass(frozen=True)
class Measured:
    """A task on a data set: its records by seed; the first is compared with random weights."""

    records: list[dict[str, Any]]
    budget: dict[str, Any]

    @property
    def first(self) -> dict[str, Any]:
        """Return the record of the first seed."""
        return self.records[0]

    @property
    def task(self) -> str:
        """Return the name of the task."""
        return str(self.first["task"])

    @property
    def measure(self) -> str:
        """Return the measure that compares it with random weights."""
        return MEASURES[self.first["family"]]

    @cached_property
    def against_random(self) -> dict[str, Any]:
        """Return the paired comparison with random weights; the difference is that of the task."""
        random = role(self.first[self.measure], "random")
        comparison: dict[str, Any] = random["comparisons"]["checkpoint"]
        low, high = -comparison["high"], -comparison["low"]
        return {"p_value": comparison["p_value"], "difference": -comparison["difference"], "low": low, "high": high}

    def values(self, name: str) -> list[float]:
        """Return the accuracy of each seed by a measure."""
        return [float(headline(record[name])["value"]) for record in self.records if name in record]

    def cell(self, name: str) -> str:
        """Return the mean over seeds with its deviation, and the interval over images of the first."""
        values = self.values(name)
        metric = headline(self.first[name])
        deviation = metric["deviation"] if len(values) == 1 else statistics.stdev(values)
        spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
        return f"{100 * statistics.mean(values):.1f}{spread} ({100 * metric['low']:.1f} to {100 * metric['high']:.1f})"

    @property
    def length(self) -> str:
        """Return steps, batch and minutes of a core."""
        spec = self.first["spec"]
        return f"{spec['steps']:,} of {spec['batch_size']}, {self.budget['core_seconds'] / 60:.0f} min"

    @property
    def commands(self) -> list[str]:
        """Return the commands that repeat the first seed; teachers and tokenizers are trained before."""
        spec = self.first["spec"]
        size = " ".join(f"--size {table['size']}" for table in spec.values() if isinstance(table, dict) and "size" in table)
        needs = "".join(f" --{name} RUN_OF_{value}/model.safetensors" for name, value in files_of(spec).items())
        length = f"--steps {spec['steps']} --seed {spec['seed']}"
        labels = "--data train.csv --test test.csv --label label"
        return [
            f"sslkit pretrain {self.task}{needs} --data train.csv {size} {length} --out run",
            f"sslkit knn --ckpt run/model.safetensors {labels} --protocol {self.first['knn']['protocol']}",
            f"sslkit probe --ckpt run/model.safetensors {labels} --protocol {self.first['probe']['protocol']}",
        ]

    @property
    def curve(self) -> Series | None:
        """Return k-NN accuracy on held-out training images by minutes of a core."""
        if not self.first["curve"]:
            return None
        steps, accuracies = zip(*self.first["curve"], strict=True)
        minutes = [step / self.first["spec"]["steps"] * self.budget["core_seconds"] / 60 for step in steps]
        return Series(self.task, minutes, accuracies)


def main() -> None:
    budgets = json.loads(BUDGETS.read_text(encoding="utf-8"))
    tables = {name: read_set(name, budgets[name]) for name in SETS if (RESULTS / name).is_dir()}
    (DOCS / "results.md").write_text(markdown(tables), encoding="utf-8")
    (DOCS / "results.html").write_bytes(page(tables))


def read_set(name: str, budgets: dict[str, Any]) -> list[Measured]:
    """Return what was measured on a data set, the best by probe first."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((RESULTS / name).glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if "task" in record:
            by_task.setdefault(record["task"], []).append(record)
    measured = [
        Measured(sorted(records, key=lambda record: int(record["seed"])), budgets[task]) for task, records in by_task.items()
    ]
    return sorted(measured, key=lambda each: -statistics.mean(each.values("probe")))


def verdicts(rows: list[Measured]) -> dict[str, tuple[str, bool]]:
    """Return the difference of each task to random weights, and whether it is better: Holm within the table."""
    adjusted = adjust_holm([row.against_random["p_value"] for row in rows])
    gains = {}
    for measured, p_value in zip(rows, adjusted, strict=True):
        gain = measured.against_random
        better = gain["difference"] > 0 and p_value < LEVEL
        difference = f"{100 * gain['difference']:+.1f} ({100 * gain['low']:.1f} to {100 * gain['high']:.1f})"
        if not better:
            difference = f"**not better**: {difference}, p {p_text(p_value)}"
        gains[measured.task] = f"{NAMES[measured.measure]} {difference}", better
    return gains


def reference_rows(name: str, rows: list[Measured]) -> list[list[str]]:
    """Return random weights of each encoder, the images themselves, and training on 1% of the labels from scratch."""
    references: dict[str, list[str]] = {}
    for measured in rows:
        encoder = measured.first["spec"]["encoder"]
        cells = [interval(role(measured.first[verb], "random")["metrics"][0]) for verb in ("knn", "probe")]
        scratch = RESULTS / name / f"scratch-{encoder}.json"
        few = interval(headline(json.loads(scratch.read_text())["few_labels"])) if scratch.exists() else ""
        references.setdefault(encoder, [f"random weights, {encoder}", "", *cells, few, ""])
    raw = [interval(role(rows[0].first[verb], "baseline")["metrics"][0]) for verb in ("knn", "probe")]
    return [*references.values(), ["raw pixels", "", *raw, "", ""]]


def markdown(tables: dict[str, list[Measured]]) -> str:
    """Return docs/results.md."""
    lines = [
        "# What each task learns",
        "",
        "Written by `python benchmarks/results.py` from what `python benchmarks/learn.py` measured; the",
        "[same as a page that sorts, with curves and commands](results.html).",
        "",
        "- Each task trains with its own defaults for a fixed number of steps: what it does in 9 minutes of",
        "  one core (byol, simsiam, dino: 27, because they begin slowly). Another budget gives another order.",
        "- `knn/chosen-layer-v1`, `probe/chosen-layer-v1`: frozen features of the layer chosen on a fifth of",
        "  the training part. 1% labels: `finetune/fewlabel-v1` on 1% only, mean ± deviation of 3 draws.",
        "- In parentheses, the 95% interval over test images; ± is the deviation over seeds, where there are",
        "  several.",
        "- The last column is the difference to the same network's random weights, by the measure chosen",
        "  before the runs: logistic regression for masked and generative tasks, k-NN for the others. McNemar's",
        "  test at 5%, adjusted for all rows of a table (Holm).",
        "",
    ]
    for name, rows in tables.items():
        gains = verdicts(rows)
        lines += [f"## {name}", "", SETS[name], ""]
        lines += ["| " + " | ".join(TITLES) + " |", "|" + "---|" * len(TITLES)]
        lines += ["| " + " | ".join(cells) + " |" for cells in cells_of(name, rows, gains)]
        losers = [measured.task for measured in rows if not gains[measured.task][1]]
        if losers:
            lines += ["", "Not better than random weights:", ""]
            lines += [f"- **{task}**: {REASONS.get((name, task), 'the reason is not known yet')}." for task in losers]
        lines += ["", provenance_of(rows), ""]
    return "\n".join(lines).rstrip() + "\n"


TITLES = ["task", "family", "steps of batch, core time", *NAMES.values(), "better than random weights by"]


def cells_of(name: str, rows: list[Measured], gains: dict[str, tuple[str, bool]]) -> list[list[str]]:
    """Return the cells of a table."""
    cells = [
        [
            f"`{measured.task}`",
            measured.first["family"].replace("_", " "),
            measured.length,
            *(measured.cell(verb) for verb in NAMES),
            gains[measured.task][0],
        ]
        for measured in rows
    ]
    return cells + [[first, "", *rest] for first, *rest in reference_rows(name, rows)]


def page(tables: dict[str, list[Measured]]) -> bytes:
    """Return docs/results.html: tables that sort by a click on a title, curves by family, commands."""
    parts = ["<h1>What each task learns</h1>", '<p>How this was measured: <a href="../results/">results</a>.</p>']
    for name, rows in tables.items():
        charts = []
        for family in MEASURES:
            series = [measured.curve for measured in rows if measured.first["family"] == family]
            curves = [each for each in series if each is not None]
            if curves:
                axes = Axes(family.replace("_", " "), "k-NN accuracy, held-out training images", x_label="minutes of a core")
                charts.append(line_chart(curves, axes))
        commands = [fold(measured.task, "".join(map(command_block, measured.commands))) for measured in rows]
        parts.append(
            section(
                name,
                f"<p>{text(SETS[name])}</p>",
                sortable(TITLES, [[plain(cell) for cell in cells] for cells in cells_of(name, rows, verdicts(rows))]),
                f"<p>{text(provenance_of(rows))}</p>",
                row(charts, "charts"),
                fold("Commands", "".join(commands)),
            )
        )
    return document("sslkit: what each task learns", asset("base.css", "report.css"), "".join(parts), SCRIPT)


def sortable(titles: list[str], rows: list[list[str]]) -> str:
    """Return a table whose titles are buttons for the script below, and which reads without it."""
    head = "".join(f"<th><button>{text(title)}</button></th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>" for cells in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


SCRIPT = """
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const place = button.parentElement.cellIndex, body = button.closest("table").tBodies[0];
  const number = cell => parseFloat((cell.match(/[-+]?[\\d,.]+/) || ["-1e9"])[0].replace(/,/g, ""));
  const cells = [...body.rows].map(row => [row.cells[place].textContent, row]);
  const numeric = place > 1;
  cells.sort((a, b) => numeric ? number(b[0]) - number(a[0]) : a[0].localeCompare(b[0]));
  body.append(...cells.map(cell => cell[1]));
}));
"""


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """Return the accuracy of the pretrained encoder in a result."""
    metric: dict[str, Any] = result["rows"][0]["metrics"][0]
    return metric


def role(result: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the row of a role, such as random weights."""
    matching: dict[str, Any] = next(row for row in result["rows"] if row["role"] == name)
    return matching


def interval(metric: dict[str, Any]) -> str:
    """Return a value with its interval."""
    return f"{100 * metric['value']:.1f} ({100 * metric['low']:.1f} to {100 * metric['high']:.1f})"


def files_of(spec: dict[str, Any]) -> dict[str, str]:
    """Return the options that take another task's run."""
    return {name: str(spec["options"][name]) for name in ("teacher", "tokenizer") if name in spec["options"]}


def provenance_of(rows: list[Measured]) -> str:
    """Return commits, dates and machines of a table."""
    records = [record for measured in rows for record in measured.records]
    commits, dates, machines = (sorted({record[name] for record in records}) for name in ("commit", "date", "machine"))
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"Commits {', '.join(commits)}; {days}; {'; '.join(machines)}; one core for each run."


def plain(cell: str) -> str:
    """Return a cell of Markdown as text."""
    return cell.replace("**", "").replace("`", "")


if __name__ == "__main__":
    main()
