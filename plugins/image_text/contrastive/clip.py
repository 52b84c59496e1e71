"""CLIP (Radford et al., 2021), and its relatives ConVIRT, ALIGN, LiT and SigLIP."""

import math
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, SslkitError, TaskOptions
from sslkit.image.transforms import random_resized_crop
from sslkit.image.views import Share
from sslkit.image_text.task import CaptionHash, bounded_scale, build_text_tower, other_matches
from sslkit.nn import pairwise_sigmoid, symmetric_cross_entropy
from sslkit.pictures import add_frame, side_by_side
from sslkit.text.encoders.base import TokenEncoder


class CLIP(PretextTask):
    """Match images and captions in a batch by cosine similarity (CLIP; Radford et al., 2021).

    `--loss sigmoid` is SigLIP (Zhai et al., 2023); `--fixed-temperature --temperature 0.1 --image-weight 0.75` ConVIRT (Zhang
    et al., 2020); `--label-smoothing 0.1` ALIGN's (Jia et al., 2021); `--init FILE --freeze-image` LiT (Zhai et al., 2022).
    """

    class Options(TaskOptions):
        """Options of `clip`."""

        text_tower: Literal["cbow", "transformer"] = Field(
            default="transformer", description="Text encoder; cbow: mean of token vectors; transformer: causal, in order."
        )
        text_width: int = Field(default=128, ge=4, multiple_of=4, description="Width of the text encoder (512 in the paper).")
        text_depth: int = Field(default=2, ge=1, le=48, description="Blocks of the text transformer (12 in the paper).")
        width: int = Field(default=128, ge=1, description="Width of the joint embedding (512 in the paper).")
        loss: Literal["softmax", "sigmoid"] = Field(
            default="softmax",
            description="softmax: find the partner in the batch; sigmoid: classify every pair by itself (SigLIP).",
        )
        temperature: Annotated[float, Field(ge=0.01, le=1)] | Literal["auto"] = Field(
            default="auto", description="Initial temperature, which is learned; auto: 0.07, or 0.1 with a sigmoid."
        )
        fixed_temperature: bool = Field(default=False, description="Keep the temperature as it is (ConVIRT).")
        bias: float = Field(
            default=-10.0, ge=-100, le=100, description="Initial bias of the sigmoid: at first, nearly no pair matches."
        )
        image_weight: Share = Field(
            default=0.5, description="Weight of the image-to-text loss, text-to-image gets the rest (softmax; 0.75 in ConVIRT)."
        )
        label_smoothing: float = Field(
            default=0.0, ge=0, lt=1, description="Share of the target spread over all pairs (softmax; 0.1 in ALIGN)."
        )
        freeze_image: bool = Field(
            default=False, description="Train the text tower and the projectors only; give the image tower by --init (LiT)."
        )
        crop_scale: float = Field(
            default=0.6,
            gt=0,
            le=1,
            description="Smallest area of a random crop, as a fraction of the image (0.9 in OpenCLIP).",
        )

    options: Options
    text: TokenEncoder
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
        """Build the text tower, its projector, the log of the inverse temperature, and the bias of the sigmoid."""
        options = self.options
        for name in ("image_weight", "label_smoothing") if options.loss == "sigmoid" else ("bias",):
            if getattr(options, name) != type(options).model_fields[name].default:
                raise SslkitError(f"it has no meaning for a {options.loss} loss", "leave it out", flag=name)
        settings = {
            "width": options.text_width,
            **({"depth": options.text_depth} if options.text_tower == "transformer" else {}),
        }
        self.text = build_text_tower(self.data, f"caption_{options.text_tower}", settings, options)
        self.text_projector = nn.Linear(self.text.width, options.width, bias=False)
        self.caption_hash = CaptionHash(self.data.details["length"])
        temperature = {"softmax": 0.07, "sigmoid": 0.1}[options.loss] if options.temperature == "auto" else options.temperature
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=not options.fixed_temperature)
        self.bias = nn.Parameter(torch.tensor(options.bias)) if options.loss == "sigmoid" else None
        if options.freeze_image:
            self.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Keep a frozen image tower in eval mode: its statistics stay, too."""
        super().train(mode)
        if self.options.freeze_image:
            self.encoder.eval()
        return self

    def transform(self, batch: Batch) -> Batch:
        """Return a crop of each image, `[B, C, S, S]`, and its tokens `[B, length]`.

        Pairs with the same hash of their caption, `caption` `[B]`, or the same `image_id` `[B]` are no negatives. Images are
        not flipped, because captions distinguish left from right.
        """
        tokens, scale = batch["tokens"], (self.options.crop_scale, 1.0)
        image = random_resized_crop(batch["canvas"], self.data.size, scale, aspect=batch["aspect"])
        return {"image": image, "tokens": tokens, "caption": self.caption_hash(tokens), "image_id": batch["image_id"]}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return L2-normalized embeddings of images and captions, `[B, D]` each."""
        return {
            "image": F.normalize(self.head(self.encoder(batch["image"])), dim=1),
            "text": F.normalize(self.text_projector(self.text(batch["tokens"])), dim=1),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean of the cross-entropies over captions for each image and over images for each caption (figure 3).

        Of a sigmoid, the cross-entropies of all pairs, per image. The scale of the cosines is clamped to 100 (section 2.5).
        """
        options, same = self.options, other_matches(batch)
        scores = bounded_scale(self.log_scale) * output["image"] @ output["text"].T
        if self.bias is not None:
            return pairwise_sigmoid(scores + self.bias, same)
        return symmetric_cross_entropy(scores, same, options.label_smoothing, options.image_weight)

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy of retrieving an image's caption, their cosine, and the temperature."""
        cosine = output["image"] @ output["text"].T
        labels = torch.arange(len(cosine), device=cosine.device)
        correct = cosine.masked_fill(other_matches(batch), -2.0).argmax(dim=1) == labels
        temperature = 1 / bounded_scale(self.log_scale.detach())
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
        cosine = (output["text"] @ output["image"].T).masked_fill(other_matches(batch), -2.0)
        nearest = cosine.argmax(dim=1)
        correct = nearest == torch.arange(len(nearest), device=nearest.device)
        return side_by_side(image, add_frame(image[nearest], correct))
