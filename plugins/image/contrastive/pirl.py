"""PIRL (Misra & van der Maaten, 2020)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, SslkitError
from sslkit.image.transforms import cut_tiles_in_cells, resize
from sslkit.image.views import ViewOptions, Views, strong_view
from sslkit.nn import MemoryBank, MemoryBankOptions, Norm, mlp
from sslkit.pictures import side_by_side, tile_grid

_TILE = 64 / 75  # of a cell's side, as in jigsaw


class PIRL(PretextTask):
    """Make image embeddings invariant to shuffling tiles (PIRL; Misra & van der Maaten, 2020).

    An image and its shuffled tiles are both matched to the image's row of a memory bank, with other images' rows as
    negatives. Whereas `jigsaw` predicts the permutation, the embedding here should be invariant to it.
    """

    class Options(MemoryBankOptions, ViewOptions):
        """Options of `pirl`."""

        tiles: float = Field(default=0.5, ge=0, le=1, description="Weight of the tiles' loss (λ); the image's loss has 1 - λ.")
        negatives: int = Field(
            default=4096, ge=1, description="Negative samples from the memory bank (32,000 in the paper); at most all."
        )
        norm: Norm = Field(default="none", description="Normalization of the tile embeddings.")

    options: Options
    head: nn.ModuleDict
    needs: ClassVar = ("index",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="the implementation details of the paper",
        settings={
            "size": 224,
            "encoder": "resnet50",
            "batch_size": 1024,
            "epochs": 800,
            "optimizer": "sgd",
            "lr": 0.12,
            "weight_decay": 1e-4,
            "warmup": 0.0,
            "negatives": 32_000,
            "loss": "nce",
            "temperature": 0.07,
        },
        unsupported=("a final rate of 1.2e-4 (here 0)",),
    )
    preview_columns: ClassVar = ("image", "view", "tiles")

    def build_head(self) -> nn.Module:
        """Build projections of the image, of each tile, and of all tiles concatenated in shuffled order."""
        width, options = self.encoder.width, self.options
        tile = mlp([width, options.width], options.norm, last_norm=True)
        return nn.ModuleDict(
            {
                "image": nn.Linear(width, options.width),
                "tile": tile,
                "tiles": nn.Linear(9 * options.width, options.width),
            }
        )

    def setup(self) -> None:
        """Set the size of cells and tiles in pixels, and build the memory bank."""
        self.cell = self.data.size // 3
        self.tile = round(_TILE * self.cell)
        if self.tile < 4:
            raise SslkitError(
                f"images of {self.data.size} px give nine tiles of only {self.tile} px",
                "pirl needs at least 15 px",
                flag="size",
            )
        self.input_size = self.encoder.nearest_valid_size(max(16, self.tile))
        self.bank = MemoryBank(self.data.samples, self.options)
        self.views = Views(self.options, self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return a view, `[B, C, S, S]`, the shuffled tiles of another, `tiles` `[B, 9, C, s, s]`, and `index` `[B]`."""
        views = self.views
        whole = strong_view(batch, self.data.size, (0.6, 1.0), views.jitter, views.gray, views.blur[1])
        order = torch.rand(len(whole), 9, device=whole.device).argsort(dim=1)
        tiles = resize(cut_tiles_in_cells(whole, order, 3, self.tile), self.input_size)
        return {"image": views(batch), "tiles": tiles, "index": batch["index"]}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return unit vectors of image and tiles, `[B, D]`."""
        tile_vectors = self.each_view(lambda tile: self.head["tile"](self.encoder(tile)), batch["tiles"])
        return {
            "image": F.normalize(self.head["image"](self.encoder(batch["image"])), dim=1),
            "tiles": F.normalize(self.head["tiles"](tile_vectors.flatten(1)), dim=1),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the contrast of both with the bank, weighted (equation 5)."""
        weights = {"tiles": self.options.tiles, "image": 1 - self.options.tiles}
        return {name: weight * self.bank.losses(output[name], batch["index"]).mean() for name, weight in weights.items()}

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Return the image vectors and their indices, for the memory bank."""
        return {"vector": output["image"], "index": batch["index"]}

    def after_step(self, remembered: Batch) -> None:
        """Update the memory bank."""
        self.bank.update(remembered["index"], remembered["vector"])

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the cosine similarity of image and tiles, and how often no negative is nearer to the tiles."""
        positive, negative = self.bank.scores(output["tiles"], batch["index"])
        return {
            "alignment": (output["image"] * output["tiles"]).sum(dim=1),
            "accuracy": (positive > negative.amax(dim=1)).float(),
        }

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the image itself and the negatives."""
        return {"accuracy": 1 / self.bank.choices}

    def reasons(self) -> dict[str, str]:
        """Return the size of tiles."""
        enlarged = f", enlarged to {self.input_size}" if self.tile < self.input_size else ""
        return {"tile": f"{self.tile} px{enlarged}, at random positions in cells of {self.cell} px: the paper's proportions"}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the image, its view and the shuffled tiles."""
        return side_by_side(batch["original"], batch["image"], tile_grid(batch["tiles"], 3))
