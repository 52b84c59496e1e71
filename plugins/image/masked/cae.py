"""Tell the codes of hidden patches from what a regressor says of them."""

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, SslkitError
from sslkit.image.decoders import sine_positions
from sslkit.image.encoders.base import PatchEncoder
from sslkit.image.examples import example_tokenizer
from sslkit.image.tokenizer import read_tokenizer
from sslkit.image.transforms import block_mask, gray_out_patches, masked_patch_count, split_patches
from sslkit.image.views import CropOptions, CropScale, random_crop_view
from sslkit.nn.transformer import Attention, Block, feed_forward
from sslkit.pictures import side_by_side


class CAE(PretextTask):
    """Tell the codes of hidden patches from what a regressor says of them (context autoencoder; Chen et al., 2022).

    The encoder sees the visible patches only. A regressor says what it would have said of the hidden ones, and a decoder
    reads the codes off that: making pictures is not the encoder's business.
    """

    class Options(CropOptions):
        """Hold the options of cae."""

        tokenizer: Path | None = Field(default=None, description="model.safetensors of a run of vqvae.")
        mask_ratio: float = Field(default=0.5, gt=0, lt=1, description="Share of patches that are hidden, in blocks.")
        alignment: float = Field(
            default=2.0, ge=0, description="Weight of the distance to what the encoder says of hidden patches."
        )
        regressor_depth: int = Field(default=2, ge=1, le=64, description="Cross-attention blocks (4 in the paper).")
        decoder_depth: int = Field(default=2, ge=0, le=64, description="Blocks between regressor and codes (4 in the paper).")
        crop_scale: CropScale = 0.2

    options: Options
    encoder: PatchEncoder
    head: nn.ModuleDict
    positions: Tensor
    reads: ClassVar = ("tokens",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    preview_columns: ClassVar = ("image", "as seen")

    @classmethod
    def example_options(cls, folder: Path) -> dict[str, Any]:
        """Return a tokenizer of random weights."""

        return {"tokenizer": str(example_tokenizer(folder))}

    def build_head(self) -> nn.Module:
        """Read the tokenizer, and build regressor and decoder."""
        data, options, width = self.data, self.options, self.encoder.width
        if width % 4:
            raise SslkitError(
                f"its width of {width} is no multiple of 4", "cae adds sines and cosines of two axes", flag="encoder"
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
        """Settle how much is hidden, and what stands for it."""
        self.hidden = masked_patch_count(self.options.mask_ratio, self.grid)
        self.query = nn.Parameter(0.02 * torch.randn(self.encoder.width))
        self.register_buffer("positions", sine_positions(self.grid, self.encoder.width), persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return a crop, the places of visible and hidden patches, and the codes of the latter, `[B, H]`."""
        image = random_crop_view(batch["image"], self.data.size, self.options.crop_scale)
        visible, hidden = split_patches(block_mask(len(image), self.grid, self.hidden, image.device), self.hidden)
        return {"image": image, "visible": visible, "hidden": hidden, "code": self.tokenizer(image).gather(1, hidden)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return logits of the codes `[B, H, K]`, what the regressor says of hidden patches, and what the encoder does."""
        image, prefix = batch["image"], self.encoder.prefix
        seen = self.encoder.tokens(image, keep=batch["visible"])
        positions = self.positions.to(seen.dtype)
        memory = torch.cat([seen[:, :prefix], seen[:, prefix:] + positions[batch["visible"]]], dim=1)
        place = positions[batch["hidden"]]
        said = self.query.to(seen.dtype).expand_as(place)
        for block in self.regressor:
            said = block(said, place, memory)
        with torch.no_grad():
            wanted = self.encoder.tokens(image, keep=batch["hidden"])[:, prefix:]
        return {"code": self.head["codes"](self.head["decoder"](said + place)), "said": said, "wanted": wanted}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy with the codes, and the distance of regressor and encoder (equation 3)."""
        return {
            "codes": F.cross_entropy(output["code"].flatten(0, 1), batch["code"].flatten()),
            "alignment": self.options.alignment * F.mse_loss(output["said"], output["wanted"]),
        }

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the share of hidden patches whose code was told right."""
        return {"accuracy": (output["code"].argmax(dim=2) == batch["code"]).float().mean(dim=1)}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the image, and what is visible of it."""
        return side_by_side(batch["image"], gray_out_patches(batch["image"], batch["hidden"], self.grid))


class CrossBlock(nn.Module):
    """Let queries `[B, H, D]` look at what was seen, `[B, M, D]`, then at nothing but themselves (section 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention, self.mlp = Attention(width, heads), feed_forward(width)

    def forward(self, said: Tensor, place: Tensor, memory: Tensor) -> Tensor:
        """Return what the queries say now."""
        said = said + self.attention(self.norms[0](said + place), self.norms[1](memory))
        added: Tensor = said + self.mlp(self.norms[2](said))
        return added
