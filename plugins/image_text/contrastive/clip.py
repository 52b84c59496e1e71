"""CLIP (Radford et al., 2021)."""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, SslkitError, TaskOptions, build_encoder, load
from sslkit.encoders.recipe import recipe_for
from sslkit.image.transforms import random_resized_crop
from sslkit.nn import symmetric_cross_entropy
from sslkit.pictures import add_frame, side_by_side
from sslkit.text.encoders.base import TextEncoder, TokenEncoder
from sslkit.text.tokenizer import Tokenizer


class CLIP(PretextTask):
    """Match images and captions in a batch by cosine similarity (CLIP; Radford et al., 2021)."""

    class Options(TaskOptions):
        """Options of `clip`."""

        text_tower: Literal["cbow", "transformer"] = Field(
            default="transformer", description="Text encoder; cbow: mean of token vectors; transformer: causal, in order."
        )
        text_width: int = Field(default=128, ge=4, multiple_of=4, description="Width of the text encoder (512 in the paper).")
        text_depth: int = Field(default=2, ge=1, le=48, description="Blocks of the text transformer (12 in the paper).")
        width: int = Field(default=128, ge=1, description="Width of the joint embedding (512 in the paper).")
        temperature: float = Field(default=0.07, ge=0.01, le=1, description="Initial temperature, which is learned.")
        crop_scale: float = Field(
            default=0.6,
            gt=0,
            le=1,
            description="Smallest area of a random crop, as a fraction of the image (0.9 in OpenCLIP).",
        )

    options: Options
    text: TokenEncoder
    hash_factors: Tensor
    modality: ClassVar = "image_text"
    encodes: ClassVar = "image"
    couples_samples: ClassVar = True
    defaults: ClassVar = {"lr": 1e-3, "weight_decay": 0.1, "batch_size": 256}
    paper: ClassVar = Paper(
        source="appendix F of the paper, ViT-B/32",
        settings={
            "size": 224,
            "encoder": "vit_base_patch32_clip_224",
            "batch_size": 32_768,
            "epochs": 32,
            "lr": 5e-4,
            "betas": "0.9,0.98",
            "weight_decay": 0.2,
            "warmup": 5e-3,
            "text_width": 512,
            "text_depth": 12,
            "width": 512,
            "unit": "bpe",
            "vocabulary": 49_152,
            "crop_scale": 0.9,  # of OpenCLIP: the paper names no area
        },
        unsupported=(
            "an epsilon of 1e-6 in Adam",
            "lower-casing before byte pairs",
        ),
    )
    preview_columns: ClassVar = ("image", "prediction")

    def build_head(self) -> nn.Module:
        """Build the linear projector of images."""
        return nn.Linear(self.encoder.width, self.options.width, bias=False)

    def setup(self) -> None:
        """Build the text tower, its projector, and the log of the inverse temperature."""
        options, details = self.options, self.data.details
        self.text = self._build_text()
        self.text_projector = nn.Linear(self.text.width, options.width, bias=False)
        # A hash with odd factors: the weighted sum of a caption's tokens almost never collides with that of another caption.
        factors = torch.randint(2**62, (details["length"],), generator=torch.Generator().manual_seed(0)) | 1
        self.register_buffer("hash_factors", factors, persistent=False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(options.temperature)))

    def _build_text(self) -> TokenEncoder:
        """Return the text tower of `--init-part` with its weights, else one with random weights and the captions' tokenizer."""
        options, details = self.options, self.data.details
        if details["text_checkpoint"] is not None:
            for name in ("text_tower", "text_width", "text_depth"):
                if getattr(options, name) != type(options).model_fields[name].default:
                    raise SslkitError("the text tower is that of --init-part", "leave it out, and --recipe paper", flag=name)
            trained = load(details["text_checkpoint"])
            assert isinstance(trained, TokenEncoder)  # the source has checked it
            return trained
        settings: dict[str, Any] = {"width": options.text_width, "letters": len(details["tokenizer"])}
        if options.text_tower == "transformer":
            settings["depth"] = options.text_depth
        ids = Tokenizer.from_bytes(details["tokenizer"]).size
        recipe = recipe_for(f"caption_{options.text_tower}", details["length"], ids)
        text = build_encoder({**recipe, "options": settings})
        assert isinstance(text, TextEncoder)
        text.keep_tokenizer(details["tokenizer"])
        return text

    def transform(self, batch: Batch) -> Batch:
        """Return a crop of each image, `[B, C, S, S]`, its tokens `[B, length]`, and a hash of its caption, `caption` `[B]`.

        Images are not flipped, because captions distinguish left from right.
        """
        tokens, scale = batch["tokens"], (self.options.crop_scale, 1.0)
        image = random_resized_crop(batch["canvas"], self.data.size, scale, aspect=batch["aspect"])
        return {"image": image, "tokens": tokens, "caption": (tokens * self.hash_factors).sum(dim=1)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return L2-normalized embeddings of images and captions, `[B, D]` each."""
        return {
            "image": F.normalize(self.head(self.encoder(batch["image"])), dim=1),
            "text": F.normalize(self.text_projector(self.text(batch["tokens"])), dim=1),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean of the cross-entropies over captions for each image and over images for each caption (figure 3).

        The scale of the cosines is clamped to 100 (section 2.5).
        """
        # The excess is detached, so that the scale still has a gradient above the clamp and can return.
        excess = (self.log_scale - math.log(100)).clamp(min=0).detach()
        scale = (self.log_scale - excess).exp()
        return symmetric_cross_entropy(scale * output["image"] @ output["text"].T, duplicate_captions(batch["caption"]))

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy of retrieving an image's caption, their cosine, and the temperature."""
        cosine = output["image"] @ output["text"].T
        labels = torch.arange(len(cosine), device=cosine.device)
        correct = cosine.masked_fill(duplicate_captions(batch["caption"]), -2.0).argmax(dim=1) == labels
        temperature = self.log_scale.clamp(max=math.log(100)).neg().exp()
        return {"accuracy": correct.float(), "alignment": cosine.diagonal(), "temperature": temperature.expand(len(cosine))}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the captions of a batch."""
        return {"accuracy": 1 / self.data.batch_size}

    def exports(self) -> dict[str, nn.Module]:
        """Return both encoders and their projectors, which `sslkit zeroshot` needs."""
        towers = {"encoder": self.encoder, "text": self.text}
        return {**towers, "projector": self.head, "text_projector": self.text_projector}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return images; once trained, also the image nearest to the caption of each, framed green if correct, else red."""
        image: Tensor = batch["image"]
        if output is None:
            return image[:, None]
        cosine = (output["text"] @ output["image"].T).masked_fill(duplicate_captions(batch["caption"]), -2.0)
        nearest = cosine.argmax(dim=1)
        correct = nearest == torch.arange(len(nearest), device=nearest.device)
        return side_by_side(image, add_frame(image[nearest], correct))


def duplicate_captions(caption: Tensor) -> Tensor:
    """Return the pairs of different samples with equal captions `[B]`, bool `[B, B]`, which must not be negatives."""
    same = caption[:, None] == caption
    return same & ~torch.eye(len(caption), dtype=torch.bool, device=caption.device)
