"""The part of a report about several runs: which is ahead, and what each cost."""

from itertools import combinations

from sslkit.contract.result import Metric
from sslkit.evaluation.metrics import TOP1
from sslkit.evaluation.models import CHECKPOINT
from sslkit.evaluation.notes import join_names, p_text
from sslkit.evaluation.statistics import mcnemar_of_answers, select_equal
from sslkit.reporting.charts import Axes, scatter_chart
from sslkit.reporting.figures import Figures
from sslkit.reporting.page import fold, row, section, table
from sslkit.reporting.runs import RunRecord
from sslkit.reporting.verdict import Bar, bar_chart, plain_card


def compare_runs(runs: list[RunRecord], figures: list[Figures]) -> list[str]:
    """Return the verdict on all runs, and what they cost."""
    pairs = _paired_tests(runs, figures)
    sentence = _sentence(runs, pairs)
    bars = [chart for protocol in _protocols(runs) if (chart := _bars(runs, protocol))]
    verdict = plain_card(sentence, bars[:1]) if bars else plain_card(sentence)
    tests = ""
    if pairs:
        rows = [[a, f"{first:.1%}", b, f"{second:.1%}", p_text(p)] for a, first, b, second, p in pairs]
        caption = '<p class="quiet">Probability of a difference this large between equally good encoders.</p>'
        tests = fold("Paired tests (McNemar)", caption + table(["run", "correct", "run", "correct", "p"], rows))
    return [verdict, row(bars[1:], "more") if bars[1:] else "", tests, section("What they cost", _costs(runs))]


def _sentence(runs: list[RunRecord], pairs: list[tuple[str, float, str, float, float]]) -> str:
    """Return which run is ahead by the paired tests, if they tell any."""
    if not pairs:
        return f"{len(runs)} runs, not evaluated on the same test samples."
    shares = {name: share for a, first, b, second, _ in pairs for name, share in ((a, first), (b, second))}
    best = max(shares, key=lambda name: shares[name])
    others = {b if a == best else a: p for a, _, b, _, p in pairs if best in (a, b)}
    if equal := select_equal(others):
        rivals = join_names(equal)
        return f"{best} has the highest accuracy, {shares[best]:.1%}, but paired tests cannot distinguish it from {rivals}."
    return f"{best} is ahead: {shares[best]:.1%} correct, significantly more than {join_names(list(others))}."


def _protocols(runs: list[RunRecord]) -> list[str]:
    """Return the protocols that more than one run has, the first evaluated first."""
    counts: dict[str, int] = {}
    for run in runs:
        for protocol in _last_layer(run):
            counts[protocol] = counts.get(protocol, 0) + 1
    return [protocol for protocol, number in counts.items() if number > 1]


def _bars(runs: list[RunRecord], protocol: str) -> str:
    """Return the runs' accuracies by one protocol, and the baselines of the first that has some."""
    bars = [Bar(run.name, metric, main=True) for run in runs if (metric := _last_layer(run).get(protocol)) is not None]
    results = [result for run in runs for result in run.results if result.title == protocol]
    if results:
        rows = [each for each in results[0].rows if each.test == results[0].rows[0].test]
        bars += [
            Bar(each.model, each.headline) for each in {each.model: each for each in rows}.values() if each.model != CHECKPOINT
        ]
    return bar_chart(bars, f"{protocol}: {bars[0].metric.name}")


def _costs(runs: list[RunRecord]) -> str:
    """Return accuracy against minutes and memory, as a table and as charts."""
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
    complete = [(run, accuracies, memory) for run, accuracies, memory in costs if accuracies and run.minutes and memory]
    charts = []
    for label in ("minutes of training", "peak memory, GB"):
        groups: dict[str, list[tuple[float, float, str]]] = {}
        for run, accuracies, memory in complete:
            for protocol, metric in accuracies.items():
                cost = (run.minutes or 0.0) if label.startswith("minutes") else memory / 1e9
                groups.setdefault(protocol, []).append((cost, metric.value, run.name))
        if len(complete) > 1:
            title = "Accuracy of the last layer against time" if label.startswith("minutes") else "Against memory"
            charts.append(scatter_chart(groups, Axes(title, x_label=label, share=True)))
    head = ["run", "steps", "minutes", "peak memory", "accuracy of the last layer"]
    return table(head, rows) + (row(charts, "charts") if charts else "")


def _last_layer(run: RunRecord) -> dict[str, Metric]:
    """Return the headline of a run's last layer on its first test part, by protocol: accuracies only."""
    headlines = {}
    for result in run.results:
        rows = [each for each in result.rows if each.model == CHECKPOINT and each.headline.name == TOP1]
        rows = [each for each in rows if each.test == rows[0].test]
        if rows and result.settings.get("layer", "last") in ("last", "all"):
            headlines[result.title] = rows[-1].headline
    return headlines


def _paired_tests(runs: list[RunRecord], figures: list[Figures]) -> list[tuple[str, float, str, float, float]]:
    """Return McNemar's test of every two runs evaluated on the same test samples: names, shares correct, p."""
    tests = []
    for (first, first_figures), (second, second_figures) in combinations(zip(runs, figures, strict=True), 2):
        if first_figures.answers is None or second_figures.answers is None:
            continue
        (test_data, first_answers), (other_data, second_answers) = first_figures.answers, second_figures.answers
        if test_data == other_data:
            shares = [answers.correct.mean().item() for answers in (first_answers, second_answers)]
            p_value = mcnemar_of_answers(first_answers, second_answers)
            tests.append((first.name, shares[0], second.name, shares[1], p_value))
    return tests
