"""`sslkit finetune`: train encoder and classifier on labels, through the same engine as pretraining."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import RunInterruptedError, SslkitError
from sslkit.contract.task import DataInfo, PretextTask
from sslkit.data.locations import absolute_data
from sslkit.encoders.build import build_encoder, encoder_name
from sslkit.encoders.builder import RecipeBuilder
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.features import contents, extract
from sslkit.engine.job import Outcome, TrainingJob
from sslkit.engine.loggers import load_logger
from sslkit.engine.parallel import World, process_group
from sslkit.engine.precision import choose_machine
from sslkit.engine.resume import merge_recorded, recorded_spec
from sslkit.engine.run_folder import RESULTS, SPEC, append_json, choose_out, holds_run
from sslkit.engine.settings import resolve_settings
from sslkit.engine.training import run_training
from sslkit.evaluation.features import say_left_out
from sslkit.evaluation.metrics import right
from sslkit.evaluation.models import weights_hash
from sslkit.evaluation.protocols import finetune_protocol, finetune_settings, settled
from sslkit.evaluation.session import Result, Row, headed, score
from sslkit.evaluation.splits import Parts, find_labeled, held_out_rows
from sslkit.evaluation.statistics import count_duplicates, mcnemar_of_rows
from sslkit.evaluation.supervised import Supervised
from sslkit.files import write_atomically
from sslkit.image.decode import short_sides
from sslkit.image.source import ImageSource, choose_canvas, choose_size
from sslkit.specs.train import FinetuneSpec

SCRATCH = "from scratch"


@dataclass(frozen=True)
class FinetuneResult(Result):
    """Hold what `sslkit finetune --json` prints: the first row, all rows, and the runs they come from."""

    run: str
    steps: int
    images_per_second: float
    loss: float | None
    seconds: float


@dataclass(frozen=True)
class Trial:
    """Hold one training of several: which share of the labels, which seed, from which start."""

    share: float
    seed: int
    scratch: bool
    out: Path

    @property
    def model(self) -> str:
        """Return what the trial's row is called."""
        start = SCRATCH if self.scratch else "fine-tuned"
        return start if self.share == 1 else f"{start}, {100 * self.share:g}% of the labels"


@dataclass(frozen=True)
class Tested:
    """Hold a finished trial and its class scores `[M, classes]` of each test part."""

    trial: Trial
    outcome: Outcome
    n_train: int
    size: int
    loss: str
    scores: list[Tensor]
    labels: list[Tensor]
    rows: list[NDArray[np.int64]]
    duplicates: list[int]
    weights: str


def finetune(spec: FinetuneSpec) -> FinetuneResult:
    """Fine-tune a checkpoint, or train `--encoder` from scratch, and test it once; everything `sslkit finetune` does."""
    with process_group(spec.device) as world:
        return _finetune(spec, world)


def _finetune(spec: FinetuneSpec, world: World) -> FinetuneResult:
    allowed = spec.encoder  # what the user wrote, before a file is asked
    continues = spec.resume or spec.extend_to is not None
    out = choose_out(spec.out, "finetune", continues)
    spec = _absolute(spec)
    if continues and holds_run(out):
        merged = merge_recorded(spec, out)
        assert isinstance(merged, FinetuneSpec)
        spec = merged
    load_logger(spec.log)
    spec = settled(spec)
    if spec.scratch and spec.ckpt is None:
        raise SslkitError("there is no --ckpt to compare with", "leave it out", flag="scratch")
    if spec.minutes is not None and spec.head_first:
        raise SslkitError(
            "a step takes longer once the encoder trains, so no time can be promised",
            "use --epochs",
            flag=("minutes", "head_first"),
        )
    checkpoint = None if spec.ckpt is None else read_model(spec.ckpt)
    if checkpoint is not None:
        checkpoint.check_images(spec.data)
        checkpoint.build_encoder(allowed)  # before any data is touched
        spec = spec.model_copy(update=_like(checkpoint, spec))
    parts = find_labeled(spec, spec.test, checkpoint, several=True, source_class=ImageSource)
    usual = _as_asked(spec, checkpoint, parts, world)
    protocol, settings = finetune_protocol(usual), finetune_settings(usual)
    spec = spec.model_copy(update={"data": parts.data, "label": parts.label})
    trials = _trials(spec, out)
    if len(trials) > 1:
        world.barrier()  # nobody may look for a run in the folder after it was begun
        if world.first:
            _write_command(spec, out)
    try:
        tested = [_run(trial, spec, parts, checkpoint, allowed, continues, world) for trial in trials]
    except RunInterruptedError as stopped:
        stopped.hint = f"go on with: sslkit finetune --resume --out {out}"
        raise
    rows = [row for model in dict.fromkeys(trial.model for trial in trials) for row in _rows(model, tested, parts)]
    rows = _compared(rows, tested)
    outcome = tested[0].outcome
    result = FinetuneResult(
        command="finetune",
        protocol=protocol,
        settings={**settings, "size": tested[0].size, "seed": spec.seed, "label": parts.label, "loss": tested[0].loss},
        checkpoint=str(outcome.checkpoint),
        data=parts.hashes(),
        **headed(rows),
        run=str(out),
        steps=outcome.steps,
        images_per_second=outcome.images_per_second,
        loss=outcome.loss,
        seconds=round(sum(one.outcome.seconds for one in tested), 1),
    )
    if world.first:
        append_json(out / RESULTS, asdict(result))
    return result


