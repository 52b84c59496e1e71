"""Tell the next pixel from all before it."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, EncoderBuilder, PretextTask, Run, SslkitError, TaskOptions
from sslkit.contract.encoder import Encoder
from sslkit.image.encoders.igpt import PixelTransformer
from sslkit.image.transforms import center_view, flip, random_resized_crop, resized
from sslkit.nn import kmeans
from sslkit.pictures import side_by_side

_DRAWN = 16  # pictures at most: each takes a pass of the network for every pixel


_MEASURED, _PIXELS = 1024, 50_000  # images that colors are found on, and at most so many pixels of them


class IGPT(PretextTask):
    """Tell the next pixel from all before it, in raster order and a few hundred colors (Chen et al., 2020)."""

    class Options(TaskOptions):
        """Hold the options of igpt."""

        side: int = Field(default=16, ge=2, description="Pixels of a side that are read (32 to 64 in the paper).")
        colors: int = Field(default=512, ge=2, description="Colors of the palette, which is measured on the data.")
        crop_scale: float = Field(default=0.5, gt=0, le=1, description="Smallest share of the image that a random crop keeps.")

    options: Options
    encoder: PixelTransformer
    reads: ClassVar = ("palette",)
    defaults: ClassVar = {"encoder": "igpt", "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "batch_size": 64}
    preview_columns: ClassVar = ("image", "in the palette", "lower half told")

    @classmethod
    def build_encoder(cls, options: Options, build: EncoderBuilder) -> Encoder:
        """Build the encoder for so many pixels and colors."""
        if build.recipe["name"] != "igpt":
            return build()
        given = {"side", "colors"} & build.recipe["options"].keys()
        if given:
            raise SslkitError(f"igpt has its own flag for {min(given)}", f"use --{min(given)}", flag="encoder_option")
        if options.side > build.data.size:
            raise SslkitError(f"{options.side} of images of {build.data.size} px", "pixels would only repeat", flag="side")
        return build(options={**build.recipe["options"], "side": options.side, "colors": options.colors})

    def build_head(self) -> nn.Module:
        """Build the linear layer to the colors."""
        return nn.Linear(self.encoder.width, len(self.encoder.palette))

    def before_epoch(self, run: Run) -> None:
        """Find the palette by k-means on pixels of the data, once (section 3.1)."""
        if self.clock.epoch > 0:
            return
        view = center_view(run.batch(_MEASURED)["image"], self.data.size)
        pixels = F.interpolate(view, size=(self.encoder.side,) * 2, mode="area").permute(0, 2, 3, 1).flatten(0, 2)
        some = pixels[torch.randperm(len(pixels))[:_PIXELS].to(pixels.device)]
        colors = len(self.encoder.palette)
        if len(some.unique(dim=0)) < colors:
            raise SslkitError(f"{colors} of {len(some.unique(dim=0))} that there are", "give fewer", flag="colors")
        self.encoder.palette.copy_(kmeans(some, colors).centers)

    def transform(self, batch: Batch) -> Batch:
        """Return the colors of a crop's pixels, `code` `[B, side * side]`, and the crop."""
        image = flip(random_resized_crop(batch["image"], self.data.size, scale=(self.options.crop_scale, 1.0)))
        return {"code": self.encoder.codes(image), "image": image}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of the color at each place, `[B, N, colors]`."""
        said: Tensor = self.head(self.encoder.read(batch["code"])[-1])
        return said

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the colors, in nats for a pixel (equation 2)."""
        return F.cross_entropy(output.flatten(0, 1), batch["code"].flatten())

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the share of pixels whose color was told right."""
        return {"accuracy": (output.argmax(dim=2) == batch["code"]).float().mean(dim=1)}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the crop, the crop in the palette, and its upper half with a lower one drawn pixel by pixel."""
        code = batch["code"][:_DRAWN]
        pictures = [self.encoder.pictures(code)]
        if output is not None:
            told = code[:, : code.shape[1] // 2]
            while told.shape[1] < code.shape[1]:
                read = torch.cat([told, told[:, :1]], dim=1)  # what stands at a place is not seen there
                chances = self.head(self.encoder.read(read)[-1][:, -1]).float().softmax(dim=1)
                told = torch.cat([told, torch.multinomial(chances, 1)], dim=1)
            pictures.append(self.encoder.pictures(told))
        return side_by_side(batch["image"][:_DRAWN], *(resized(picture, self.data.size) for picture in pictures))
