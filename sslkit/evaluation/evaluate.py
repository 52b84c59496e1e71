"""`sslkit evaluate`: several protocols, one table."""

import json
import signal
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from sslkit.console import say
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import RunFailedError, RunInterruptedError, SslkitError, did_you_mean
from sslkit.contract.evaluation import Evaluation
from sslkit.contract.result import Data, Result, Results, Row, TestData
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.evaluation.installed import installed_evaluations
from sslkit.evaluation.models import weights_hash
from sslkit.evaluation.notes import p_text
from sslkit.files import check_writable, write_atomically
from sslkit.specs.evaluation import EvaluateSpec, EvaluationSpec

_TABLE, _RESULTS = "table.md", "results.json"


class Evaluate(Evaluation):
    """Evaluate by several protocols, including fine-tuning if requested: one table."""

    verb = "evaluate"
    Options = EvaluateSpec

    def run(self, spec: EvaluateSpec) -> Results:
        """Evaluate a checkpoint by several protocols.

        A protocol that this data does not allow is reported in the table; raises SslkitError if none is possible.
        """
        chosen = choose_protocols(spec.protocol)
        out = None if spec.out is None else Path(spec.out)
        _check(spec, chosen, out)
        checkpoint = read_model(spec.ckpt, part=spec.part)
        encoder = checkpoint.build_encoder(spec.encoder)
        settings = _table_settings(spec, encoder)
        done = {} if out is None else _read_table(settings, out)
        results, failures = dict[str, Result](), dict[str, SslkitError]()
        for protocol, evaluation in chosen.items():
            reason = _misfit(evaluation, checkpoint, encoder)
            if reason is not None:
                if protocol in spec.protocol or evaluation.verb in spec.protocol:
                    failures[protocol] = reason
                continue
            try:
                results[protocol] = done[protocol] if protocol in done else _run_on_every(evaluation, protocol, spec)
            except (RunFailedError, RunInterruptedError) as stopped:
                if out is not None and isinstance(stopped, RunInterruptedError):
                    stopped.hint = f"continue with: sslkit evaluate --resume --out {out}, and the other flags as before"
                raise
            except SslkitError as error:  # such as k=200 with 150 samples: no reason to skip the other protocols
                failures[protocol] = error
            if out is not None and results:
                _write(settings, out, spec, results, failures)  # after each: the next one may take hours
        if not results:
            raise next(iter(failures.values()), SslkitError("no protocol fits this checkpoint", flag="protocol"))
        table = None if out is None else str(out / _TABLE)
        return Results(spec.ckpt, list(results.values()), {name: str(error) for name, error in failures.items()}, table)


def evaluate(spec: EvaluateSpec) -> Results:
    """Evaluate a checkpoint by several protocols, as `sslkit evaluate` does."""
    return Evaluate().run(spec)


def choose_protocols(requested: list[str]) -> dict[str, type[Evaluation]]:
    """Return the requested protocols with their evaluations: by id, by verb, or all; raises SslkitError for unknown ones."""
    evaluations = {
        verb: evaluation
        for verb, evaluation in installed_evaluations().items()
        if evaluation.protocols and evaluation.labels == "class"
    }
    possible = {protocol.id: evaluation for evaluation in evaluations.values() for protocol in evaluation.protocols}
    known = [*possible, *evaluations, "all"]
    for name in requested:
        if name not in known:
            raise SslkitError(f"unknown {name}", did_you_mean(name, known), flag="protocol")
    return {
        protocol: evaluation
        for protocol, evaluation in possible.items()
        if {protocol, evaluation.verb, *(["all"] if evaluation.in_all else [])} & set(requested)
    }


def _trains(evaluation: type[Evaluation]) -> bool:
    """Return whether an evaluation writes runs, for which it needs a folder."""
    return {"out", "resume"} <= evaluation.Options.model_fields.keys()


def _check(spec: EvaluateSpec, chosen: dict[str, type[Evaluation]], out: Path | None) -> None:
    if len(spec.data) > 1 and spec.test:
        raise SslkitError(f"{len(spec.data)} data sets, each with test parts of its own", "name one data set", flag="test")
    twice = next((name for name in spec.data if spec.data.count(name) > 1), None)
    if twice is not None:
        raise SslkitError(f"{twice} is named twice", "name each data set once", flag="data")
    training = [protocol for protocol, evaluation in chosen.items() if _trains(evaluation)]
    if training and out is None:
        raise SslkitError("missing", f"the training runs of {', '.join(training)} need a folder", flag="out")
    if training and (spec.layer, spec.pool) != ("last", "auto"):
        raise SslkitError("only for frozen features", "leave finetune out of --protocol", flag=("layer", "pool"))
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())) and not spec.resume:
        raise SslkitError(f"{out} already exists", "continue it with --resume, or choose another folder", flag="out")
    if out is not None:
        check_writable(out)


