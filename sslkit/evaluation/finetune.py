"""`sslkit finetune`: train encoder and classifier on labels, through the same engine as pretraining."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from sslkit import registry
from sslkit.console import duration, say
from sslkit.contract.errors import RunInterruptedError, SslkitError
from sslkit.contract.evaluation import Evaluation
from sslkit.contract.result import Data, Fit, Result, Role, Row, TestData, Training
from sslkit.data.indexed_source import IndexedSource
from sslkit.data.locations import absolute_data, check_apart
from sslkit.encoders.recipe import encoder_name
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.initial import resolve_start
from sslkit.engine.launch import run_on_devices
from sslkit.engine.loggers import load_loggers
from sslkit.engine.parallel import World
from sslkit.engine.precision import choose_machine
from sslkit.engine.resume import continue_hint, merge_recorded
from sslkit.engine.run_folder import METRICS, RESULTS, SPEC, append_json, choose_out, holds_run, read_json_lines
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.metrics import mean_correct, score
from sslkit.evaluation.notes import count, write_notes
from sslkit.evaluation.protocols import (
    FINETUNE_PROTOCOLS,
    finetune_protocol,
    finetune_settings,
    part_setting,
    with_protocol_values,
)
from sslkit.evaluation.references import reference_rows
from sslkit.evaluation.splits import Parts, TestPart, find_labeled, labeled_fingerprint
from sslkit.evaluation.statistics import Answers, adjust_comparisons, compare_answers
from sslkit.evaluation.trial import Trainer, Trial, TrialOutcome
from sslkit.files import write_atomically
from sslkit.registry import load_modality
from sslkit.specs.data import ANNOTATIONS
from sslkit.specs.train import FinetuneSpec

_AFFORDABLE = 60  # seconds of fine-tuning up to which the same is trained from random weights by default


class Finetune(Evaluation):
    """Train encoder and classifier on labels, from a checkpoint or from scratch, and test once."""

    verb = "finetune"
    Options = FinetuneSpec
    panel = "Train"
    protocols = FINETUNE_PROTOCOLS

    def run(self, spec: FinetuneSpec) -> Result:
        """Fine-tune a checkpoint, or train `--encoder` from scratch, and test it once.

        The runs of the trainings, with their steps, speed and loss, are in the rows' `fits`.
        """
        return run_on_devices("finetune", spec, _finetune, Result.from_json)


def finetune(spec: FinetuneSpec) -> Result:
    """Fine-tune a checkpoint, or train `--encoder` from scratch, as `sslkit finetune` does."""
    return Finetune().run(spec)


def _finetune(spec: FinetuneSpec, world: World) -> Result:
    allowed = spec.encoder  # the user's, before a recorded spec replaces it
    continues = spec.resume or spec.extend_to is not None
    out = choose_out(spec.out, "finetune", continues)
    spec = _with_absolute_paths(spec)
    if continues and holds_run(out):
        merged = merge_recorded(spec, out)
        assert isinstance(merged, FinetuneSpec)
        spec = merged
    spec = with_protocol_values(spec)
    _check_flags(spec)
    _check_layout(spec, out)
    if spec.data is not None:
        check_apart(spec.data, out)
    checkpoint = None if spec.ckpt is None else read_model(spec.ckpt, part=spec.part)
    if checkpoint is not None:
        checkpoint = checkpoint.with_projector(spec.projector_layers) if spec.projector_layers else checkpoint
        checkpoint.build_encoder(allowed)  # before any data is touched
        spec = spec.updated(_start_values(checkpoint, spec))
    source_class = _source_class(spec, checkpoint)
    parts = find_labeled(spec, spec.test, checkpoint, several=True, source_class=source_class)
    requested = _with_auto(spec, checkpoint, parts, source_class, world)
    protocol, settings = finetune_protocol(requested), finetune_settings(requested)
    spec = spec.updated({"data": parts.data, **dict.fromkeys(ANNOTATIONS), **parts.annotations, **parts.recorded})
    trials = _trials(spec, out, scratch=False)
    if len(trials) > 1:
        world.barrier()  # no process may look for a run in the folder after another one started it
        if world.first:
            _write_command(spec, out, _modality_name(checkpoint))
    trainer = Trainer(spec, parts, source_class, checkpoint, allowed, continues, world)
    try:
        outcomes = [trainer.run(trial, first=trial == trials[0]) for trial in trials]
        if _wants_scratch(spec, out, trials, world):
            outcomes += [trainer.run(trial, first=False) for trial in _trials(spec, out, scratch=True)]
    except RunInterruptedError as stopped:
        stopped.hint = continue_hint("finetune", out, spec.device)
        raise
    settings |= {**part_setting(spec.part), "seed": spec.seed, **parts.annotations}
    result = _result(spec, parts, outcomes, _modality_name(checkpoint), protocol, settings, out)
    if checkpoint is not None:
        result = with_findings(result, checkpoint, spec.updated({"out": str(out)}))
    if world.first:
        append_json(out / RESULTS, result.to_json())
    return result


def _check_flags(spec: FinetuneSpec) -> None:
    """Raise SslkitError for flags that exclude each other, before anything is read."""
    load_loggers(spec.log)
    if spec.scratch and spec.ckpt is None:
        raise SslkitError("there is no --ckpt to compare with", "leave --scratch out", flag="scratch")
    if spec.projector_layers and spec.ckpt is None:
        raise SslkitError("there is no --ckpt with a projector", "leave it out", flag="projector_layers")
    if spec.head_first and isinstance(spec.epochs, int) and spec.steps is None and spec.head_first >= spec.epochs:
        raise SslkitError(
            f"{spec.head_first} epochs of head-only training leave none of {spec.epochs} for the encoder",
            "use more --epochs; a head alone is what sslkit probe trains",
            flag="head_first",
        )
    for name in ("distill", "teacher_weight", "teacher_temperature"):
        if spec.teacher is None and getattr(spec, name) != FinetuneSpec.model_fields[name].default:
            raise SslkitError("there is no teacher to learn from", "name a classifier with --teacher", flag=name)
    if spec.minutes is not None and spec.head_first:
        raise SslkitError(
            "steps become slower once the encoder trains, so the time cannot be planned",
            "use --epochs",
            flag=("minutes", "head_first"),
        )


def _check_layout(spec: FinetuneSpec, out: Path) -> None:
    """Raise SslkitError if the only training of a run lies in a subfolder, where earlier versions put it."""
    trial, *others = _trials(spec, out, scratch=False)
    former = out / _subfolder(trial.share, trial.seed, trial.scratch)
    if not others and holds_run(former) and not (out / METRICS).exists():
        raise SslkitError(f"{former} was written by an earlier version of sslkit", "use another folder", flag="out")


def _result(
    spec: FinetuneSpec,
    parts: Parts,
    outcomes: list[TrialOutcome],
    modality: str,
    protocol: str | None,
    settings: dict[str, Any],
    out: Path,
) -> Result:
    """Return rows by model and test part, those from scratch compared with the fine-tuned ones, and notes."""
    models = dict.fromkeys(outcome.trial.model for outcome in outcomes)
    rows = [row for model in models for row in _rows(model, outcomes, parts)]
    rows = _compare_starts(rows, outcomes)
    first = outcomes[0]
    if first.trial.share == 1 and not first.trial.scratch and parts.train.labels is not None and parts.train.labels.ndim == 1:
        answers = [_answers(first.trial.model, outcomes, place) for place in range(len(parts.tests))]
        rows += reference_rows(modality, parts, spec.seed, (first.trial.model, answers))
    rows = adjust_comparisons(rows)
    data = Data(labeled_fingerprint(parts.train), [_test_data(part, outcomes, n) for n, part in enumerate(parts.tests)])
    seconds = round(sum(outcome.run.seconds for outcome in outcomes), 1)
    trained = f"Trained {count(sum(outcome.run.steps for outcome in outcomes), 'step')} in {duration(seconds)}; run in {out}."
    return Result(
        verb="finetune",
        protocol=protocol,
        settings={**settings, "size": first.size, "loss": first.loss},
        checkpoint=str(first.run.checkpoint),
        weights=rows[0].weights,
        data=data,
        rows=rows,
        notes=[*write_notes(rows, data), trained],
        seconds=seconds,
    )


def _modality_name(checkpoint: Checkpoint | None) -> str:
    """Return the modality of the samples to fine-tune on: what the encoder encodes."""
    return registry.DEFAULT_MODALITY if checkpoint is None else checkpoint.modality


def _source_class(spec: FinetuneSpec, checkpoint: Checkpoint | None) -> type[IndexedSource]:
    """Return the source of the samples that the encoder encodes, which may differ from those of pretraining."""
    modality = load_modality(_modality_name(checkpoint))
    spec.check_modality(modality.name)
    if not issubclass(modality.source, IndexedSource):
        raise SslkitError(f"{modality.noun} have no labels", "fine-tuning needs labeled samples", flag="ckpt")
    if spec.data is None and checkpoint is not None and checkpoint.evaluated_as != modality.name:
        raise SslkitError(
            f"missing: {checkpoint.path} was trained on {checkpoint.evaluated_as} data",
            f"name labeled {modality.noun}",
            flag="data",
        )
    return modality.source


def _with_auto(
    spec: FinetuneSpec, checkpoint: Checkpoint | None, parts: Parts, source_class: type[IndexedSource], world: World
) -> FinetuneSpec:
    """Return the spec with `auto` in place of the values `auto` resolves to here, which a resumed run has recorded."""
    plain = FinetuneSpec(cache=spec.cache, cache_limit=spec.cache_limit)
    if checkpoint is not None:
        plain = plain.updated(checkpoint_size(checkpoint))
    encoder = None if checkpoint is None else checkpoint.build_encoder(spec.encoder)  # allowed before
    resolved = source_class.for_finetuning(parts.train, plain, encoder).resolved
    automatic: dict[str, Any] = {name: value for name, (value, _) in resolved.items() if name != "cache"}
    if checkpoint is not None:
        kept = FinetuneSpec().with_recorded(checkpoint.metadata.get("spec"), same_data=False).data_values()
        automatic |= checkpoint_size(checkpoint) | kept
    values = spec.data_values() | {"precision": spec.precision}
    automatic["precision"] = choose_machine(spec.device, world=world).precision
    return spec.updated({name: "auto" for name, value in automatic.items() if values.get(name) == value})


def checkpoint_size(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the data option that holds the size of a checkpoint's samples, and its value; none where data has no size."""
    return registry.data_options()[checkpoint.modality].of_size(checkpoint.size)


