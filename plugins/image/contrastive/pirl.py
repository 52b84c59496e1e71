"""Say the same of an image and of its shuffled tiles."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, SslkitError
from sslkit.image.transforms import cut_tiles_in_cells, resize
from sslkit.image.views import ViewOptions, Views, strong_view
from sslkit.nn import MemoryBank, Norm, mlp, noise_contrastive
from sslkit.pictures import side_by_side, tile_grid

_TILE = 64 / 75  # of a cell's side, as in jigsaw


class PIRL(PretextTask):
    """Say the same of an image and of its shuffled tiles (Misra & van der Maaten, 2020).

    Both are compared with what is remembered of the image, and told from what is remembered of others. jigsaw wants to
    know the shuffle; here it should leave no trace.
    """

    class Options(ViewOptions):
        """Hold pirl's options."""

        temperature: float = Field(default=0.07, gt=0, description="Temperature of the similarities.")
        tiles: float = Field(default=0.5, ge=0, le=1, description="Weight of the tiles' term; the image's has the rest (λ).")
        negatives: int = Field(default=4096, ge=1, description="Remembered images (32,000 in the paper); at most all.")
        momentum: float = Field(default=0.5, ge=0, lt=1, description="Share that the memory keeps of what it held.")
        width: int = Field(default=128, ge=4, description="Width of the unit vectors that are compared.")
        norm: Norm = Field(default="none", description="Norm on what is said of each tile.")

    options: Options
    head: nn.ModuleDict
    needs: ClassVar = ("index",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    preview_columns: ClassVar = ("image", "view", "tiles")

    def build_head(self) -> nn.Module:
        """Build what says something of an image, and of its tiles: each alone, then all in their shuffled order."""
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
        """Settle cells and tiles in pixels, and build the bank."""
        self.cell = self.data.size // 3
        self.tile = round(_TILE * self.cell)
        if self.tile < 4:
            raise SslkitError(
                f"the nine tiles of images of {self.data.size} px have {self.tile} px", "pirl needs 15 px", flag="size"
            )
        self.seen = self.encoder.nearest_valid_size(max(16, self.tile))
        self.bank = MemoryBank(self.data.samples, self.options.width)
        self.negatives = min(self.options.negatives, self.data.samples - 1)
        self.expected = self.bank.log_normalizer(self.negatives, self.options.temperature)
        self.views = Views(self.options, self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return a view, `[B, C, S, S]`, the shuffled tiles of another, `tiles` `[B, 9, C, s, s]`, and `index` `[B]`."""
        views, image = self.views, batch["image"]
        whole = strong_view(image, self.data.size, (0.6, 1.0), views.strength, views.gray, views.blur[1])
        order = torch.rand(len(image), 9, device=image.device).argsort(dim=1)
        tiles = resize(cut_tiles_in_cells(whole, order, 3, self.tile), self.seen)
        return {"image": views(image), "tiles": tiles, "index": batch["index"]}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return unit vectors of image and tiles, `[B, D]`."""
        each = self.each_view(lambda tile: self.head["tile"](self.encoder(tile)), batch["tiles"])
        return {
            "image": F.normalize(self.head["image"](self.encoder(batch["image"])), dim=1),
            "tiles": F.normalize(self.head["tiles"](each.flatten(1)), dim=1),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return noise-contrastive estimation of both against the bank (equation 5)."""
        share = {"tiles": self.options.tiles, "image": 1 - self.options.tiles}
        return {
            name: weight * noise_contrastive(*self._scores(output[name], batch), self.expected).mean()
            for name, weight in share.items()
        }

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Keep what is said of the images for the bank."""
        return {"vector": output["image"], "index": batch["index"]}

    def after_step(self, seen: Batch) -> None:
        """Remember it."""
        self.bank.update(seen["index"], seen["vector"], self.options.momentum)

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how alike image and tiles are, cosine, and how often the image is told from its tiles."""
        own, others = self._scores(output["tiles"], batch)
        return {
            "alignment": (output["image"] * output["tiles"]).sum(dim=1),
            "accuracy": (own > others.amax(dim=1)).float(),
        }

    def reasons(self) -> dict[str, str]:
        """Say how large the tiles are."""
        grown = f", enlarged to {self.seen}" if self.tile < self.seen else ""
        return {"tile": f"{self.tile} px{grown}, anywhere in cells of {self.cell}: the paper's shares"}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return image, view and shuffled tiles."""
        return side_by_side(batch["original"], batch["image"], tile_grid(batch["tiles"], 3))

    def _scores(self, vector: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        noise = self.bank.sample_negatives(self.options.negatives, self.clock.step)
        return self.bank.scores(vector, batch["index"], noise, self.options.temperature)