def _misfit(evaluation: type[Evaluation], checkpoint: Checkpoint, encoder: Encoder) -> SslkitError | None:
    """Return why an evaluation cannot be used on a checkpoint, None if it can."""
    missing = sorted(set(evaluation.requires) - set(encoder.provides))
    if missing:
        return SslkitError(f"{evaluation.verb} needs an encoder with {', '.join(missing)}", flag="ckpt")
    if evaluation.modalities and checkpoint.evaluated_as not in evaluation.modalities:
        return SslkitError(f"{evaluation.verb} evaluates {', '.join(evaluation.modalities)} data only", flag="ckpt")
    return None


def _run_on_every(evaluation: type[Evaluation], protocol: str, spec: EvaluateSpec) -> Result:
    """Run one protocol on each data set; of several, the rows of all and their means are one result."""
    if len(spec.data) < 2:
        return _run_or_stop(evaluation, protocol, spec, spec.data[0] if spec.data else None, spec.out)
    folders = [None if spec.out is None else str(Path(spec.out, f"data-{number}")) for number in range(1, len(spec.data) + 1)]
    parts = zip(spec.data, folders, strict=True)
    return average(spec.data, [_run_or_stop(evaluation, protocol, spec, data, folder) for data, folder in parts])


def average(names: list[str], results: list[Result]) -> Result:
    """Return the rows of one protocol on several data sets as one result, with the mean of each model's headline.

    Intervals of means take the data sets as independent. A model has a mean if it has one row for each data set, or a first
    one: of several test parts or layers the first counts.
    """
    rows = [
        replace(row, test=f"{name}: {row.test}", comparisons={})
        for name, result in zip(names, results, strict=True)
        for row in result.rows
    ]
    means = list[Row]()
    for model in dict.fromkeys(row.model for row in results[0].rows):
        firsts = [next((row for row in result.rows if row.model == model), None) for result in results]
        of_model = [row for row in firsts if row is not None]
        if len(of_model) == len(results):
            means.append(_mean_row(of_model))
    first = results[0]
    return replace(
        first,
        data=Data("+".join(result.data.train for result in results), _renamed_tests(names, results)),
        rows=[*rows, *means],
        notes=[f"{name}: {note}" for name, result in zip(names, results, strict=True) for note in result.notes],
        findings=[],
        seconds=sum(result.seconds for result in results),
    )


def _mean_row(rows: list[Row]) -> Row:
    """Return the mean of a model's headlines over data sets."""
    headlines = [row.headline for row in rows]
    value = fmean(headline.value for headline in headlines)
    spread = [((h.high or 0.0) - (h.low or 0.0)) / 2 for h in headlines if h.low is not None and h.high is not None]
    margin = sqrt(sum(half**2 for half in spread)) / len(headlines)
    known = len(spread) == len(headlines)
    low, high = (value - margin, value + margin) if known else (None, None)
    method = "of the mean, data sets taken as independent" if known else None
    metric = replace(headlines[0], value=value, low=low, high=high, interval_method=method, deviation=None)
    metric = replace(metric, n=sum(headline.n for headline in headlines))
    return replace(rows[0], metrics=[metric], test=f"mean of {len(rows)} data sets", by_class={}, comparisons={}, fits=[])


def _renamed_tests(names: list[str], results: list[Result]) -> list[TestData]:
    return [
        replace(test, name=f"{name}: {test.name}")
        for name, result in zip(names, results, strict=True)
        for test in result.data.tests
    ]


def _run_or_stop(evaluation: type[Evaluation], protocol: str, spec: EvaluateSpec, data: str | None, out: str | None) -> Result:
    """Run one protocol; Ctrl-C is a RunInterruptedError here, which can say how to go on."""
    try:
        return _run(evaluation, protocol, spec, data, out)
    except KeyboardInterrupt as error:
        raise RunInterruptedError(f"stopped during {protocol}", signal.SIGINT) from error


