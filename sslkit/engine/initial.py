"""`--init`: weights to start from, of sslkit or published."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from sslkit.console import say
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.engine.checkpoint import load_strictly, read_model, read_safetensors
from sslkit.engine.dialects import recognize, sort_keys
from sslkit.engine.hub import CONFIG, WEIGHTS, HubAddress, is_hub_address
from sslkit.engine.torch_file import is_torch_file, read_torch_file
from sslkit.specs.data import MAIN_PART

_LONGEST_CONFIG = 2**20  # bytes
_SPLIT = re.compile(r"^(.*\.attn\.)query\.(weight|bias)$")


@dataclass(frozen=True)
class _Start:
    """A file of weights, and what the config.json beside it says."""

    file: Path
    config: dict[str, Any]


def resolve_start(init: str) -> str:
    """Return `--init` as a run records it: an absolute path, or an address of the Hub with the commit that it has now."""
    return str(HubAddress.parse(init).with_commit()) if is_hub_address(init) else str(Path(init).resolve())


def load_initial(encoder: Encoder, path: str, dialect: str = "auto") -> None:
    """Start an encoder from one of our checkpoints, or from published weights of the timm or torchvision model inside.

    `path` is a file, a folder with `model.safetensors` and maybe `config.json`, or `hf_hub:OWNER/NAME@COMMIT`. Every weight
    and buffer of the encoder gets a value, position embeddings of another size are resampled, and what is left over of a
    file (heads, decoder, the other of two encoders, optimizer) is counted and printed. Raises SslkitError for a
    file that cannot be read, lacks a weight, or has one that is in no such group.
    """
    start = _find_start(path)
    file = start.file
    pickled = file == Path(path) and is_torch_file(file)  # in a folder, and of the Hub, safetensors only
    tensors, metadata = (read_torch_file(file, "init"), {}) if pickled else read_safetensors(file, "init")
    if "sslkit" in metadata:
        _fill(encoder, read_model(file, "init").part(MAIN_PART), path)
        return
    model = getattr(encoder, "model", None)
    if not isinstance(model, nn.Module):
        hint = "published weights need a timm or torchvision encoder"
        raise SslkitError(f"{path} was not written by sslkit", hint, flag="init")
    dialect = recognize(tensors, path, dialect)
    keys, left_over = sort_keys(tensors, dialect, model.state_dict().keys())
    state = _fuse({name: tensors[stored] for name, stored in keys.items()})
    if dialect != "plain":
        say(f"  {'init':<14} {path} is in the dialect {dialect}")
    if left_over:
        counts = ", ".join(f"{group} ({len(names)} tensor{'s'[: len(names) != 1]})" for group, names in left_over.items())
        say(f"  {'init':<14} left out: {counts}")
    try:
        _fill(model, state, path)
    except SslkitError as error:
        architecture = start.config.get("architecture")
        if not error.hint and isinstance(architecture, str) and re.fullmatch(r"\w{1,80}", architecture):
            error.hint = f"{CONFIG} says: --encoder {architecture}"
        raise
    _copy_normalization(encoder, start.config)


def _find_start(path: str) -> _Start:
    """Return the weights that `--init` names, and the config beside them; raises SslkitError if there are none."""
    if is_hub_address(path):
        address = HubAddress.parse(path)
        file, config = address.download(WEIGHTS), address.download(CONFIG)
        if file is None:
            raise SslkitError(f"{path} has no {WEIGHTS}", "nothing else is read from the Hub", flag="init")
        return _Start(file, {} if config is None else _read_config(config))
    folder = Path(path)
    if not folder.is_dir():
        return _Start(folder, {})
    config = folder / CONFIG
    return _Start(folder / WEIGHTS, _read_config(config) if config.is_file() else {})


def _read_config(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LONGEST_CONFIG:
            raise ValueError(f"longer than {_LONGEST_CONFIG} bytes")
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SslkitError(f"{file} cannot be read: {error}", flag="init") from error
    if not isinstance(config, dict):
        raise SslkitError(f"{file} is not a JSON object", flag="init")
    return config


def _copy_normalization(encoder: Encoder, config: dict[str, Any]) -> None:
    """Let the encoder normalize as the weights were trained, if a config of timm says how."""
    trained, buffers = config.get("pretrained_cfg"), dict(encoder.named_buffers(recurse=False))
    if not isinstance(trained, dict) or not {"mean", "std"} <= buffers.keys():
        return
    tensors = {}
    for name in ("mean", "std"):
        values, buffer = trained.get(name), buffers[name]
        if not isinstance(values, list) or len(values) != buffer.numel():
            return
        if not all(isinstance(value, int | float) for value in values):
            return
        try:
            tensors[name] = torch.tensor(values, dtype=torch.float32).view_as(buffer)
        except (OverflowError, RuntimeError, ValueError):  # integers that no float holds
            return
        if not tensors[name].isfinite().all():
            return
    if tensors["std"].min() <= 0:  # in float32, in which 1e-300 is 0
        return
    for name, tensor in tensors.items():
        buffers[name].copy_(tensor)
    say(f"  {'init':<14} pixels are normalized as {CONFIG} says: mean {trained['mean']}, std {trained['std']}")


def _fill(module: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Load weights, with position embeddings of the size that the module has."""
    _check_stem(module, state, path)
    for name, current in module.state_dict().items():
        if name in state and state[name].shape != current.shape:
            state = _with_positions(module, name, current, state)
    load_strictly(module, state, f"--init: {path}")


