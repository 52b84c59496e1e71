"""Checkpoints: `model.safetensors`, which describes itself, and `resume.pt`. Nothing is ever unpickled."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sslkit import registry
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.task import CONTRACT
from sslkit.encoders.build import build_encoder, encoder_origin
from sslkit.encoders.recipe import Recipe, read_recipe
from sslkit.engine.torch_file import is_torch_file
from sslkit.files import write_atomically
from sslkit.specs.data import MAIN_PART

M = TypeVar("M", bound=nn.Module)


FORMAT = 1  # of both files; a reader refuses what is newer


_EXPECTED = {"task": str, "recipe": dict, "size": int, "step": int, "data": str}


_OF_A_PART = {"modality": str, "samples": str, "recipe": dict, "size": int, "data": str}


_LONGEST, _LARGEST = 2**23, 2**16  # bytes of metadata; pixels of a side, or words


@dataclass(frozen=True)
class Checkpoint:
    """A `model.safetensors` that was read: weights and metadata, of one of its encoders if it has several."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    part_name: str = MAIN_PART

    @property
    def recipe(self) -> Recipe:
        """Return the encoder's recipe."""
        recipe: Recipe = self.metadata["recipe"]
        return recipe

    @property
    def size(self) -> int:
        """Return the image size it was trained at."""
        return int(self.metadata["size"])

    @property
    def channels(self) -> int:
        """Return the channels of the images that the encoder takes."""
        return read_recipe(self.recipe).channels

    @property
    def modality(self) -> str:
        """Return the modality of the encoder."""
        return str(self.metadata.get("modality", registry.DEFAULT_MODALITY))

    @property
    def evaluated_as(self) -> str:
        """Return the modality of the samples that it is evaluated on."""
        return str(self.metadata.get("samples", self.modality))

    def check_modality(self, modality: str, flag: str = "ckpt") -> None:
        """Raise SslkitError if the encoder is of another modality."""
        if self.modality != modality:
            parts = [name for name, values in self.metadata.get("parts", {}).items() if values["modality"] == modality]
            hint = f": its part {parts[0]} is one" if parts else ""
            raise SslkitError(
                f"{self.path} was trained on {self.evaluated_as} data by {self.metadata['task']}",
                f"an encoder of {modality} data is needed{hint}",
                flag=flag,
            )

    def with_part(self, name: str) -> "Checkpoint":
        """Return the checkpoint with another of its encoders as the one that is used; raises SslkitError if it has none."""
        if name == self.part_name:
            return self
        encoders = self.metadata.get("parts", {})
        if name not in encoders:
            known = ", ".join([MAIN_PART, *encoders])
            raise SslkitError(f"{self.path} has no encoder {name!r}", f"its parts: {known}", flag="part")
        others = {key: value for key, value in self.tensors.items() if not key.startswith((f"{MAIN_PART}.", f"{name}."))}
        weights = {f"{MAIN_PART}.{key}": value for key, value in self.part(name).items()}
        return Checkpoint(self.path, others | weights, self.metadata | encoders[name], name)

    def with_projector(self, layers: int) -> "Checkpoint":
        """Return the checkpoint with the first layers of its projector as a part of the encoder.

        Raises SslkitError, naming `--projector-layers`, if it keeps no projector with so many layers before its last.
        """
        description = self.recorded_by_task("projector")
        if description is None or not isinstance(description.get("hidden"), list) or "name" not in self.recipe:
            problem = f"{self.path} keeps no projector: it was trained by {self.metadata['task']}"
            raise SslkitError(problem, "simclr keeps its own", flag="projector_layers")
        hidden = description["hidden"]
        if layers > len(hidden):
            problem = f"the projector has {len(hidden) + 1} layers, and the last belongs to the pretext task"
            raise SslkitError(problem, f"use {len(hidden)} at most", flag="projector_layers")
        recipe = {"projector": {"widths": hidden[:layers], "norm": description.get("norm")}, "encoder": self.recipe}
        with torch.device("meta"):
            names = [name for name in build_encoder(recipe).state_dict() if name.startswith("layers_on_top.")]
        projector = self.part("projector")
        tensors = {f"{MAIN_PART}.{MAIN_PART}.{name}": value for name, value in self.part(MAIN_PART).items()}
        for name in names:
            place = name.removeprefix("layers_on_top.")
            tensors |= {f"{MAIN_PART}.{name}": projector[place]} if place in projector else {}
        return Checkpoint(self.path, tensors, self.metadata | {"recipe": recipe}, self.part_name)

    def recorded_by_task(self, name: str) -> dict[str, Any] | None:
        """Return what a task recorded under a name; of joint tasks the only one that did, else None."""
        metadata = self.metadata.get("task_metadata")
        if not isinstance(metadata, dict):
            return None
        tables = [metadata, *metadata.values()] if self.metadata["task"].count("+") else [metadata]
        entries = [table[name] for table in tables if isinstance(table, dict) and isinstance(table.get(name), dict)]
        return entries[0] if len(entries) == 1 else None

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the weights of one exported module."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def build_encoder(self, allowed: str | None = None) -> Encoder:
        """Build the encoder and load the weights, strictly, in eval mode."""
        encoder = build_encoder(self.recipe, allowed=allowed)
        load_strictly(encoder, self.part("encoder"), str(self.path))
        return encoder.eval()