def _run(evaluation: type[Evaluation], protocol: str, spec: EvaluateSpec, data: str | None, out: str | None) -> Result:
    """Run one protocol with the options that its own spec shares with ours."""
    say(protocol, style="bold")
    options = evaluation.Options.model_fields
    values = {
        name: getattr(spec, name) for name in EvaluationSpec.model_fields if name in spec.model_fields_set and name in options
    }
    values.pop("data", None)
    values |= {} if data is None else {"data": data}
    if _trains(evaluation):
        values.pop("batch_size", None)  # ours is that of reading features
        values |= {"out": str(Path(out or "", protocol.replace("/", "-"))), "resume": spec.resume}
        values |= {"scratch": spec.baselines} if "scratch" in options else {}
    if "protocol" in options:
        values["protocol"] = protocol
    if spec.seeds is not None and "seeds" in options and not evaluation.find_protocol(protocol).deterministic:
        values["seeds"] = spec.seeds
    result = evaluation().run(evaluation.Options(**values))
    assert isinstance(result, Result)
    return result


def _table_settings(spec: EvaluateSpec, encoder: Encoder) -> dict[str, Any]:
    """Return everything that decides the numbers of a table: flags, and the checkpoint's weights."""
    others = {"protocol", "out", "resume", "device", "workers", "cache", "cache_limit", "reindex", "batch_size", "details"}
    return {**spec.model_dump(mode="json", exclude=others), "weights": weights_hash(encoder)}


def _read_table(settings: dict[str, Any], out: Path) -> dict[str, Result]:
    """Return the results in a folder by protocol; raises SslkitError if they were made with other flags."""
    file = out / _RESULTS
    if not file.exists():
        return {}
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        earlier = stored["settings"]
        results = {protocol: Result.from_json(values) for protocol, values in stored["results"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SslkitError(f"{file} cannot be read: {error}", "choose another folder", flag="resume") from error
    differing = [name.replace("_", "-") for name, value in settings.items() if earlier.get(name) != value]
    if differing:
        raise SslkitError(
            f"the table in {out} was made with other {', '.join(differing)}", "choose another folder", flag="resume"
        )
    return results


def _write(
    settings: dict[str, Any], out: Path, spec: EvaluateSpec, results: dict[str, Result], failures: dict[str, SslkitError]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    impossible = {protocol: str(error) for protocol, error in failures.items()}
    with write_atomically(out / _TABLE) as stream:
        stream.write(markdown(Results(spec.ckpt, list(results.values()), impossible), spec.details).encode())
    stored = {"settings": settings, "results": {protocol: result.to_json() for protocol, result in results.items()}}
    with write_atomically(out / _RESULTS) as stream:
        stream.write((json.dumps(stored, indent=1) + "\n").encode())


def markdown(results: Results, details: bool = False) -> str:
    """Return results as one Markdown table, a line for each model, layer and test part."""
    columns = ["protocol", "model", "layer", "metric", "value", "95% interval", "macro F1", "training samples", "test samples"]
    columns += ["p (adjusted)"] if details else []
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for result in results.results:
        several = len({row.test for row in result.rows}) > 1
        for row in result.rows:
            headline, f1 = row.headline, row.metric("macro F1")
            comparison = next(iter(row.comparisons.values()), None)
            adjusted = None if comparison is None else comparison.adjusted
            cells = [
                result.title,
                f"{row.model}, {row.test}" if several else row.model,
                row.layer or "",
                headline.name,
                headline.text(),
                headline.interval_text(),
                "" if f1 is None else f1.text(),
                f"{row.n_train:,}",
                f"{headline.n:,}",
                *([p_text(adjusted)] if details else []),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    for protocol, reason in results.impossible.items():
        lines.append(f"| {protocol} | not possible: {reason} |{' |' * (len(columns) - 2)}")
    findings: dict[str, str] = {}  # by text: the reasons of several protocols may be one
    commands = set[str]()  # each is named once
    for result in results.results:
        for finding in result.findings:
            command = f" Next: `{finding.command}`" if finding.command and finding.command not in commands else ""
            findings.setdefault(finding.text, f"- {result.title}: {finding.text}{command}")
            commands.add(finding.command)
    first = results.results[0]
    end = f"Weights {first.weights}, training data {first.data.train}."
    return "\n".join([*lines, "", *findings.values(), *([""] if findings else []), end, ""])
