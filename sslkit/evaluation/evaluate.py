"""`sslkit evaluate`: every protocol, one table."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sslkit.console import say
from sslkit.contract.errors import RunFailedError, RunInterruptedError, SslkitError, did_you_mean
from sslkit.contract.options import Spec
from sslkit.engine.checkpoint import read_model
from sslkit.evaluation.finetune import finetune
from sslkit.evaluation.knn import knn
from sslkit.evaluation.models import weights_hash
from sslkit.evaluation.probe import probe
from sslkit.evaluation.protocols import PROTOCOLS
from sslkit.evaluation.retrieval import retrieval
from sslkit.files import write_atomically
from sslkit.reporting.numbers import interval, p_value, protocol_of, share
from sslkit.specs.evaluation import EvaluateSpec, EvaluationSpec, KnnSpec, ProbeSpec, RetrievalSpec
from sslkit.specs.train import FinetuneSpec

_TABLE, _RESULTS = "table.md", "results.json"


_CALLS: dict[str, tuple[Callable[[Any], Any], type[Spec]]] = {
    "knn": (knn, KnnSpec),
    "probe": (probe, ProbeSpec),
    "retrieval": (retrieval, RetrievalSpec),
    "finetune": (finetune, FinetuneSpec),
}


@dataclass(frozen=True)
class EvaluateResult:
    """Hold what `sslkit evaluate --json` prints: the result of each protocol, as its own command gives it."""

    checkpoint: str
    results: list[dict[str, Any]]
    table: str | None  # the file of the table


def evaluate(spec: EvaluateSpec) -> EvaluateResult:
    """Evaluate a checkpoint by several protocols; everything `sslkit evaluate` does.

    A protocol that this data does not allow is told in its place; raises SslkitError if that is true of all of them.
    """
    chosen = choose(spec.protocol)
    fine = [name for name in chosen if name.startswith("finetune/")]
    if fine and spec.out is None:
        raise SslkitError("missing", f"{', '.join(fine)} trains, and its runs need a folder", flag="out")
    if fine and (spec.layer, spec.pool) != ("last", "auto"):
        raise SslkitError("only for frozen features", "leave finetune out of --protocol", flag=("layer", "pool"))
    out = None if spec.out is None else Path(spec.out)
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())) and not spec.resume:
        raise SslkitError(f"{out} is there already", "go on with it by --resume, or choose another folder", flag="out")
    asked = {} if out is None else _asked(spec)
    done = {} if out is None else _done(asked, out)
    shared = {name: getattr(spec, name) for name in EvaluationSpec.model_fields if name in spec.model_fields_set}
    results: list[dict[str, Any]] = []
    failures: list[SslkitError] = []
    for name in chosen:
        if name in done:
            results.append(done[name])
            continue
        say(name, style="bold")
        call, model = _CALLS[name.partition("/")[0]]
        given = dict(shared)
        if call is finetune:
            kept = ("data", "label", "test", "ckpt", "encoder", "seed", "device", "workers", "cache", "cache_limit", "reindex")
            given = {key: value for key, value in shared.items() if key in kept}
            given |= {
                "scratch": spec.baselines,
                "out": str(Path(spec.out or "", name.replace("/", "-"))),
                "resume": spec.resume,
            }
            given |= spec.data_values()
        if "protocol" in model.model_fields:
            given["protocol"] = name
        if spec.seeds is not None and "seeds" in model.model_fields and PROTOCOLS[name].settings.get("shots", 1) is not None:
            given["seeds"] = spec.seeds
        try:
            results.append({"asked": name, **asdict(call(model(**given)))})
        except (RunFailedError, RunInterruptedError) as stopped:
            if out is not None and isinstance(stopped, RunInterruptedError):
                stopped.hint = f"go on with: sslkit evaluate --resume --out {out}, and the other flags as before"
            raise
        except SslkitError as error:  # say, k=200 of 150 images: said in its place, and no reason to leave the rest out
            failures.append(error)
            results.append({"asked": name, "protocol": name, "impossible": str(error), "rows": []})
        if out is not None and len(failures) < len(results):
            _write(asked, out, results)  # each time: what follows may take hours
    if len(failures) == len(results):
        raise failures[0]
    return EvaluateResult(spec.ckpt, results, None if out is None else str(out / _TABLE))


def _done(asked: dict[str, Any], out: Path) -> dict[str, dict[str, Any]]:
    """Return the results in a folder by protocol; raises SslkitError if they were made by other flags."""
    file = out / _RESULTS
    if not file.exists():
        return {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        given, results = kept["asked"], {result["asked"]: result for result in kept["results"] if result["rows"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SslkitError(f"{file} cannot be read: {error}", "choose another folder", flag="resume") from error
    differing = [name.replace("_", "-") for name, value in asked.items() if given.get(name) != value]
    if differing:
        raise SslkitError(
            f"the table in {out} was made with other {', '.join(differing)}", "choose another folder", flag="resume"
        )
    return results


def _asked(spec: EvaluateSpec) -> dict[str, Any]:
    """Return what decides the numbers of a table: flags, and the weights that are in the checkpoint now."""
    elsewhere = {"protocol", "out", "resume", "device", "workers", "cache", "cache_limit", "reindex", "batch_size"}
    weights = weights_hash(read_model(spec.ckpt).build_encoder(spec.encoder))
    return {**spec.model_dump(mode="json", exclude=elsewhere), "weights": weights}


def _write(asked: dict[str, Any], out: Path, results: list[dict[str, Any]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with write_atomically(out / _TABLE) as stream:
        stream.write(markdown(results).encode())
    with write_atomically(out / _RESULTS) as stream:
        stream.write((json.dumps({"asked": asked, "results": results}, indent=1) + "\n").encode())


def choose(wanted: list[str]) -> list[str]:
    """Return the ids of the protocols that are meant: by id, by the first part, or all; raises SslkitError for unknown ones."""
    possible = [name for name, protocol in PROTOCOLS.items() if protocol.command in _CALLS]
    chosen = [name for name in possible if any(one in ("all", name, name.partition("/")[0]) for one in wanted)]
    known = [*possible, *_CALLS, "all"]
    for one in wanted:
        if one not in known:
            raise SslkitError(f"unknown {one}", did_you_mean(one, known), flag="protocol")
    return chosen


def markdown(results: list[dict[str, Any]]) -> str:
    """Return results as one Markdown table, a line for each model, layer and test part."""
    lines = [
        "| protocol | model | layer | accuracy or mAP | 95% interval | macro F1 | p | training images | test images |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if not result["rows"]:
            lines.append(f"| {result['protocol']} | not possible: {result['impossible']} |{' |' * 7}")
        for row in result["rows"]:
            name = "top1" if "top1" in row else "mean_average_precision"
            f1 = row.get("macro_f1")
            cells = (
                protocol_of(result),
                row["model"] + (f", {row['test']}" if len({one["test"] for one in result["rows"]}) > 1 else ""),
                row["layer"] or "",
                share(row, name),
                interval(row, name),
                "" if f1 is None else f"{f1:.1%}",
                p_value(row),
                f"{row['n_train']:,}",
                f"{row['n_test']:,}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    first = next(result for result in results if result["rows"])
    return "\n".join([*lines, "", f"Weights {first['weights']}, training data {first['data']['train']}.", ""])