def _write_command(spec: FinetuneSpec, out: Path, modality: str) -> None:
    """Record the spec once for all trainings, so that `--resume` needs only the folder."""
    try:
        with write_atomically(out / SPEC) as stream:
            left_out = {"out", "resume", "devices"} | spec.other_tables(modality)
            stream.write((spec.model_dump_json(indent=2, exclude=left_out) + "\n").encode())
    except OSError as error:
        raise SslkitError(f"cannot write to {out}: {error.strerror}", flag="out") from error


def _with_absolute_paths(spec: FinetuneSpec) -> FinetuneSpec:
    absolute: dict[str, Any] = {}
    if spec.ckpt is not None:
        absolute["ckpt"] = str(Path(spec.ckpt).resolve())
    if spec.teacher is not None:
        absolute["teacher"] = str(Path(spec.teacher).resolve())
    if spec.init is not None:
        absolute["init"] = resolve_start(spec.init)
    if spec.data is not None:
        absolute["data"] = absolute_data(spec.data)
    if spec.test:
        absolute["test"] = [absolute_data(test) for test in spec.test]
    return spec.model_copy(update=absolute)


def _trials(spec: FinetuneSpec, out: Path, scratch: bool) -> list[Trial]:
    """List the trainings of one start; a single one uses the folder itself, or its subfolder `scratch`."""
    combinations = [(share, seed) for share in spec.shares for seed in range(spec.seed, spec.seed + spec.seeds)]
    if len(combinations) == 1:
        return [Trial(*combinations[0], scratch, out / "scratch" if scratch else out)]
    return [Trial(share, seed, scratch, out / _subfolder(share, seed, scratch)) for share, seed in combinations]


