"""VQ-VAE (van den Oord et al., 2017)."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper, Run
from sslkit.image.decoders import ConvDecoder
from sslkit.image.tokenizer import build_tokenizer
from sslkit.image.views import CropOptions
from sslkit.nn import Norm, batch_statistics, error_share
from sslkit.pictures import side_by_side

Side = Annotated[int, Field(ge=2)]


_INIT_IMAGES = 1024  # images from which the codebook is initialized


_VARIANCE = 0.0625  # typical, of pixels in [0, 1]: normalizes the error, so that the commitment weighs as in the paper


class VQVAE(ImageTask):
    """Reconstruct an image from a grid of discrete codes (VQ-VAE; van den Oord et al., 2017).

    The checkpoint serves as a tokenizer: `beit` and `cae` take it with `--tokenizer`.
    """

    class Options(CropOptions):
        """Options of `vqvae`."""

        codes: int = Field(default=512, ge=2, description="Codes in the codebook (512 in the paper; 8,192 in BEiT).")
        width: int = Field(default=64, ge=1, description="Width of a code vector.")
        grid: Side | Literal["auto"] = Field(
            default="auto",
            description="Codes per row and column; auto: one per 4 px for images up to 64 px, else one per 16 px.",
        )
        commitment: float = Field(default=0.25, ge=0, description="Weight of the commitment loss (β; 0.25 in the paper).")
        decay: float = Field(default=0.99, ge=0, lt=1, description="Decay of the codes' moving averages (0.99 in the paper).")
        norm: Norm = Field(default="batch", description="Normalization inside the decoder.")

    options: Options
    requires: ClassVar = ("feature_map",)
    visible_targets: ClassVar = ("image",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 128}
    paper: ClassVar = Paper(
        source="sections 4.1 and 4.2 of the paper, ImageNet",
        settings={
            "size": 128,
            "batch_size": 128,
            "steps": 250_000,
            "lr": 2e-4,
            "weight_decay": 0.0,
            "warmup": 0.0,
            "grid": 32,
        },
        unsupported=(
            "the paper's convolutional encoder of two strides and two residual blocks",
            "a constant rate (here a cosine)",
        ),
    )
    preview_columns: ClassVar = ("image", "reconstruction")

    def build_head(self) -> nn.Module:
        """Build the tokenizer and the decoder."""
        options, data = self.options, self.data
        self.side = data.size // (4 if data.size <= 64 else 16) if options.grid == "auto" else options.grid
        self.tokenizer = build_tokenizer(self.encoder, data, self.side, options.width, options.codes)
        widen = nn.Conv2d(options.width, self.encoder.width, 1)
        return nn.Sequential(
            widen, ConvDecoder(self.encoder.width, (self.side, self.side), data.size, data.channels, options.norm)
        )

    def before_epoch(self, run: Run) -> None:
        """Initialize the codebook from vectors of the untrained encoder, once."""
        if self.clock.epoch > 0:
            return
        images = self.center_crop(run.batch(_INIT_IMAGES)).split(128)
        with torch.no_grad(), batch_statistics(self.encoder):
            vectors = torch.cat([self.tokenizer(self.encoder, chunk).flatten(0, 1) for chunk in images])
        self.tokenizer.codebook.initialize(vectors, self.data.batch_size * self.side**2)

    def transform(self, batch: Batch) -> Batch:
        """Return a crop of the image, `[B, C, S, S]`."""
        return {"image": self.crop(batch)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return vectors `[B, N, D]`, their codes, int64 `[B, N]`, and the reconstruction from the codes."""
        vector = self.tokenizer(self.encoder, batch["image"])
        code = self.tokenizer.codebook.nearest(vector)
        # Straight-through estimator: the decoder's input is the codes, its gradient goes to the vectors (section 3.2).
        quantized = vector + (self.tokenizer.codebook.codes[code] - vector).detach()
        reconstruction = self.head(quantized.transpose(1, 2).unflatten(2, (self.side, self.side)).to(vector.dtype))
        return {"vector": vector, "code": code, "reconstruction": reconstruction}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the squared error and the commitment loss (equation 3; codes are moving averages and need no loss)."""
        codes = self.tokenizer.codebook.codes[output["code"]]
        return {
            "reconstruction": F.mse_loss(output["reconstruction"], batch["image"]) / _VARIANCE,
            "commitment": self.options.commitment * F.mse_loss(output["vector"], codes),
        }

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Return the vectors for the update of the codebook."""
        return {"vector": output["vector"].detach()}

    def after_step(self, remembered: Batch) -> None:
        """Update the codebook with the vectors."""
        self.tokenizer.codebook.update(remembered["vector"].flatten(0, 1), self.options.decay)

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the squared error relative to predicting the mean color, and the perplexity of the codebook."""
        perplexity = self.tokenizer.codebook.perplexity()
        return {
            "error_share": error_share(output["reconstruction"], batch["image"]),
            "perplexity": perplexity.expand(len(batch["image"])),
        }

    def reasons(self) -> dict[str, str]:
        """Return the resolved size of the grid."""
        return {"grid": f"{self.side}×{self.side} codes for {self.data.size} px"} if self.options.grid == "auto" else {}

    def exports(self) -> dict[str, nn.Module]:
        """Return the encoder and the tokenizer."""
        return {"encoder": self.encoder, "tokenizer": self.tokenizer}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the image and its reconstruction."""
        columns = [batch["image"]]
        return side_by_side(*columns, *([] if output is None else [output["reconstruction"].clamp(0, 1)]))
