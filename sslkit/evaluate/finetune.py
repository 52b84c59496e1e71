"""`sslkit finetune`: train encoder and classifier on labels, through the same engine as pretraining."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.data.images import Images
from sslkit.encoders import Encoder, name_of
from sslkit.engine.checkpoint import read_model
from sslkit.engine.distributed import World, joined
from sslkit.engine.folder import RESULTS, append_json, choose_out, holds_run
from sslkit.engine.plan import make_plan
from sslkit.engine.training import Training, merge_recorded, run_training
from sslkit.errors import SslkitError
from sslkit.evaluate.data import find_labelled
from sslkit.evaluate.features import extract
from sslkit.specs import FinetuneSpec
from sslkit.task import Batch, DataInfo, PretextTask
from sslkit.transforms import flip, random_resized_crop

PROTOCOL = "finetune/full-v1"


@dataclass(frozen=True)
class FinetuneResult:
    """Hold what `sslkit finetune --json` prints; `top1` is a share of 1, of the last step's weights."""

    protocol: str | None
    top1: float
    n_train: int
    n_test: int
    test_seen_in_pretraining: bool
    run: str
    checkpoint: str
    steps: int
    images_per_second: float
    loss: float | None
    seconds: float


class Supervised(PretextTask):
    """Tell an image's label: no pretext, but the same contract."""

    options: FinetuneSpec
    labels: Tensor

    def __init__(self, spec: FinetuneSpec, encoder: Encoder, data: DataInfo, labels: Tensor, classes: int) -> None:
        self.classes = classes
        super().__init__(spec, encoder, data)
        self.register_buffer("labels", labels, persistent=False)

    def build_head(self) -> nn.Module:
        """Build the linear classifier."""
        return nn.Linear(self.encoder.width, self.classes)

    def transform(self, batch: Batch) -> Batch:
        """Return a random crop, flipped at random, and the label."""
        image = random_resized_crop(batch["image"], self.data.size, scale=(self.options.crop_scale, 1.0))
        return {"image": flip(image), "label": self.labels[batch["index"]]}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of logits `[B, classes]`."""
        return F.cross_entropy(output, batch["label"], label_smoothing=self.options.label_smoothing)

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return whether the label was told right."""
        return {"accuracy": (output.argmax(dim=1) == batch["label"]).float()}

    def exports(self) -> dict[str, nn.Module]:
        """Return encoder and classifier."""
        return {"encoder": self.encoder, "head": self.head}


def finetune(spec: FinetuneSpec) -> FinetuneResult:
    """Fine-tune a checkpoint, or train `--encoder` from scratch, and test it once; everything `sslkit finetune` does."""
    with joined(spec.device) as world:
        return _finetune(spec, world)


def _finetune(spec: FinetuneSpec, world: World) -> FinetuneResult:
    allowed = spec.encoder  # what the user wrote, before a file is asked
    size_by_hand = spec.size != "auto"
    out = choose_out(spec.out, "finetune", spec.resume or spec.extend_to is not None)
    paths = {name: getattr(spec, name) for name in ("data", "test", "ckpt", "init")}
    spec = spec.model_copy(update={name: str(Path(path).resolve()) for name, path in paths.items() if path is not None})
    if (spec.resume or spec.extend_to is not None) and holds_run(out):
        merged = merge_recorded(spec, out)
        assert isinstance(merged, FinetuneSpec)
        spec = merged
    checkpoint = None if spec.ckpt is None else read_model(spec.ckpt)
    if checkpoint is not None:
        checkpoint.check_images()
        start = checkpoint.build_encoder(allowed=allowed)  # before any data is touched
        spec = spec.model_copy(update=_like(checkpoint.recipe, checkpoint.size, spec))
    by_hand = size_by_hand or any(getattr(spec, name) != FinetuneSpec.model_fields[name].default for name in _PROTOCOL_FIELDS)
    parts = find_labelled(spec, spec.test, checkpoint)
    spec = spec.model_copy(update={"data": parts.data, "label": parts.label})
    plan = make_plan(spec, Images.of(parts.train, spec), ("pooled",), world)
    assert parts.train.labels is not None and parts.test.labels is not None
    labels = torch.from_numpy(parts.train.labels)

    def build_task(encoder: Encoder, data: DataInfo) -> PretextTask:
        return Supervised(spec, encoder, data, labels, len(parts.classes))

    outcome = run_training(
        Training(
            name="finetune",
            command="finetune",
            plan=plan,
            out=out,
            build_encoder=lambda build: build() if checkpoint is None else start,
            build_task=build_task,
            reads=("pooled",),
            metadata={"classes": list(parts.classes), "data": parts.fingerprint},
        )
    )
    images = Images.of(parts.test, spec, plan.data.size)
    features, rows = extract(outcome.task.encoder, images, spec.batch_size, spec.workers, world=world)
    with torch.no_grad():
        predicted = outcome.task.head(features.to(plan.machine.device)).argmax(dim=1).cpu()
    top1 = (predicted == torch.from_numpy(parts.test.labels[rows])).double().mean().item()
    result = FinetuneResult(
        protocol=None if by_hand else PROTOCOL,
        top1=top1,
        n_train=len(parts.train),
        n_test=len(rows),
        test_seen_in_pretraining=parts.test_seen_in_pretraining,
        run=str(outcome.run),
        checkpoint=str(outcome.checkpoint),
        steps=outcome.steps,
        images_per_second=outcome.images_per_second,
        loss=outcome.loss,
        seconds=outcome.seconds,
    )
    if world.first:
        append_json(outcome.run / RESULTS, {"command": "finetune", **result.__dict__})
    return result


# Changing one of these by hand gives a result without a protocol id.
_PROTOCOL_FIELDS = frozenset(
    {"epochs", "steps", "minutes", "batch_size", "optimizer", "lr", "weight_decay", "weight_decay_end", "warmup"}
    | {"clip", "label_smoothing", "crop_scale", "extend_to"}
)


def _like(recipe: dict[str, Any], size: int, spec: FinetuneSpec) -> dict[str, Any]:
    """Return the checkpoint's encoder and size for the spec; another start given by hand is an SslkitError."""
    others = [name for name in ("init", "pretrained", "encoder_option") if getattr(spec, name)]
    if others:
        raise SslkitError(f"--ckpt and --{others[0].replace('_', '-')}: the checkpoint is the start", "leave one of them out")
    held = name_of(recipe)
    if spec.encoder not in ("auto", held):
        raise SslkitError(f"--encoder: {spec.encoder}, and the checkpoint holds {held}", "leave one of them out")
    return {"encoder": held, **({"size": size} if spec.size == "auto" else {})}