def _subfolder(share: float, seed: int, scratch: bool) -> str:
    """Return the name of the folder of one of several trainings."""
    return f"{'scratch-' if scratch else ''}share-{100 * share:g}-seed-{seed}"


def _wants_scratch(spec: FinetuneSpec, out: Path, tuned: list[Trial], world: World) -> bool:
    """Return whether to train from random weights, too, and print why: by default if fine-tuning took a minute at most."""
    if spec.ckpt is None or spec.scratch is False:
        return False
    if spec.scratch or any(holds_run(trial.out) for trial in _trials(spec, out, scratch=True)):
        return True
    # From the logs, because an interrupted training was a part of it in an earlier process.
    lines = [line for trial in tuned for line in read_json_lines(trial.out / METRICS)[-1:]]
    seconds = world.from_first(sum(float(line["seconds"]) for line in lines))
    affordable = seconds <= _AFFORDABLE
    if affordable:
        took = f"fine-tuning took only {duration(seconds)} (--no-scratch skips this)"
        say(f"also training from random weights for comparison, since {took}")
    else:
        more = f"(about {duration(seconds)} more); add it with --resume --scratch"
        say(f"skipped training from random weights {more}")
    return affordable


def _rows(model: str, outcomes: list[TrialOutcome], parts: Parts) -> list[Row]:
    """Return a row for each test part of the trials that differ by the seed only."""
    by_seed = [outcome for outcome in outcomes if outcome.trial.model == model]
    rows = []
    for place, part in enumerate(parts.tests):
        scores = [outcome.scores[place] for outcome in by_seed]
        metrics, by_class = score(scores, by_seed[0].labels[place], parts.classes)
        fits = [_fit(outcome) for outcome in by_seed]
        weights = by_seed[0].weights
        role: Role = "random" if by_seed[0].trial.scratch else "checkpoint"
        rows.append(Row(model, metrics, test=part.name, by_class=by_class, weights=weights, fits=fits, role=role))
    return rows


