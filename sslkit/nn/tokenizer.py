"""A tokenizer: images as grids of codes from a codebook that follows the vectors it stands for."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.encoders.base import Encoder
from sslkit.engine.checkpoint import load_strictly, read_model
from sslkit.errors import SslkitError
from sslkit.nn.clustering import nearest_center
from sslkit.nn.norms import in_eval_mode
from sslkit.task import DataInfo

_AT_ONCE, _IMAGES = 2**24, 128  # distances, and images of a tokenizer, in memory
_DEAD = 0.05  # of an even share of the vectors: a code that fewer are nearest to begins anew


class Codebook(nn.Module):
    """Hold codes `[K, D]`, each the moving average of the vectors that it is nearest to.

    (van den Oord et al., 2017, appendix A.1.) Codes that nearly no vector is near to begin anew at a vector of the batch.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(count, width))
        self.register_buffer("counts", torch.zeros(count))
        self.register_buffer("sums", torch.zeros(count, width))

    @torch.no_grad()
    def begin(self, vectors: Tensor, step: int) -> None:
        """Take the codes from vectors `[N, D]`, any of them; a step will bring so many vectors."""
        self._begin(torch.ones_like(self.counts, dtype=torch.bool), vectors, step)

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the nearest code of vectors `[..., D]`, int64 `[...]`."""
        flat = vectors.flatten(0, -2).to(self.codes.dtype)
        with torch.autocast(flat.device.type, enabled=False):  # half precision would take a neighbour for the nearest
            return nearest_center(flat, self.codes)[0].view(vectors.shape[:-1])

    @torch.no_grad()
    def follow(self, vectors: Tensor, decay: float) -> None:
        """Let the codes follow vectors `[N, D]`, keeping `decay` of what they were."""
        vectors = vectors.to(self.codes.dtype)
        counts, sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        for part in vectors.split(max(1, _AT_ONCE // len(self.codes))):  # a product, which adds up in the same order always
            nearest = F.one_hot(self.nearest(part), len(self.codes)).to(part.dtype)
            counts += nearest.sum(dim=0)
            sums += nearest.T @ part
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        self.codes.copy_(self.sums / self.counts.clamp(min=1e-5)[:, None])
        self._begin(self.counts < _DEAD * len(vectors) / len(self.codes), vectors, len(vectors))

    def perplexity(self) -> Tensor:
        """Return how many codes are in use: the exponential of the entropy of their shares."""
        shares = self.counts / self.counts.sum().clamp(min=1e-5)
        used: Tensor = torch.special.entr(shares).sum().exp()
        return used

    def _begin(self, anew: Tensor, vectors: Tensor, step: int) -> None:
        """Put the codes that begin anew, bool `[K]`, at vectors `[N, D]`, and count an even share of a step for each."""
        count = torch.tensor(step / len(self.codes), device=vectors.device, dtype=self.counts.dtype)
        drawn = torch.randperm(len(vectors), device=vectors.device)[torch.arange(len(self.codes)) % len(vectors)]
        found = vectors[drawn].to(self.codes.dtype)
        found = found + 1e-3 * found.std() * torch.randn_like(found)  # two codes in one place would never part
        self.codes.copy_(torch.where(anew[:, None], found, self.codes))
        self.counts.copy_(torch.where(anew, count, self.counts))
        self.sums.copy_(torch.where(anew[:, None], found * count, self.sums))


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


def tokenizer_for(encoder: Encoder, data: DataInfo, side: int, width: int, codes: int) -> Tokenizer:
    """Build a tokenizer on a grid of `side` × `side`; raises SslkitError if the encoder has no map of that size."""
    with torch.no_grad(), in_eval_mode(encoder):
        maps = _maps(encoder, torch.zeros(1, data.channels, data.size, data.size))
    sides = [found.shape[2] for found in maps]
    if side not in sides:
        raise SslkitError(
            f"--grid: {side}, but the encoder's maps at {data.size} px are {', '.join(map(str, sides))} wide",
            "give one of them",
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
            f"--tokenizer: {task} tells the codes of a tokenizer, and none was given",
            f"train one: sslkit pretrain vqvae --data DATA; then: sslkit pretrain {task} --data DATA "
            "--tokenizer runs/vqvae/model.safetensors",
        )
    model = read_model(path, "--tokenizer")
    state = model.part("tokenizer")
    if not state:
        raise SslkitError(f"--tokenizer: {path} is a run of {model.metadata['task']}", "it needs one of vqvae")
    if (model.channels, model.size) != (data.channels, data.size):
        raise SslkitError(
            f"--tokenizer: it sees {model.size} px of {model.channels} channels, and images are seen at {data.size} px of "
            f"{data.channels}",
            f"try --size {model.size}" if model.channels == data.channels else "train it on the same data",
        )
    height, width = map(int, state["grid"])
    if (height, width) != grid:
        raise SslkitError(
            f"--tokenizer: its grid is {height}×{width}, and the encoder's patches are {grid[0]}×{grid[1]}",
            f"train it with --grid {grid[0]}, or give the encoder other patches",
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
