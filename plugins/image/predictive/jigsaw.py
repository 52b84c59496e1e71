"""Jigsaw puzzles (Noroozi & Favaro, 2016)."""

from functools import cache
from itertools import permutations
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper, SslkitError
from sslkit.image.transforms import cut_tiles_in_cells, grayscale, resize
from sslkit.image.views import CropOptions
from sslkit.nn import Norm, mlp
from sslkit.pictures import add_frame, side_by_side, tile_grid

_TILE = 64 / 75  # side of a tile, relative to its cell


class Jigsaw(ImageTask):
    """Predict which permutation shuffled the nine tiles of an image (Noroozi & Favaro, 2016).

    Each tile is cut at a random position in its cell, so that lines do not continue across borders, and is normalized
    separately; some images are gray, because chromatic aberration would reveal positions.
    """

    class Options(CropOptions):
        """Options of `jigsaw`."""

        permutations: int = Field(default=100, ge=2, le=2000, description="Permutations to classify (1,000 in the paper).")
        gray: float = Field(default=0.3, ge=0, le=1, description="Probability that an image is converted to gray.")
        hidden: int = Field(default=512, ge=1, description="Hidden width of the head (4,096 in the paper).")
        norm: Norm = Field(default="batch", description="Normalization inside the head.")

    options: Options
    orders: Tensor
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="the paper, solver_cfn_jps.prototxt of the authors",
        settings={
            "size": 225,
            "batch_size": 256,
            "steps": 350_000,
            "optimizer": "sgd",
            "lr": 0.01,
            "weight_decay": 5e-4,
            "warmup": 0.0,
            "permutations": 1000,
            "hidden": 4096,
            "norm": "none",
        },
        unsupported=(
            "AlexNet with a stride of 2 in the first layer, and dropout in the head",
            "a rate that is divided by ten every 100,000 steps (here a cosine)",
        ),
    )
    preview_columns: ClassVar = ("image", "shuffled", "solution", "prediction")

    def build_head(self) -> nn.Module:
        """Build the MLP on the concatenated features of all tiles in order."""
        options = self.options
        return mlp([9 * self.encoder.width, options.hidden, options.permutations], options.norm)

    def setup(self) -> None:
        """Compute cells and tiles in pixels, and select the permutations; raise SslkitError for images that are too small."""
        self.cell = self.data.size // 3
        self.tile = round(_TILE * self.cell)
        if self.tile < 4:
            raise SslkitError(f"images of {self.data.size} px give tiles of {self.tile} px", "use at least 15", flag="size")
        # At least 16 px: the strides of an encoder would leave nothing of smaller tiles.
        self.input_size = self.encoder.nearest_valid_size(max(16, self.tile))
        self.register_buffer("orders", permutation_set(self.options.permutations).clone(), persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return the shuffled tiles, `[B, 9, C, s, s]`, and the index of their permutation, `permutation` `[B]`."""
        image = self.crop(batch)
        image, device = grayscale(image, self.options.gray), image.device
        permutation = torch.randint(len(self.orders), (len(image),), device=device)
        tiles = cut_tiles_in_cells(image, self.orders[permutation], 3, self.tile)  # tile j: cell orders[permutation][j]
        mean, deviation = tiles.mean(dim=(2, 3, 4), keepdim=True), tiles.std(dim=(2, 3, 4), keepdim=True)
        # Encoders expect images in [0, 1], whose standard deviation is typically 0.25.
        tiles = (tiles - mean) / (deviation + 0.02) * 0.25 + 0.5
        return {"image": resize(tiles, self.input_size), "permutation": permutation}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of the permutations, `[B, P]`."""
        logits: Tensor = self.head(self.each_view(self.encoder, batch["image"]).flatten(1))
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(output, batch["permutation"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy."""
        return {"accuracy": (output.argmax(dim=1) == batch["permutation"]).float()}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the permutations."""
        return {"accuracy": 1 / self.options.permutations}

    def reasons(self) -> dict[str, str]:
        """Return the resolved size of the tiles."""
        enlarged = f", enlarged to {self.input_size}" if self.tile < self.input_size else ""
        return {"tile": f"{self.tile} px{enlarged}, at random positions in cells of {self.cell}: the paper's proportions"}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the image, the shuffled tiles, and the tiles in their true and predicted order (frame: correct or not)."""
        image = batch["image"]
        columns = [batch["original"], tile_grid(image, 3), self._restore(image, batch["permutation"])]
        if output is not None:
            predicted = output.argmax(dim=1)
            columns.append(add_frame(self._restore(image, predicted), predicted == batch["permutation"]))
        return side_by_side(*columns)

    def _restore(self, tiles: Tensor, permutation: Tensor) -> Tensor:
        inverse = self.orders[permutation].argsort(dim=1)
        return tile_grid(tiles[torch.arange(len(tiles), device=tiles.device)[:, None], inverse], 3)


@cache
def permutation_set(count: int) -> Tensor:
    """Return `count` permutations of nine tiles with large pairwise Hamming distances, int64 `[count, 9]`, deterministic.

    Greedy: the next permutation maximizes the minimum distance to those selected so far, ties broken by the mean distance
    (algorithm 1 of the paper maximizes the mean only, which admits nearly equal pairs).
    """
    candidates = torch.tensor(list(permutations(range(9))), dtype=torch.uint8)
    selected = [int(torch.randint(len(candidates), (), generator=torch.Generator().manual_seed(0)))]
    nearest = torch.full((len(candidates),), 9, dtype=torch.int32)
    total = torch.zeros(len(candidates), dtype=torch.int32)
    while len(selected) < count:
        distance = (candidates != candidates[selected[-1]]).sum(dim=1, dtype=torch.int32)
        nearest, total = torch.minimum(nearest, distance), total + distance
        selected.append(int((nearest * (9 * count + 1) + total).argmax()))
    return candidates[selected].long()
