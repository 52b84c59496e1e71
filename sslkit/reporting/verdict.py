"""The verdict at the top of a report: a plain sentence, and the headline metric beside what it has to beat, as bars."""

from collections.abc import Sequence
from dataclasses import dataclass

from sslkit.contract.result import Metric, Result, Row
from sslkit.evaluation.models import CHECKPOINT
from sslkit.evaluation.notes import count
from sslkit.reporting.page import command_block, text

_MOST = 8  # bars


@dataclass(frozen=True)
class Bar:
    """One value of a bar chart; `main` is what the chart is about."""

    name: str
    metric: Metric
    main: bool = False


def verdict_card(result: Result, alarms: str = "") -> str:
    """Return what a result means, its bars, the alarms of its run, and the command to try next."""
    findings = result.findings
    rule = findings[0].rule if findings else ""
    kind = {"": "", "helped": " good"}.get(rule, " warn")
    sentences = [finding.text for finding in findings] or [_headline_sentence(result)]  # of results stored before findings
    first, *others = [f"<p>{text(sentence)}</p>" for sentence in sentences]
    commands = [finding.command for finding in findings if finding.command]
    command = next((command for command in commands if not command.startswith("sslkit report")), "")  # which this page is
    following = f'<p class="quiet">Try next:</p>{command_block(command)}' if command else ""
    return f'<div class="verdict{kind}">{first}{"".join(others)}{result_bars(result)}{alarms}{following}</div>'


def _headline_sentence(result: Result) -> str:
    metric, test = result.headline, result.rows[0].test
    interval = f" (95% interval {metric.interval_text()})" if metric.interval_text() else ""
    return f"{result.verb}: {metric.name} {metric.text()}{interval}{f' on {test}' if test else ''}."


def plain_card(sentence: str, others: Sequence[str] = (), command: str = "", kind: str = "") -> str:
    """Return a card in the place of a verdict, for what was not evaluated or is a comparison."""
    following = command_block(command) if command else ""
    return f'<div class="verdict {kind}"><p>{text(sentence)}</p>{"".join(others)}{following}</div>'


def result_bars(result: Result) -> str:
    """Return the headline of a result's first test part as bars: the checkpoint's last layer, and every other model's."""
    headline = result.headline
    rows = [row for row in result.rows if row.test == result.rows[0].test and row.headline.name == headline.name]
    last: dict[str, Row] = {row.model: row for row in rows}
    of_run = result.rows[0].model
    bars = [Bar("this checkpoint" if name == CHECKPOINT else name, row.headline, name == of_run) for name, row in last.items()]
    test = result.data.test(result.rows[0].test)
    on = f" on {count(test.n, 'test sample')}" if test is not None else ""
    return bar_chart(bars[:_MOST], f"{result.title}: {headline.name}{on}", chance_level(result))


def chance_level(result: Result) -> float | None:
    """Return what guessing reaches in the headline, None where that is not known."""
    classes = len(result.rows[0].by_class)
    return 1 / classes if classes > 1 and result.headline.name in ("top-1", "balanced accuracy") else None


def bar_chart(bars: Sequence[Bar], caption: str, chance: float | None = None) -> str:
    """Return horizontal bars with 95% intervals as whiskers; nothing where a value lies below zero."""
    ends = [bar.metric.value if bar.metric.high is None else bar.metric.high for bar in bars]
    lowest = min(bar.metric.value if bar.metric.low is None else bar.metric.low for bar in bars)
    if lowest < 0 or max(ends) <= 0:
        return ""
    whole = 1.0 if bars[0].metric.unit in ("share", "correlation") else 1.05 * max(ends)
    hints = ["whiskers: 95% intervals"] if any(bar.metric.interval_text() for bar in bars) else []
    hints += [f"dashed: chance, {chance:.1%}"] if chance is not None else []
    hints += [] if bars[0].metric.higher_is_better else ["lower is better"]
    tail = f" <small>({text('; '.join(hints))})</small>" if hints else ""
    rows = "".join(_bar(bar, whole, chance) for bar in bars)
    return f'<figure class="bars"><figcaption>{text(caption)}{tail}</figcaption>{rows}</figure>'


def _bar(bar: Bar, whole: float, chance: float | None) -> str:
    """Return one bar; its length and whiskers are shares of the track's width."""
    metric = bar.metric
    track = f'<span class="fill" style="width:{metric.value / whole:.2%}"></span>'
    if metric.low is not None and metric.high is not None:
        low, high = max(metric.low, 0.0) / whole, min(metric.high / whole, 1.0)
        track += f'<span class="spread" style="left:{low:.2%};width:{max(high - low, 0.0):.2%}"></span>'
    if chance is not None:
        track += f'<span class="level" style="left:{chance / whole:.2%}"></span>'
    interval = f" <small>{text(metric.interval_text())}</small>" if metric.interval_text() else ""
    kind = ' class="main"' if bar.main else ""
    return (
        f'<div{kind}><span class="name">{text(bar.name)}</span><span class="track">{track}</span>'
        f'<span class="value"><b>{text(metric.text())}</b>{interval}</span></div>'
    )
