"""The models of an evaluation: a checkpoint, and the baselines and other models to compare it with."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import torch

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError, flag_name, renamed_flags
from sslkit.contract.result import Role
from sslkit.encoders.build import build_encoder, check_published
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.run_folder import MODEL
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.splits import evaluation_size
from sslkit.registry import load_modality
from sslkit.specs.data import DataSpec
from sslkit.specs.evaluation import EvaluationSpec

CHECKPOINT, RANDOM = "checkpoint", "random weights"


@dataclass(frozen=True)
class Model:
    """An encoder, its name in results, and the size of its samples."""

    name: str
    encoder: Encoder
    size: int
    role: Role = "other"

    @cached_property
    def weights(self) -> str:
        """Return the hash of the encoder's weights."""
        return weights_hash(self.encoder)

    def adapt(self, layer: str, pool: str) -> tuple[str, str]:
        """Return the layer and pooling to read: of another encoder, its own where it lacks those of the checkpoint."""
        if self.role in ("checkpoint", "random"):
            return layer, pool
        if "layers" not in self.encoder.provides:
            return "last", "auto"
        return layer, "auto" if pool in ("class", "both") and not self.encoder.class_token else pool


def compare_models(checkpoint: Checkpoint, spec: EvaluationSpec, device: torch.device, detail: int) -> list[Model]:
    """Return the checkpoint and the models to compare it with; raises SslkitError for one that can't be built.

    `detail` bounds the number of plain features: raw pixels are those of images of so many pixels a side.
    """
    size, allowed = evaluation_size(spec, checkpoint), spec.encoder
    models = [Model(CHECKPOINT, checkpoint.build_encoder(allowed), size, "checkpoint")]
    if spec.baselines:
        seed_stage(spec.seed, "random", 0)
        random = build_encoder(checkpoint.recipe, allowed=allowed).eval()
        random.take_over(models[0].encoder)
        models.append(Model(RANDOM, random, size, "random"))
        baseline = load_modality(checkpoint.modality).baseline(models[0].encoder, checkpoint.channels, size, detail)
        if baseline is not None:
            models.append(Model(*baseline, size, "baseline"))
    models += [load_other(name, size, spec, checkpoint, allowed) for name in spec.against]
    for model in models:
        model.encoder.to(device)
    return models


def load_other(name: str, size: int, spec: DataSpec, checkpoint: Checkpoint, allowed: str | None) -> Model:
    """Load a model to compare with: another checkpoint, or a published one."""
    channels, modality = checkpoint.channels, checkpoint.evaluated_as
    path = Path(name, MODEL) if Path(name).is_dir() else Path(name)
    if path.suffix == ".safetensors":
        other = read_model(path, "against")
        if other.evaluated_as != modality:
            raise SslkitError(f"{path} was trained on {other.evaluated_as} data, the checkpoint on {modality}", flag="against")
        if other.channels != channels:
            raise SslkitError(f"{path} takes {other.channels} channels, the checkpoint {channels}", flag="against")
        _check_kept_options(other, checkpoint)
        return Model(name, other.build_encoder(allowed), spec.sample_size(modality) or other.size)
    published, _, side = name.partition("@")
    if side and not side.isdigit():
        raise SslkitError(f"{name} is neither a checkpoint nor NAME or NAME@SIZE", flag="against")
    input_size = int(side) if side else size
    recipe = recipe_for(published, input_size, channels, pretrained=True)
    with renamed_flags({"encoder": "against"}):
        check_published(published, checkpoint.modality)
        encoder = build_encoder(recipe, pretrained=True, allowed=allowed)
    return Model(
        f"{published}, pretrained, at {input_size} {load_modality(encoder.modality).options.size_unit}",
        encoder.eval(),
        input_size,
    )


def _check_kept_options(other: Checkpoint, checkpoint: Checkpoint) -> None:
    """Raise SslkitError if two checkpoints read samples in different ways: all models of a comparison are given the same."""
    theirs, ours = (DataSpec().with_recorded(model.metadata.get("spec"), same_data=False) for model in (other, checkpoint))
    values = ours.data_values()
    for name, value in theirs.data_values().items():
        if name in values and values[name] != value and not (ours.is_rule(name) or theirs.is_rule(name)):
            problem = f"{other.path} was trained with {flag_name(name)} {value}, the checkpoint with {values[name]}"
            raise SslkitError(problem, "compared models read the same samples", flag="against")


def weights_hash(encoder: Encoder) -> str:
    """Return a hash of an encoder's recipe and weights."""
    digest = blake2b(repr(encoder.recipe).encode(), digest_size=8)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
