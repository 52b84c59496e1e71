"""Image tokenizers (grids of codes from a codebook), and the options and loss of tasks that predict their codes."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.options import TaskOptions
from sslkit.contract.task import DataInfo
from sslkit.engine.checkpoint import load_strictly, read_model
from sslkit.nn.codebook import Codebook
from sslkit.nn.norms import in_eval_mode

_CHUNK = 128  # images tokenized at once


class TokenizerOptions(TaskOptions):
    """Option of tasks that predict the codes of a trained tokenizer."""

    tokenizer: Path | None = Field(default=None, description="Tokenizer: the model.safetensors of a vqvae run.")


class Tokenizer(nn.Module):
    """Map an encoder's feature maps to vectors on a grid, `[B, h * w, D]`, and these to codes of a codebook.

    The maps from the grid's resolution down to the last one are projected and summed, so that the whole encoder is trained.
    """

    grid: Tensor

    def __init__(self, widths: list[int], grid: tuple[int, int], width: int, codes: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(inner, width, 1) for inner in widths)
        self.codebook = Codebook(codes, width)
        self.register_buffer("grid", torch.tensor(grid))
        self.shape = grid  # the same as Python numbers, for compiled code

    def forward(self, encoder: Encoder, image: Tensor) -> Tensor:
        """Return vectors `[B, h * w, D]` for images `[B, C, H, W]`."""
        maps = _maps(encoder, image)[-len(self.project) :]
        projected = [F.interpolate(project(x), size=self.shape) for project, x in zip(self.project, maps, strict=True)]
        return torch.stack(projected).sum(dim=0).flatten(2).transpose(1, 2)


def build_tokenizer(encoder: Encoder, data: DataInfo, side: int, width: int, codes: int) -> Tokenizer:
    """Build a tokenizer on a grid of `side` × `side`; raise SslkitError if the encoder has no feature map of that size."""
    with torch.no_grad(), in_eval_mode(encoder):
        maps = _maps(encoder, torch.zeros(1, data.channels, data.size, data.size))
    sides = [feature_map.shape[2] for feature_map in maps]
    if side not in sides:
        raise SslkitError(
            f"the encoder has no feature map of side {side} at {data.size} px, only {', '.join(map(str, sides))}",
            "use one of these",
            flag="grid",
        )
    widths = [feature_map.shape[1] for feature_map in maps[sides.index(side) :]]
    return Tokenizer(widths, (side, side), width, codes)


class FrozenTokenizer(nn.Module):
    """Trained encoder and tokenizer that map images to codes, always in eval mode and without gradients."""

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        self.requires_grad_(False)
        self.eval()

    @property
    def num_codes(self) -> int:
        """Return the number of codes in the codebook."""
        return len(self.tokenizer.codebook.codes)

    def train(self, mode: bool = True) -> "FrozenTokenizer":
        """Stay in eval mode, whatever the mode of the task."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Return the code of each grid position in row-major order, int64 `[B, N]`."""
        codebook = self.tokenizer.codebook
        chunks = image.to(codebook.codes.dtype).split(_CHUNK)  # transform gets the whole batch, not a micro-batch
        return torch.cat([codebook.nearest(self.tokenizer(self.encoder, chunk)) for chunk in chunks])


def read_tokenizer(path: Path | None, task: str, data: DataInfo, grid: tuple[int, int]) -> FrozenTokenizer:
    """Read the tokenizer in a vqvae checkpoint for a task whose encoder has patches on `grid` (rows, columns).

    Raises:
        SslkitError: `path` is None, is not a tokenizer, or does not fit the data or the grid.
    """
    if path is None:
        raise SslkitError(
            f"{task} predicts the codes of a tokenizer, and no tokenizer was given",
            f"train one: sslkit pretrain vqvae --data DATA; then: sslkit pretrain {task} --data DATA "
            "--tokenizer runs/vqvae/model.safetensors",
            flag="tokenizer",
        )
    model = read_model(path, "tokenizer")
    state = model.part("tokenizer")
    if not state:
        raise SslkitError(
            f"{path} was trained by {model.metadata['task']} and contains no tokenizer", "use a vqvae run", flag="tokenizer"
        )
    if (model.channels, model.size) != (data.channels, data.size):
        raise SslkitError(
            f"it takes {model.size} px and {model.channels} channels, but the data has {data.size} px and {data.channels}",
            f"try --size {model.size}" if model.channels == data.channels else "train it on the same data",
            flag="tokenizer",
        )
    height, width = map(int, state["grid"])
    if (height, width) != grid:
        raise SslkitError(
            f"its grid is {height}×{width}, but the encoder has {grid[0]}×{grid[1]} patches",
            f"train it with --grid {grid[0]}, or use an encoder with another patch size",
            flag="tokenizer",
        )
    codes, code_width = state["codebook.codes"].shape
    widths = [value.shape[1] for name, value in state.items() if name.startswith("project.") and value.dim() == 4]
    tokenizer = Tokenizer(widths, (height, width), code_width, codes)
    load_strictly(tokenizer, state, str(path))
    return FrozenTokenizer(model.build_encoder(), tokenizer)


def code_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits `[B, N, K]` with codes int64 `[B, N]`."""
    return F.cross_entropy(logits.flatten(0, 1), codes.flatten())


def code_accuracy(logits: Tensor, codes: Tensor) -> Tensor:
    """Return the accuracy of logits `[B, N, K]` on codes int64 `[B, N]`, per sample `[B]`."""
    return (logits.argmax(dim=2) == codes).float().mean(dim=1)


def _maps(encoder: Encoder, image: Tensor) -> list[Tensor]:
    """Return the encoder's feature maps from the largest to the last, `[B, width, h, w]`; a transformer has one."""
    if "layers" in encoder.provides:
        layers: list[Any] = [layer for layer in encoder.layers(image) if layer.dim() == 4]
        if layers:
            return layers
    return [encoder.feature_map(image)]