def _fuse(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with query, key and value in one matrix."""
    fused = dict(state)
    for name in state:
        split = _SPLIT.match(name)
        if split is None:
            continue
        start, kind = split.groups()
        parts = [f"{start}{role}.{kind}" for role in ("query", "key", "value")]
        if all(part in state for part in parts):
            fused[f"{start}qkv.{kind}"] = torch.cat([fused.pop(part) for part in parts])
    return fused


def _with_positions(module: nn.Module, name: str, current: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with position embeddings resampled to another grid, or as they are if `name` is something else."""
    kind, stored = name.rpartition(".")[2], state[name]
    if kind == "position" and current.dim() == stored.dim() == 4 and current.shape[:2] == stored.shape[:2]:
        before, after = tuple(stored.shape[2:]), tuple(current.shape[2:])
        resampled = F.interpolate(stored.float(), size=after, mode="bicubic", antialias=True)
    elif kind in ("pos_embed", "pos_embedding") and current.dim() == stored.dim() == 3 and current.shape[2] == stored.shape[2]:
        owner = module.get_submodule(name.rpartition(".")[0])
        prefix = 0 if getattr(owner, "no_embed_class", False) else int(getattr(owner, "num_prefix_tokens", 1))
        if not prefix and "cls_token" in state and _side(stored.shape[1]) is None:
            # DINOv2 adds an embedding to the class token, which timm's variants with registers have inside it.
            state = {**state, "cls_token": state["cls_token"] + stored[:, :1]}
            stored = stored[:, 1:]
        sides = _side(stored.shape[1] - prefix), _side(current.shape[1] - prefix)
        if sides[0] is None or sides[1] is None:
            return state
        before, after = (sides[0], sides[0]), (sides[1], sides[1])
        resampled = stored.float() if before == after else resample_abs_pos_embed(stored.float(), list(after), None, prefix)
    else:
        return state
    if before != after:
        sizes = " to ".join("x".join(map(str, size)) for size in (before, after))
        say(f"  {'init':<14} position embeddings were resampled from {sizes}")
    return {**state, name: resampled.to(stored.dtype)}


def _side(tokens: int) -> int | None:
    """Return the side of a square grid of so many tokens, None if there is none."""
    side = math.isqrt(max(0, tokens))
    return side if side and side * side == tokens else None


def _check_stem(module: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Raise SslkitError, with the option that helps, if a file has another stem than the encoder."""
    sides = {"small": 3, "standard": 7}  # of the kernel
    for name, weight in module.state_dict().items():
        shape = tuple(state[name].shape) if name in state else ()
        if weight.dim() != 4 or len(shape) != 4 or shape == tuple(weight.shape) or shape[:2] != tuple(weight.shape)[:2]:
            continue
        stem = next((stem for stem, side in sides.items() if shape[2:] == (side, side)), None)
        if stem is not None:
            side, current = shape[-1], weight.shape[-1]
            raise SslkitError(
                f"{path} has the {stem} stem ({side}x{side}), the encoder one of {current}x{current}",
                f"use --encoder-option stem={stem}",
                flag="init",
            )
