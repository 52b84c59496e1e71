"""Image GPT (Chen et al., 2020)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, EncoderBuilder, ImageTask, Paper, Run, SslkitError
from sslkit.contract.encoder import Encoder
from sslkit.image.encoders.igpt import PixelTransformer
from sslkit.image.tokenizer import code_accuracy, code_loss
from sslkit.image.transforms import resize
from sslkit.image.views import CropOptions
from sslkit.nn import kmeans
from sslkit.pictures import side_by_side

_PREVIEW_IMAGES = 16  # at most: generation takes a forward pass per pixel


_PALETTE_IMAGES, _PALETTE_PIXELS = 1024, 50_000  # images from which the palette is computed, and at most so many pixels


class IGPT(ImageTask):
    """Predict each pixel's color from all previous pixels (Image GPT; Chen et al., 2020)."""

    class Options(CropOptions):
        """Options of `igpt`."""

        side: int = Field(default=16, ge=2, description="Side in pixels of the image that is modeled (32 to 64 in the paper).")
        colors: int = Field(default=512, ge=2, description="Colors of the palette, from k-means (512 in the paper).")

    options: Options
    encoder: PixelTransformer
    requires: ClassVar = ("palette",)
    masked: ClassVar = True
    defaults: ClassVar = {"encoder": "igpt", "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "batch_size": 64}
    paper: ClassVar = Paper(
        source="section 3 of the paper, iGPT-S",
        settings={
            "encoder_option": {"width": "512", "depth": "24", "heads": "8"},
            "batch_size": 128,
            "steps": 1_000_000,
            "betas": "0.9,0.95",
            "warmup": 0.01,
            "side": 32,
        },
        unsupported=("the rate, which the authors search for each model",),
    )
    preview_columns: ClassVar = ("image", "palette", "completion")

    @classmethod
    def build_encoder(cls, options: Options, build: EncoderBuilder) -> Encoder:
        """Build the encoder with the task's side and number of colors."""
        if build.recipe["name"] != "igpt":
            return build()
        conflicting = {"side", "colors"} & build.recipe["options"].keys()
        if conflicting:
            raise SslkitError(
                f"igpt has its own flag for {min(conflicting)}", f"use --{min(conflicting)}", flag="encoder_option"
            )
        if options.side > build.data.size:
            raise SslkitError(
                f"{options.side} exceeds the image size of {build.data.size} px", f"use at most {build.data.size}", flag="side"
            )
        return build(options={**build.recipe["options"], "side": options.side, "colors": options.colors})

    def build_head(self) -> nn.Module:
        """Build the linear layer to the palette colors."""
        return nn.Linear(self.encoder.width, len(self.encoder.palette))

    def before_epoch(self, run: Run) -> None:
        """Compute the palette by k-means on pixels of the data, once (section 3.1)."""
        if self.clock.epoch > 0:
            return
        view = self.center_crop(run.batch(_PALETTE_IMAGES))
        pixels = F.interpolate(view, size=(self.encoder.side,) * 2, mode="area").permute(0, 2, 3, 1).flatten(0, 2)
        sample = pixels[torch.randperm(len(pixels))[:_PALETTE_PIXELS].to(pixels.device)]
        sample = sample.round(decimals=4)  # equal colors differ in the last digits after resampling
        colors = len(self.encoder.palette)
        if len(sample.unique(dim=0)) < colors:
            raise SslkitError(
                f"{colors} exceeds the {len(sample.unique(dim=0))} colors of the data", "use fewer colors", flag="colors"
            )
        self.encoder.palette.copy_(kmeans(sample, colors).centers)

    def transform(self, batch: Batch) -> Batch:
        """Return a crop, and the palette colors of its pixels, `code` `[B, side * side]`."""
        image = self.crop(batch)
        return {"code": self.encoder.codes(image), "image": image}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of the color at each position, `[B, N, colors]`."""
        logits: Tensor = self.head(self.encoder.code_layers(batch["code"])[-1])
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the colors in nats per pixel (equation 2)."""
        return code_loss(output, batch["code"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy over pixels."""
        return {"accuracy": code_accuracy(output, batch["code"])}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the crop, the crop in palette colors, and its upper half with a sampled lower half."""
        code = batch["code"][:_PREVIEW_IMAGES]
        pictures = [self.encoder.decode(code)]
        if output is not None:
            completion = code[:, : code.shape[1] // 2]
            while completion.shape[1] < code.shape[1]:
                padded = torch.cat([completion, completion[:, :1]], dim=1)  # any code: a position does not depend on its own
                probabilities = self.head(self.encoder.code_layers(padded)[-1][:, -1]).float().softmax(dim=1)
                completion = torch.cat([completion, torch.multinomial(probabilities, 1)], dim=1)
            pictures.append(self.encoder.decode(completion))
        return side_by_side(batch["image"][:_PREVIEW_IMAGES], *(resize(picture, self.data.size) for picture in pictures))