def _fit(outcome: TrialOutcome) -> Fit:
    run, loss = outcome.run, outcome.run.loss
    training = Training(
        run=str(run.run),
        share=outcome.trial.share,
        steps=run.steps,
        samples_per_second=run.samples_per_second,
        seconds=run.seconds,
        loss=loss if loss is not None and math.isfinite(loss) else None,
    )
    return Fit(outcome.trial.seed, outcome.n_train, training=training)


def _test_data(part: TestPart, outcomes: list[TrialOutcome], place: int) -> TestData:
    duplicates = max(outcome.duplicates[place] for outcome in outcomes)
    n = len(outcomes[0].labels[place])
    return TestData(part.name, labeled_fingerprint(part.index), n, duplicates, part.seen_in_pretraining)


def _compare_starts(rows: list[Row], outcomes: list[TrialOutcome]) -> list[Row]:
    """Return the rows, those from scratch compared with the fine-tuned ones of the same share."""
    trials = {outcome.trial.model: outcome.trial for outcome in outcomes}
    results, places = [], dict[str, int]()
    for row in rows:
        place = places[row.model] = places.get(row.model, -1) + 1
        trial = trials[row.model]
        tuned = replace(trial, scratch=False).model
        if trial.scratch and tuned in trials:
            comparison = compare_answers(*(_answers(model, outcomes, place) for model in (row.model, tuned)))
            row = replace(row, comparisons={tuned: comparison})
        results.append(row)
    return results


def _answers(model: str, outcomes: list[TrialOutcome], place: int) -> Answers:
    """Return how many of a model's trials, which differ by the seed only, are correct on each sample of a test part."""
    by_seed = [outcome for outcome in outcomes if outcome.trial.model == model]
    correct = mean_correct([outcome.scores[place] for outcome in by_seed], by_seed[0].labels[place])
    return Answers(by_seed[0].rows[place], correct)


def _start_values(checkpoint: Checkpoint, spec: FinetuneSpec) -> dict[str, Any]:
    """Return the checkpoint's encoder and size for the spec; another start set by hand is an SslkitError."""
    others = [name for name in ("init", "pretrained", "encoder_option") if getattr(spec, name)]
    if others:
        raise SslkitError("training starts from the checkpoint", "leave one of them out", flag=("ckpt", others[0]))
    checkpoint_encoder = encoder_name(checkpoint.recipe)
    if spec.encoder not in ("auto", checkpoint_encoder):
        raise SslkitError(
            f"{spec.encoder}, but the checkpoint holds {checkpoint_encoder}", "leave one of them out", flag="encoder"
        )
    return {"encoder": checkpoint_encoder, **({} if spec.sample_size(checkpoint.modality) else checkpoint_size(checkpoint))}
