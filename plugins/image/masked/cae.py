"""Context autoencoder (CAE; Chen et al., 2022)."""

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper, SslkitError
from sslkit.image.decoders import sine_positions
from sslkit.image.encoders.base import PatchEncoder
from sslkit.image.examples import example_tokenizer
from sslkit.image.tokenizer import TokenizerOptions, code_accuracy, code_loss, read_tokenizer
from sslkit.image.transforms import block_mask, masked_patch_count, preview_masked, split_patches
from sslkit.image.views import CropOptions, CropScale
from sslkit.nn.transformer import Attention, Block, feed_forward


class CAE(ImageTask):
    """Regress masked patches' latents and predict their codes (CAE; Chen et al., 2022).

    The encoder processes the visible patches only. A regressor predicts its representation of the masked patches, and a decoder
    predicts their codes from that, which separates representation learning from solving the pretext task.
    """

    class Options(TokenizerOptions, CropOptions):
        """Options of `cae`."""

        mask_ratio: float = Field(default=0.5, gt=0, lt=1, description="Fraction of masked patches (0.5 in the paper).")
        alignment: float = Field(
            default=2.0,
            ge=0,
            description="Weight of the alignment of regressed and encoded latents (2 in the paper).",
        )
        regressor_depth: int = Field(default=2, ge=1, le=64, description="Blocks of the regressor (4 in the paper).")
        decoder_depth: int = Field(default=2, ge=0, le=64, description="Blocks of the decoder (4 in the paper).")
        crop_scale: CropScale = 0.2

    options: Options
    encoder: PatchEncoder
    head: nn.ModuleDict
    positions: Tensor
    requires: ClassVar = ("tokens",)
    masked: ClassVar = True
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="scripts/cae_base_800e.sh of the authors",
        settings={
            "size": 224,
            "encoder": "vit_base_patch16_224",
            "encoder_option": {"drop_path_rate": "0.1", "init_values": "0.1"},
            "batch_size": 2048,
            "epochs": 800,
            "lr": 1.5e-3,
            "warmup": 20 / 800,
            "clip": 3.0,
            "regressor_depth": 4,
            "decoder_depth": 4,
        },
        unsupported=(
            "the tokenizer of DALL-E (here a vqvae run)",
            "fixed sine-cosine positions in the encoder",
            "layer scale in regressor and decoder",
        ),
    )
    preview_columns: ClassVar = ("image", "masked")

    @classmethod
    def example_options(cls, folder: Path) -> dict[str, Any]:
        """Return a tokenizer with random weights."""
        return {"tokenizer": str(example_tokenizer(folder))}

    def build_head(self) -> nn.Module:
        """Read the tokenizer, and build the regressor and the decoder."""
        data, options, width = self.data, self.options, self.encoder.width
        if width % 4:
            raise SslkitError(
                f"its width {width} is not a multiple of 4", "cae adds sine-cosine positions of two axes", flag="encoder"
            )
        self.grid = self.encoder.grid(torch.empty(1, data.channels, data.size, data.size))
        self.tokenizer = read_tokenizer(options.tokenizer, "cae", data, self.grid)
        heads = next(heads for heads in range(max(1, width // 32), 0, -1) if width % heads == 0)
        self.regressor = nn.ModuleList(CrossBlock(width, heads) for _ in range(options.regressor_depth))
        return nn.ModuleDict(
            {
                "decoder": nn.Sequential(*(Block(width, heads) for _ in range(options.decoder_depth))),
                "codes": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.tokenizer.num_codes)),
            }
        )

    def setup(self) -> None:
        """Compute the number of masked patches, and create the query token and the positions."""
        self.num_masked = masked_patch_count(self.options.mask_ratio, self.grid)
        self.query = nn.Parameter(0.02 * torch.randn(self.encoder.width))
        self.register_buffer("positions", sine_positions(self.grid, self.encoder.width), persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return a crop, the indices of `visible` and `masked` patches, and the codes of the latter, `code` `[B, H]`."""
        image = self.crop(batch)
        visible, masked = split_patches(block_mask(len(image), self.grid, self.num_masked, image.device), self.num_masked)
        return {"image": image, "visible": visible, "masked": masked, "code": self.tokenizer(image).gather(1, masked)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return logits of the codes `[B, H, K]`, and the regressed and the encoded latents of masked patches, `[B, H, D]`."""
        image, prefix = batch["image"], self.encoder.prefix
        tokens = self.encoder.tokens(image, keep=batch["visible"])
        positions = self.positions.to(tokens.dtype)
        memory = torch.cat([tokens[:, :prefix], tokens[:, prefix:] + positions[batch["visible"]]], dim=1)
        query_positions = positions[batch["masked"]]
        latent = self.query.to(tokens.dtype).expand_as(query_positions)
        for block in self.regressor:
            latent = block(latent, query_positions, memory)
        with torch.no_grad():
            target = self.encoder.tokens(image, keep=batch["masked"])[:, prefix:]
        logits = self.head["codes"](self.head["decoder"](latent + query_positions))
        return {"code": logits, "latent": latent, "latent_target": target}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the codes, and the alignment loss of regressor and encoder (equation 3)."""
        return {
            "codes": code_loss(output["code"], batch["code"]),
            "alignment": self.options.alignment * F.mse_loss(output["latent"], output["latent_target"]),
        }

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy on the codes of masked patches."""
        return {"accuracy": code_accuracy(output["code"], batch["code"])}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the image and the masked image."""
        return preview_masked(batch["image"], batch["masked"], self.grid)


class CrossBlock(nn.Module):
    """Cross-attention of queries `[B, H, D]` to visible tokens `[B, M, D]`, then an MLP; no self-attention (section 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention, self.mlp = Attention(width, heads), feed_forward(width)

    def forward(self, query: Tensor, position: Tensor, memory: Tensor) -> Tensor:
        """Return the updated queries, `[B, H, D]`."""
        query = query + self.attention(self.norms[0](query + position), self.norms[1](memory))
        output: Tensor = query + self.mlp(self.norms[2](query))
        return output
