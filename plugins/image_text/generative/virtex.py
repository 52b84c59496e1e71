"""VirTex (Desai & Johnson, 2021)."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, SslkitError, TaskOptions
from sslkit.image.transforms import random_resized_crop
from sslkit.image.views import CropScale, Share
from sslkit.image_text.captioner import PART, Captioner
from sslkit.nn import class_targets, classification_loss
from sslkit.text.tokenizer import Tokenizer


class VirTex(PretextTask):
    """Write the caption of an image, forward and backward (VirTex; Desai & Johnson, 2021).

    Images are not flipped, because captions distinguish left from right.
    """

    class Options(TaskOptions):
        """Options of `virtex`."""

        target: Literal["tokens", "bag"] = Field(
            default="tokens", description="tokens: one after the other; bag: which tokens occur, by a linear layer."
        )
        directions: Literal["both", "forward"] = Field(default="both", description="Directions in which captions are written.")
        width: int = Field(default=128, ge=4, multiple_of=4, description="Width of the decoders (1,024 in the paper).")
        depth: int = Field(default=1, ge=1, le=24, description="Blocks of each decoder.")
        heads: int = Field(default=4, ge=1, description="Attention heads; must divide --width (16 in the paper).")
        dropout: Share = Field(default=0.0, lt=1, description="Dropout in the decoders (0.1 in the paper).")
        text_lr: float | None = Field(
            default=None, ge=0, description="Learning rate of the decoders; default: --lr (0.001 beside 0.2 in the paper)."
        )
        crop_scale: CropScale = 0.6

    options: Options
    head: nn.Module
    modality: ClassVar = "image_text"
    encodes: ClassVar = "image"
    requires: ClassVar = ("feature_map",)
    visible_targets: ClassVar = ("tokens",)  # of each place the tokens before it
    defaults: ClassVar = {"lr": 1e-3, "weight_decay": 0.05, "batch_size": 64, "clip": 10.0}
    paper: ClassVar = Paper(
        source="sections 3 and 4.1 of the paper, _base_bicaptioning_R_50_L1_H1024.yaml of the authors",
        settings={
            "size": 224,
            "encoder": "resnet50",
            "batch_size": 256,
            "steps": 500_000,
            "optimizer": "sgd",
            "lr": 0.2,
            "weight_decay": 1e-4,
            "warmup": 0.02,
            "clip": 10.0,
            "width": 1024,
            "heads": 16,
            "text_lr": 1e-3,
            "dropout": 0.1,
            "crop_scale": 0.2,
            "vocabulary": 10_000,
            "context": 30,
        },
        unsupported=("Lookahead", "color jitter", "flips that swap left and right in captions", "norms after the layers"),
    )

    def build_head(self) -> nn.Module:
        """Build the decoders, or the linear layer."""
        options, details = self.options, self.data.details
        if details["text_checkpoint"] is not None:
            raise SslkitError("virtex has no text tower that could start from it", "leave it out", flag="init_part")
        tokenizer = Tokenizer.from_bytes(details["tokenizer"])
        ids, self.words = tokenizer.size, tokenizer.first_special
        if options.target == "bag":
            return nn.Linear(self.encoder.width, ids)
        if options.width % options.heads:
            raise SslkitError(f"{options.heads} does not divide the width of {options.width}", flag="heads")
        self.settings = {
            "features": self.encoder.width,
            "ids": ids,
            "length": details["length"],
            "width": options.width,
            "depth": options.depth,
            "heads": options.heads,
            "letters": len(details["tokenizer"]),
        }
        captioner = Captioner(**self.settings, backward=options.directions == "both", dropout=options.dropout)
        captioner.keep_tokenizer(details["tokenizer"])
        return captioner

    def transform(self, batch: Batch) -> Batch:
        """Return a crop of each image, `[B, C, S, S]`, and its caption, `tokens` `[B, T]`; of a bag, `target` `[B, ids]`."""
        tokens, scale = batch["tokens"], (self.options.crop_scale, 1.0)
        image = random_resized_crop(batch["canvas"], self.data.size, scale, aspect=batch["aspect"])
        if self.options.target == "tokens":
            return {"image": image, "tokens": tokens}
        assert isinstance(self.head, nn.Linear)
        ids = self.head.out_features
        occurs = torch.zeros(len(tokens), ids, device=tokens.device).scatter_(1, tokens, 1.0)
        occurs[:, self.words :] = 0
        return {"image": image, "target": class_targets(occurs, ids)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the image's places as the decoders see them, `memory` `[B, M, width]`, and logits of each direction
        `[B, T, ids]`; of a bag, logits `[B, ids]`.
        """
        if not isinstance(self.head, Captioner):
            return {"bag": self.head(self.encoder(batch["image"]))}
        memory = self.head.project(self.encoder.feature_map(batch["image"]))
        logits = {}
        for direction in self.head.decoders:
            logits[direction] = self.head(memory, self.head.shift(self._captions(batch, direction)), direction)
        return {"memory": memory, **logits}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor] | Tensor:
        """Return the sum of the cross-entropies of tokens in each direction; of a bag, that with 1/k for each of k tokens."""
        if not isinstance(self.head, Captioner):
            return classification_loss(output["bag"], batch["target"]).mean()
        return {direction: self._nats(output[direction], batch, direction).sum() for direction in self.head.decoders}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of tokens."""
        if not isinstance(self.head, Captioner):
            return {}
        tokens = (~self.head.is_padding(batch["tokens"])).sum()
        return dict.fromkeys(self.head.decoders, tokens)

    @torch.no_grad()
    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the share of tokens that are predicted, and `image_gain`: by how many nats a token is likelier with its image
        than with another one of the batch.
        """
        if not isinstance(self.head, Captioner):
            best = output["bag"].argmax(dim=1, keepdim=True)
            return {"accuracy": (batch["target"].gather(1, best)[:, 0] > 0).float()}
        tokens = batch["tokens"]
        real = ~self.head.is_padding(tokens)
        sizes = real.sum(dim=1).clamp(min=1)
        correct = ((output["forwards"].argmax(dim=2) == tokens) & real).sum(dim=1) / sizes
        dropout = self.head.training
        self.head.eval()
        true, other = (self.head.nats(memory, tokens) for memory in (output["memory"], output["memory"].roll(1, 0)))
        self.head.train(dropout)
        return {"accuracy": correct, "image_gain": (other - true).sum(dim=1) / sizes}

    def chance(self) -> dict[str, float]:
        """Return what a caption gains from a random image."""
        return {"image_gain": 0.0} if isinstance(self.head, Captioner) else {}

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the decoders with their own rate, if it is set."""
        if self.options.text_lr is None:
            return []
        return [{"params": list(self.head.parameters()), "lr": self.options.text_lr}]

    def exports(self) -> dict[str, nn.Module]:
        """Return the encoder, and the decoders for `sslkit caption`."""
        return {"encoder": self.encoder, **({PART: self.head} if isinstance(self.head, Captioner) else {})}

    def metadata(self) -> dict[str, Any]:
        """Return what the decoders are built with."""
        return {PART: self.settings} if isinstance(self.head, Captioner) else {}

    preview_columns: ClassVar = ("image",)

    def _captions(self, batch: Batch, direction: str) -> Tensor:
        """Return the captions in the order in which they are written."""
        assert isinstance(self.head, Captioner)
        tokens: Tensor = batch["tokens"]
        return tokens if direction == "forwards" else self.head.reverse(tokens)

    def _nats(self, logits: Tensor, batch: Batch, direction: str) -> Tensor:
        """Return -log p of each token `[B, T]`; 0 for padding."""
        assert isinstance(self.head, Captioner)
        return self.head.nats_of(logits, self._captions(batch, direction))
