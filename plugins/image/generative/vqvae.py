"""Paint an image again from a grid of codes, each one of a few hundred."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, Run, TaskOptions
from sslkit.image.decoders import ConvDecoder
from sslkit.image.tokenizer import tokenizer_for
from sslkit.image.transforms import center_view, flip, random_resized_crop
from sslkit.nn import Norm, batch_statistics, error_share
from sslkit.pictures import side_by_side

Side = Annotated[int, Field(ge=2)]


_MEASURED = 1024  # images that the first codes are taken from


_VARIANCE = 0.0625  # of pixels in [0, 1], about: what errors are measured by, so that the commitment weighs what it does there


class VQVAE(PretextTask):
    """Paint an image again from a grid of codes, each one of a few hundred (van den Oord et al., 2017).

    The run's checkpoint is a tokenizer: `beit` and `cae` take it with `--tokenizer`.
    """

    class Options(TaskOptions):
        """Hold the options of vqvae."""

        codes: int = Field(default=512, ge=2, description="Codes in the codebook (512 in the paper; 8,192 for beit there).")
        width: int = Field(default=64, ge=1, description="Width of a code.")
        grid: Side | Literal["auto"] = Field(
            default="auto",
            description="Codes in a row; auto: one for 4 px up to 64 px, else for 16, as patches of ViTs.",
        )
        commitment: float = Field(default=0.25, ge=0, description="Weight of the distance of vectors to their codes (β).")
        decay: float = Field(default=0.99, ge=0, lt=1, description="Share of the codes that a step leaves as they were.")
        crop_scale: float = Field(default=0.5, gt=0, le=1, description="Smallest share of the image that a random crop keeps.")
        norm: Norm = Field(default="batch", description="Norm inside the decoder.")

    options: Options
    reads: ClassVar = ("feature_map",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 128}
    preview_columns: ClassVar = ("image", "painted of codes")

    def build_head(self) -> nn.Module:
        """Build the decoder from codes."""
        options, data = self.options, self.data
        self.side = data.size // (4 if data.size <= 64 else 16) if options.grid == "auto" else options.grid
        self.tokenizer = tokenizer_for(self.encoder, data, self.side, options.width, options.codes)
        widen = nn.Conv2d(options.width, self.encoder.width, 1)
        return nn.Sequential(
            widen, ConvDecoder(self.encoder.width, (self.side, self.side), data.size, data.channels, options.norm)
        )

    def before_epoch(self, run: Run) -> None:
        """Take the first codes from what the untrained encoder says, once."""
        if self.clock.epoch > 0:
            return
        images = center_view(run.batch(_MEASURED)["image"], self.data.size).split(128)
        with torch.no_grad(), batch_statistics(self.encoder):
            vectors = torch.cat([self.tokenizer(self.encoder, some).flatten(0, 1) for some in images])
        self.tokenizer.codebook.begin(vectors, self.data.batch_size * self.side**2)

    def transform(self, batch: Batch) -> Batch:
        """Return a crop of the image, `[B, C, S, S]`."""
        return {"image": flip(random_resized_crop(batch["image"], self.data.size, scale=(self.options.crop_scale, 1.0)))}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return vectors `[B, N, D]`, their codes, int64 `[B, N]`, and the image painted of the codes."""
        vector = self.tokenizer(self.encoder, batch["image"])
        code = self.tokenizer.codebook.nearest(vector)
        # The decoder sees the codes; what it wants of them goes to the vectors (section 3.2).
        seen = vector + (self.tokenizer.codebook.codes[code] - vector).detach()
        painted = self.head(seen.transpose(1, 2).unflatten(2, (self.side, self.side)).to(vector.dtype))
        return {"vector": vector, "code": code, "painted": painted}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the squared error, and how far vectors are from their codes (equation 3; codes follow by themselves)."""
        codes = self.tokenizer.codebook.codes[output["code"]]
        return {
            "reconstruction": F.mse_loss(output["painted"], batch["image"]) / _VARIANCE,
            "commitment": self.options.commitment * F.mse_loss(output["vector"], codes),
        }

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Keep the vectors for the codebook."""
        return {"vector": output["vector"].detach()}

    def after_step(self, seen: Batch) -> None:
        """Let the codes follow the vectors."""
        self.tokenizer.codebook.update(seen["vector"].flatten(0, 1), self.options.decay)

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the error as a share of what the mean color would make, and how many codes are in use."""
        used = self.tokenizer.codebook.perplexity()
        return {"error_share": error_share(output["painted"], batch["image"]), "perplexity": used.expand(len(batch["image"]))}

    def reasons(self) -> dict[str, str]:
        """Say how large the grid is."""
        return {"grid": f"{self.side}×{self.side} codes of {self.data.size} px"} if self.options.grid == "auto" else {}

    def exports(self) -> dict[str, nn.Module]:
        """Keep the encoder, and what makes codes of what it says."""
        return {"encoder": self.encoder, "tokenizer": self.tokenizer}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the image, and what is painted of its codes."""
        columns = [batch["image"]]
        return side_by_side(*columns, *([] if output is None else [output["painted"].clamp(0, 1)]))