def _as_asked(spec: FinetuneSpec, checkpoint: Checkpoint | None, parts: Parts, world: World) -> FinetuneSpec:
    """Return the spec with `auto` for what `auto` would become here: a run has recorded that by the time it is resumed."""
    side = int(np.median(short_sides(parts.train)))
    size = choose_size(side) if checkpoint is None else checkpoint.size
    precision = choose_machine(spec.device, "auto", "off", "off", world).precision
    usual = {"size": size, "canvas": choose_canvas(size, side)[0], "precision": precision}
    return spec.model_copy(update={name: "auto" for name, value in usual.items() if getattr(spec, name) == value})


def _write_command(spec: FinetuneSpec, out: Path) -> None:
    """Record what was asked for, once for all trainings, so that `--resume` needs nothing but the folder."""
    try:
        with write_atomically(out / SPEC) as stream:
            stream.write((spec.model_dump_json(indent=2, exclude={"out", "resume"}) + "\n").encode())
    except OSError as error:
        raise SslkitError(f"cannot write to {out}: {error.strerror}", flag="out") from error


def _absolute(spec: FinetuneSpec) -> FinetuneSpec:
    paths = {name: getattr(spec, name) for name in ("ckpt", "init")}
    found: dict[str, Any] = {name: str(Path(path).resolve()) for name, path in paths.items() if path is not None}
    if spec.data is not None:
        found["data"] = absolute_data(spec.data)
    if spec.test:
        found["test"] = [absolute_data(test) for test in spec.test]
    return spec.model_copy(update=found)


def _trials(spec: FinetuneSpec, out: Path) -> list[Trial]:
    """List the trainings; a single one has the folder for itself."""
    all_of_them = [
        (share, seed, scratch)
        for scratch in ([False, True] if spec.scratch else [False])
        for share in spec.shares
        for seed in range(spec.seed, spec.seed + spec.seeds)
    ]
    if len(all_of_them) == 1:
        return [Trial(*all_of_them[0], out)]
    return [
        Trial(share, seed, scratch, out / f"{'scratch-' if scratch else ''}{100 * share:g}%-seed{seed}")
        for share, seed, scratch in all_of_them
    ]


