"""Match images with their captions."""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, TaskOptions, build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.image.transforms import random_resized_crop
from sslkit.image_text.encoders import CaptionEncoder
from sslkit.nn import symmetric_cross_entropy
from sslkit.pictures import add_frame, side_by_side


class CLIP(PretextTask):
    """Match images with their captions, among those of all others (Radford et al., 2021)."""

    class Options(TaskOptions):
        """Hold the options of clip."""

        text_tower: Literal["cbow", "transformer"] = Field(
            default="transformer", description="cbow: the mean of token vectors; transformer: reads them in order."
        )
        text_width: int = Field(default=128, ge=4, multiple_of=4, description="Width of the text tower (512 in the paper).")
        text_depth: int = Field(default=2, ge=1, le=48, description="Blocks of the transformer (12 in the paper).")
        width: int = Field(default=128, ge=1, description="Width of the vectors that are compared (512 in the paper).")
        temperature: float = Field(default=0.07, ge=0.01, le=1, description="Temperature at the start; it is learned.")
        crop_scale: float = Field(default=0.6, gt=0, le=1, description="Smallest share of the image kept (0.9 in the paper).")

    options: Options
    text: CaptionEncoder
    mixing: Tensor
    modality: ClassVar = "image_text"
    couples_samples: ClassVar = True
    defaults: ClassVar = {"lr": 1e-3, "weight_decay": 0.1, "batch_size": 256}
    preview_columns: ClassVar = ("image", "by caption")

    def build_head(self) -> nn.Module:
        """Build the linear projector of images; that of captions is inside their tower."""
        return nn.Linear(self.encoder.width, self.options.width, bias=False)

    def setup(self) -> None:
        """Build the text tower and the temperature's logarithm."""
        options, details = self.options, self.data.details
        given = {"width": options.text_width, "out": options.width, "letters": len(details["spelling"])}
        if options.text_tower == "transformer":
            given["depth"] = options.text_depth
        recipe = recipe_for(f"caption_{options.text_tower}", details["length"], details["words"])
        text = build_encoder({**recipe, "options": given})
        assert isinstance(text, CaptionEncoder)
        text.spell(details["spelling"])
        self.text = text
        # Odd factors: the sum of a caption's tokens times these is a number that hardly another caption has.
        mixing = torch.randint(2**62, (details["length"],), generator=torch.Generator().manual_seed(0)) | 1
        self.register_buffer("mixing", mixing, persistent=False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(options.temperature)))

    def transform(self, batch: Batch) -> Batch:
        """Return a crop of each image, `[B, C, S, S]`, its tokens `[B, length]`, and a number that names the caption, `[B]`.

        Nothing is flipped: captions tell left from right.
        """
        image, tokens = batch["image"], batch["tokens"]
        image = random_resized_crop(image, self.data.size, scale=(self.options.crop_scale, 1.0))
        return {"image": image, "tokens": tokens, "caption": (tokens * self.mixing).sum(dim=1)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return unit vectors of images and of captions, `[B, D]` each."""
        return {
            "image": F.normalize(self.head(self.encoder(batch["image"])), dim=1),
            "text": F.normalize(self.text(batch["tokens"]), dim=1),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean of both cross-entropies: which caption is an image's, which image is a caption's (figure 3).

        The scale of the cosines is clamped at 100 (section 2.5).
        """
        # With the gradient of the value itself: above the clamp it can still be led back.
        above = (self.log_scale - math.log(100)).clamp(min=0).detach()
        scale = (self.log_scale - above).exp()
        return symmetric_cross_entropy(scale * output["image"] @ output["text"].T, alike(batch["caption"]))

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return whether an image's own caption is the nearest, its cosine, and the temperature."""
        cosine = output["image"] @ output["text"].T
        own = torch.arange(len(cosine), device=cosine.device)
        right = cosine.masked_fill(alike(batch["caption"]), -2.0).argmax(dim=1) == own
        temperature = self.log_scale.clamp(max=math.log(100)).neg().exp()
        return {"accuracy": right.float(), "alignment": cosine.diagonal(), "temperature": temperature.expand(len(cosine))}

    def exports(self) -> dict[str, nn.Module]:
        """Return both towers and the images' projector: what `sslkit zeroshot` needs."""
        return {"encoder": self.encoder, "projector": self.head, "text": self.text}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return images, and of a trained task the image that is nearest to the caption of each, green if it is its own."""
        image: Tensor = batch["image"]
        if output is None:
            return image[:, None]
        cosine = (output["text"] @ output["image"].T).masked_fill(alike(batch["caption"]), -2.0)
        nearest = cosine.argmax(dim=1)
        right = nearest == torch.arange(len(nearest), device=nearest.device)
        return side_by_side(image, add_frame(image[nearest], right))


def alike(caption: Tensor) -> Tensor:
    """Return which captions `[B]` are the same, bool `[B, B]`, themselves excepted: they are no negatives of each other."""
    same = caption[:, None] == caption
    return same & ~torch.eye(len(caption), dtype=torch.bool, device=caption.device)
