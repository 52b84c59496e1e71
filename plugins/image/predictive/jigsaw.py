"""Tell how the nine tiles of an image were shuffled."""

from functools import cache
from itertools import permutations
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, SslkitError
from sslkit.image.transforms import cut_tiles_in_cells, grayscale, resize
from sslkit.image.views import CropOptions, random_crop_view
from sslkit.nn import Norm, mlp
from sslkit.pictures import add_frame, side_by_side, tile_grid

_TILE = 64 / 75  # of a cell's side


class Jigsaw(PretextTask):
    """Tell how the nine tiles of an image were shuffled (Noroozi & Favaro, 2016).

    Tiles lie at a random place in their cell, so that lines do not go on across borders, and are normalized one by one;
    some images are gray, for colors shift toward the border of a lens.
    """

    class Options(CropOptions):
        """Hold jigsaw's options."""

        permutations: int = Field(default=100, ge=2, le=2000, description="Shuffles to tell apart (1,000 in the paper).")
        gray: float = Field(default=0.3, ge=0, le=1, description="Share of images without color.")
        hidden: int = Field(default=512, ge=1, description="Hidden width of the head (4,096 in the paper).")
        norm: Norm = Field(default="batch", description="Norm inside the head.")

    options: Options
    orders: Tensor
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    preview_columns: ClassVar = ("image", "shuffled", "put back", "put back as told")

    def build_head(self) -> nn.Module:
        """Build the MLP over the features of all tiles in order."""
        options = self.options
        return mlp([9 * self.encoder.width, options.hidden, options.permutations], options.norm)

    def setup(self) -> None:
        """Settle cells and tiles in pixels, and choose the shuffles."""
        self.cell = self.data.size // 3
        self.tile = round(_TILE * self.cell)
        if self.tile < 4:
            raise SslkitError(
                f"the nine tiles of images of {self.data.size} px have {self.tile} px", "jigsaw needs 15 px", flag="size"
            )
        self.seen = self.encoder.nearest_valid_size(
            max(16, self.tile)
        )  # of a smaller tile nothing would be left after a few strides
        self.register_buffer("orders", permutation_set(self.options.permutations).clone(), persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return the shuffled tiles, `[B, 9, C, s, s]`, and which shuffle it was, `shuffle` `[B]`."""
        image = random_crop_view(batch["image"], self.data.size, self.options.crop_scale)
        image, device = grayscale(image, self.options.gray), image.device
        shuffle = torch.randint(len(self.orders), (len(image),), device=device)
        cut = cut_tiles_in_cells(image, self.orders[shuffle], 3, self.tile)  # tile j lay at orders[shuffle][j]
        mean, deviation = cut.mean(dim=(2, 3, 4), keepdim=True), cut.std(dim=(2, 3, 4), keepdim=True)
        # An encoder expects images in [0, 1], of which 0.25 is a usual deviation.
        return {"image": resize((cut - mean) / (deviation + 0.02) * 0.25 + 0.5, self.seen), "shuffle": shuffle}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of the shuffles, `[B, P]`."""
        logits: Tensor = self.head(self.each_view(self.encoder, batch["image"]).flatten(1))
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(output, batch["shuffle"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return whether the shuffle was told right: by chance, one in `permutations`."""
        return {"accuracy": (output.argmax(dim=1) == batch["shuffle"]).float()}

    def reasons(self) -> dict[str, str]:
        """Say how large the tiles are."""
        grown = f", enlarged to {self.seen}" if self.tile < self.seen else ""
        return {"tile": f"{self.tile} px{grown}, anywhere in cells of {self.cell}: the paper's shares"}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the tiles as they are seen, put back, and put back as was told."""
        image = batch["image"]
        columns = [batch["original"], tile_grid(image, 3), self._restored(image, batch["shuffle"])]
        if output is not None:
            told = output.argmax(dim=1)
            columns.append(add_frame(self._restored(image, told), told == batch["shuffle"]))
        return side_by_side(*columns)

    def _restored(self, seen: Tensor, shuffle: Tensor) -> Tensor:
        back = self.orders[shuffle].argsort(dim=1)
        return tile_grid(seen[torch.arange(len(seen), device=seen.device)[:, None], back], 3)


@cache
def permutation_set(count: int) -> Tensor:
    """Return `count` permutations of nine tiles that differ in many places, int64 `[count, 9]`, the same ones every time.

    Greedy: each is one of those whose nearest among the chosen is farthest, in Hamming distance; of them, the one that is
    farthest from all on average (algorithm 1 of the paper looks at the average only, which lets near twins in).
    """
    every = torch.tensor(list(permutations(range(9))), dtype=torch.uint8)
    chosen = [int(torch.randint(len(every), (), generator=torch.Generator().manual_seed(0)))]
    nearest = torch.full((len(every),), 9, dtype=torch.int32)
    total = torch.zeros(len(every), dtype=torch.int32)
    while len(chosen) < count:
        distance = (every != every[chosen[-1]]).sum(dim=1, dtype=torch.int32)
        nearest, total = torch.minimum(nearest, distance), total + distance
        chosen.append(int((nearest * (9 * count + 1) + total).argmax()))
    return every[chosen].long()