def load(path: str | Path, encoder: str | None = None, part: str = MAIN_PART) -> Encoder:
    """Return the encoder of a `model.safetensors` in eval mode: images `[B, C, H, W]` in [0, 1] to `[B, width]`,
    or what the samples of another modality are.

    Needs neither the plugin nor the run folder. `encoder` repeats a `package.module:factory` named in the file, which
    is not imported otherwise; `part` names one of several encoders. Raises SslkitError for a file that is damaged, not
    ours, or does not match.
    """
    return read_model(path, part=part).build_encoder(allowed=encoder)


def read_model(path: str | Path, flag: str = "ckpt", part: str = MAIN_PART) -> Checkpoint:
    """Read a `model.safetensors`, or one of the encoders in it.

    Raises SslkitError if it is missing, damaged, not ours or of a newer format, and if there is no such encoder.
    """
    path = Path(path)
    tensors, raw = read_safetensors(path, flag)
    try:
        if len(raw["sslkit"]) > _LONGEST:
            raise ValueError("too long")
        metadata = json.loads(raw["sslkit"])
        newer = int(metadata["format"]) > FORMAT
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise SslkitError(f"{path} was not written by sslkit", "other weights can be a start: --init", flag=flag) from error
    if newer:
        raise SslkitError(f"{path} has format {metadata['format']}, this sslkit reads up to {FORMAT}", "upgrade", flag=flag)
    missing = _missing(metadata, _EXPECTED)
    missing += [key for key in ("modality", "samples") if type(metadata.get(key, "")) is not str]
    encoders = metadata.get("parts", {})
    if not isinstance(encoders, dict):
        missing.append("parts")
    else:
        missing += [f"{key} of {name}" for name, values in encoders.items() for key in _missing(values, _OF_A_PART)]
    if missing:
        raise SslkitError(f"{path} does not say its {', '.join(missing)}", "the file was altered", flag=flag)
    return Checkpoint(path, tensors, metadata).with_part(part)


def _missing(metadata: Any, expected: dict[str, type]) -> list[str]:
    """Return the keys of a description that are not there, of another type or, of a size, out of bounds."""
    if not isinstance(metadata, dict):
        return list(expected)
    missing = [key for key, kind in expected.items() if type(metadata.get(key)) is not kind]
    return missing or ([] if 0 < metadata["size"] <= _LARGEST else ["size"])


def save_model(path: Path, modules: dict[str, nn.Module], metadata: dict[str, Any]) -> None:
    """Write modules and metadata as `model.safetensors`, atomically; raises OSError if it can't be."""
    save_tensors(path, {name: dict(module.state_dict()) for name, module in modules.items()}, metadata)


def save_tensors(path: Path, parts: dict[str, dict[str, Tensor]], metadata: dict[str, Any]) -> None:
    """Write the state of modules and metadata as `save_model` does."""
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous() for name, state in parts.items() for key, value in state.items()
    }
    # Cloned: safetensors refuses tensors that share memory.
    data = save({key: value.clone() for key, value in tensors.items()}, {"sslkit": json.dumps(metadata)})
    with write_atomically(path, new_folder=False) as stream:
        stream.write(data)


def describe(encoder: Encoder) -> dict[str, Any]:
    """Return the metadata of an encoder, and the versions that wrote it."""
    details = [module.describe() for module in encoder.modules() if isinstance(module, Encoder)]
    return {
        "format": FORMAT,
        "contract": CONTRACT,
        "modality": encoder.modality,
        "recipe": encoder.recipe,
        "encoder_from": ", ".join(sorted({encoder_origin(recipe.name) for recipe in read_recipe(encoder.recipe).plain})),
        "normalization": [detail for detail in details if detail],
        "versions": {"sslkit": version("sslkit"), "torch": torch.__version__},
    }


def load_strictly(module: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load weights that match the module completely; anything else is an SslkitError listing the differences."""
    expected = module.state_dict()
    missing = sorted(expected.keys() - state.keys())
    left_over = sorted(state.keys() - expected.keys())
    reshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    differences = [
        f"{label}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for label, names in (("missing", missing), ("left over", left_over), ("shape", reshaped))
        if names
    ]
    if differences:
        raise SslkitError(f"{origin} does not match the encoder: {'; '.join(differences)}")
    module.load_state_dict(state)


def build_strictly(build: Callable[[], M], state: dict[str, Tensor], origin: str) -> M:
    """Build a module that fits weights completely, and load them; it takes memory only if all shapes agree.

    Raises SslkitError listing the differences: an altered file could ask for any amount of memory.
    """
    with torch.device("meta"):
        module = build()
    if {name: value.shape for name, value in module.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }:
        module = module.to_empty(device="cpu")
    load_strictly(module, state, origin)
    return module


def read_safetensors(path: Path, flag: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a file; raises SslkitError if it is missing or damaged."""
    if not path.is_file():
        raise SslkitError(f"{path} is not a file", "expected a .safetensors file, as in runs/NAME/model.safetensors", flag=flag)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        if is_torch_file(path):
            hint = "other weights can be a start: --init"
            raise SslkitError(f"{path} was written by torch.save, and is no checkpoint of sslkit", hint, flag=flag) from error
        if path.suffix.lower() != ".safetensors":
            with open(path, "rb") as stream:
                start = stream.read(16)
            problem = f"{path} is neither a safetensors nor a PyTorch file: it begins with {start!r}"
            raise SslkitError(problem, "is the download complete?", flag=flag) from error
        raise SslkitError(f"{path} is not a readable safetensors file: {error}", flag=flag) from error
