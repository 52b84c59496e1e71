"""A tokenizer: images as grids of codes from a codebook that follows the vectors it stands for."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.task import DataInfo
from sslkit.engine.checkpoint import load_strictly, read_model
from sslkit.nn.codebook import Codebook
from sslkit.nn.norms import in_eval_mode

_IMAGES = 128  # tokenized at once


class Tokenizer(nn.Module):
    """Turn the maps of an encoder into vectors on a grid, `[B, h * w, D]`, and those into codes.

    Maps from the grid's resolution down to the last one are added up, so that all of the encoder takes part.
    """

    grid: Tensor

    def __init__(self, widths: list[int], grid: tuple[int, int], width: int, codes: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(inner, width, 1) for inner in widths)
        self.codebook = Codebook(codes, width)
        self.register_buffer("grid", torch.tensor(grid))
        self.shape = grid  # the same in Python, for what is compiled

    def forward(self, encoder: Encoder, image: Tensor) -> Tensor:
        """Return vectors `[B, h * w, D]` of images `[B, C, H, W]`."""
        maps = _maps(encoder, image)[-len(self.project) :]
        added = [F.interpolate(project(found), size=self.shape) for project, found in zip(self.project, maps, strict=True)]
        return torch.stack(added).sum(dim=0).flatten(2).transpose(1, 2)


def build_tokenizer(encoder: Encoder, data: DataInfo, side: int, width: int, codes: int) -> Tokenizer:
    """Build a tokenizer on a grid of `side` × `side`; raises SslkitError if the encoder has no map of that size."""
    with torch.no_grad(), in_eval_mode(encoder):
        maps = _maps(encoder, torch.zeros(1, data.channels, data.size, data.size))
    sides = [found.shape[2] for found in maps]
    if side not in sides:
        raise SslkitError(
            f"{side}, but the encoder's maps at {data.size} px are {', '.join(map(str, sides))} wide",
            "give one of them",
            flag="grid",
        )
    used = maps[sides.index(side) :]
    return Tokenizer([found.shape[1] for found in used], (side, side), width, codes)


class Tokens(nn.Module):
    """Say the codes of images as a trained tokenizer does, always in eval mode and without a gradient."""

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        self.requires_grad_(False)
        self.eval()

    @property
    def codes(self) -> int:
        """Return how many codes there are."""
        return len(self.tokenizer.codebook.codes)

    def train(self, mode: bool = True) -> "Tokens":
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Return the code of each place, row by row, int64 `[B, N]`."""
        codebook = self.tokenizer.codebook
        parts = image.to(codebook.codes.dtype).split(_IMAGES)  # of a large batch that nobody else has cut
        return torch.cat([codebook.nearest(self.tokenizer(self.encoder, part)) for part in parts])


def read_tokenizer(path: Path | None, task: str, data: DataInfo, grid: tuple[int, int]) -> Tokens:
    """Return the tokenizer of a vqvae's checkpoint; raises SslkitError if there is none or it does not fit data and grid."""
    if path is None:
        raise SslkitError(
            f"{task} tells the codes of a tokenizer, and none was given",
            f"train one: sslkit pretrain vqvae --data DATA; then: sslkit pretrain {task} --data DATA "
            "--tokenizer runs/vqvae/model.safetensors",
            flag="tokenizer",
        )
    model = read_model(path, "tokenizer")
    state = model.part("tokenizer")
    if not state:
        raise SslkitError(f"{path} is a run of {model.metadata['task']}", "it needs one of vqvae", flag="tokenizer")
    if (model.channels, model.size) != (data.channels, data.size):
        raise SslkitError(
            f"it sees {model.size} px of {model.channels} channels, and images are seen at {data.size} px of {data.channels}",
            f"try --size {model.size}" if model.channels == data.channels else "train it on the same data",
            flag="tokenizer",
        )
    height, width = map(int, state["grid"])
    if (height, width) != grid:
        raise SslkitError(
            f"its grid is {height}×{width}, and the encoder's patches are {grid[0]}×{grid[1]}",
            f"train it with --grid {grid[0]}, or give the encoder other patches",
            flag="tokenizer",
        )
    codes, code_width = state["codebook.codes"].shape
    widths = [value.shape[1] for name, value in state.items() if name.startswith("project.") and value.dim() == 4]
    tokenizer = Tokenizer(widths, (height, width), code_width, codes)
    load_strictly(tokenizer, state, str(path))
    return Tokens(model.build_encoder(), tokenizer)


def _maps(encoder: Encoder, image: Tensor) -> list[Tensor]:
    """Return feature maps from the largest to the last, `[B, width, h, w]`; of a transformer the only one."""
    if "layers" in encoder.offers:
        layers: list[Any] = [layer for layer in encoder.layers(image) if layer.dim() == 4]
        if layers:
            return layers
    return [encoder.feature_map(image)]