def _run(
    trial: Trial,
    spec: FinetuneSpec,
    parts: Parts,
    checkpoint: Checkpoint | None,
    allowed: str | None,
    continues: bool,
    world: World,
) -> Tested:
    """Train once, and look at the test parts once."""
    own: dict[str, Any] = {"shares": [trial.share], "seed": trial.seed, "seeds": 1, "scratch": trial.scratch}
    spec = spec.model_copy(update={**own, "out": str(trial.out)})
    if continues and holds_run(trial.out):
        going_on = recorded_spec(spec, trial.out)
        assert isinstance(going_on, FinetuneSpec)
        spec = going_on
    train = parts.train
    if trial.share < 1:
        train = train.subset(held_out_rows(train.labels, trial.seed, train.classes, trial.share)[1])
    plan = resolve_settings(spec, ImageSource.of(train, spec), ("pooled",), world)
    assert train.labels is not None
    labels, spec = torch.from_numpy(train.labels), spec.model_copy(update={"encoder": plan.spec.encoder})

    def build_task(encoder: Encoder, data: DataInfo) -> PretextTask:
        return Supervised(spec, encoder, data, labels, len(parts.classes))

    def build_start(build: RecipeBuilder) -> Encoder:
        if checkpoint is None:
            return build()
        return build_encoder(checkpoint.recipe, allowed=allowed) if trial.scratch else checkpoint.build_encoder(allowed)

    outcome = run_training(
        TrainingJob(
            name="finetune",
            command="finetune",
            plan=plan,
            out=trial.out,
            build_encoder=build_start,
            build_task=build_task,
            reads={"finetune": ("pooled",)},
            metadata={
                "classes": list(parts.classes),
                "data": parts.fingerprint,
                "several_labels": labels.dim() == 2,
                "loss": ("sigmoid" if labels.dim() == 2 else "softmax") if spec.loss == "auto" else spec.loss,
                **_origin(checkpoint, trial, allowed),
            },
        )
    )
    task, source = outcome.task, plan.source
    assert isinstance(task, Supervised) and isinstance(source, ImageSource)
    modules = task.exports()
    encoder, head = modules["encoder"], modules["head"]
    assert isinstance(encoder, Encoder)
    known = contents(source, plan.spec.batch_size, plan.spec.workers, world)
    tested = Tested(trial, outcome, len(known), plan.data.size, task.kind, [], [], [], [], weights_hash(encoder))
    for test in parts.tests:
        images = ImageSource.of(test.index, spec, plan.data.size, source.canvases.canvas)
        found = extract(encoder, images, spec.batch_size, spec.workers, world=world, hashed=True)
        say_left_out(images, found)
        with torch.no_grad():
            tested.scores.append(head(found.layers["last"].to(encoder.device)).float().cpu())
        assert test.index.labels is not None
        tested.labels.append(torch.from_numpy(test.index.labels[found.rows]))
        tested.rows.append(found.rows)
        tested.duplicates.append(count_duplicates(known, found.hashes))
    return tested


def _origin(checkpoint: Checkpoint | None, trial: Trial, allowed: str | None) -> dict[str, Any]:
    """Return by which task and from which weights a training began, for its own checkpoint's metadata."""
    if checkpoint is None or trial.scratch:
        return {}
    weights = weights_hash(checkpoint.build_encoder(allowed))
    return {"pretrained_by": {"task": checkpoint.metadata["task"], "weights": weights}}


def _rows(model: str, tested: list[Tested], parts: Parts) -> list[Row]:
    """Return a row for each test part of the trials that differ by the seed only."""
    own = [one for one in tested if one.trial.model == model]
    return [
        Row(
            model=model,
            test=part.name,
            layer=None,
            **score([one.scores[place] for one in own], own[0].labels[place], parts.classes),
            p_value=None,
            n_train=own[0].n_train,
            n_test=len(own[0].labels[place]),
            duplicates=max(one.duplicates[place] for one in own),
            test_seen_in_pretraining=part.seen_in_pretraining,
            chosen=[{"seed": one.trial.seed, "share": one.trial.share, "run": str(one.outcome.run)} for one in own],
            weights=own[0].weights,
        )
        for place, part in enumerate(parts.tests)
    ]


def _compared(rows: list[Row], tested: list[Tested]) -> list[Row]:
    """Return the rows, those from scratch with a p-value against the fine-tuned ones of the same share and seed."""
    firsts = {one.trial.model: one for one in reversed(tested)}
    compared, places = [], dict[str, int]()
    for row in rows:
        place = places[row.model] = places.get(row.model, -1) + 1
        mine = firsts[row.model]
        other = firsts.get(replace(mine.trial, scratch=False).model)
        if mine.trial.scratch and other is not None:
            told = [(one.rows[place], right(one.scores[place], one.labels[place])) for one in (mine, other)]
            row = replace(row, p_value=mcnemar_of_rows(*told))
        compared.append(row)
    return compared


def _like(checkpoint: Checkpoint, spec: FinetuneSpec) -> dict[str, Any]:
    """Return the checkpoint's encoder and size for the spec; another start given by hand is an SslkitError."""
    others = [name for name in ("init", "pretrained", "encoder_option") if getattr(spec, name)]
    if others:
        raise SslkitError("training starts from the checkpoint", "leave one of them out", flag=("ckpt", others[0]))
    held = encoder_name(checkpoint.recipe)
    if spec.encoder not in ("auto", held):
        raise SslkitError(f"{spec.encoder}, and the checkpoint holds {held}", "leave one of them out", flag="encoder")
    return {"encoder": held, **({"size": checkpoint.size} if spec.size == "auto" else {})}
