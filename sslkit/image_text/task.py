"""What tasks on images with captions share: the text tower, which pairs match, partners that do not, masked words."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.contract.options import TaskOptions
from sslkit.contract.task import Batch, DataInfo
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.checkpoint import load
from sslkit.text.encoders.base import TextEncoder, TokenEncoder
from sslkit.text.encoders.transformer import BidirectionalTransformer
from sslkit.text.language_model import token_nats
from sslkit.text.masking import Masking, mask_tokens
from sslkit.text.tokenizer import Tokenizer

_LARGEST_SCALE = math.log(100)  # of cosines (Radford et al., 2021, section 2.5)


def build_text_tower(data: DataInfo, encoder: str, settings: dict[str, Any], options: TaskOptions) -> TokenEncoder:
    """Return the text tower of `--init-part` with its weights, else one with random weights and the captions' tokenizer.

    Options whose name begins with `text_` describe the latter; raises SslkitError if one of them is set beside the former.
    """
    details = data.details
    if details["text_checkpoint"] is not None:
        for name, field in type(options).model_fields.items():
            if name.startswith("text_") and getattr(options, name) != field.default:
                raise SslkitError("the text tower is that of --init-part", "leave it out, and --recipe paper", flag=name)
        trained = load(details["text_checkpoint"])
        assert isinstance(trained, TokenEncoder)  # the source has checked it
        return trained
    ids = Tokenizer.from_bytes(details["tokenizer"]).size
    recipe = recipe_for(encoder, details["length"], ids)
    tower = build_encoder({**recipe, "options": {**settings, "letters": len(details["tokenizer"])}})
    assert isinstance(tower, TextEncoder)
    tower.keep_tokenizer(details["tokenizer"])
    return tower


def build_reading_tower(data: DataInfo, settings: dict[str, Any], options: TaskOptions, task: str) -> BidirectionalTransformer:
    """Return a text tower whose tokens see both sides; raises SslkitError for another one of `--init-part`."""
    tower = build_text_tower(data, "caption_bidirectional", settings, options)
    if not isinstance(tower, BidirectionalTransformer):
        file = data.details["text_checkpoint"]
        raise SslkitError(f"words in {file} do not see both sides, as {task} needs it", "use one of bert", flag="init_part")
    return tower


class CaptionHash(nn.Module):
    """Map captions `[B, length]` to numbers, int64 `[B]`, which almost never agree for two that differ."""

    factors: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()
        # With odd factors, the weighted sum of a caption's tokens almost never collides with that of another caption.
        factors = torch.randint(2**62, (length,), generator=torch.Generator().manual_seed(0)) | 1
        self.register_buffer("factors", factors, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the numbers."""
        return (tokens * self.factors).sum(dim=1)


def other_matches(batch: Batch) -> Tensor:
    """Return the pairs of different samples with equal captions or the same image, bool `[B, B]`: they are no negatives."""
    caption, image = batch["caption"], batch["image_id"]
    same: Tensor = (caption[:, None] == caption) | (image[:, None] == image)
    return same & ~torch.eye(len(caption), dtype=torch.bool, device=caption.device)


def draw_partners(batch: Batch, scores: Tensor | None = None) -> Tensor:
    """Return for each sample another one that does not match it, int64 `[B]`; the sample itself where all others match.

    They are sampled by the softmax of `scores` `[B, B]` over those that do not match, by default uniformly.
    """
    diagonal = torch.eye(len(batch["caption"]), dtype=torch.bool, device=batch["caption"].device)
    matches = other_matches(batch) | diagonal
    scores = torch.zeros_like(matches, dtype=torch.float32) if scores is None else scores.float()
    scores = scores.masked_fill(matches, float("-inf"))
    alone = matches.all(dim=1, keepdim=True)
    return torch.multinomial(scores.masked_fill(alone & diagonal, 0).softmax(dim=1), 1)[:, 0]


def mask_captions(tokens: Tensor, word_starts: Tensor, share: float, masking: Masking, first_special: int) -> Batch:
    """Hide a share of each caption's words, or tokens, one at least; for what is returned see `mask_tokens`."""
    count = min(tokens.shape[1], 2 * round(share * tokens.shape[1]) + 3)  # so that a word of several tokens fits
    return mask_tokens(tokens, word_starts, count, masking, first_special, share=share)


def masked_nats(logits: Tensor, batch: Batch) -> Tensor:
    """Return -log p of each hidden token `[B, K]`, in nats, from logits `[B, K, ids]`; 0 where there is none."""
    weight: Tensor = batch["weight"]
    return token_nats(logits, batch["target"]) * weight


def masked_accuracy(logits: Tensor, batch: Batch) -> Tensor:
    """Return the share of each caption's hidden tokens that are the likeliest, `[B]`."""
    weight: Tensor = batch["weight"]
    correct: Tensor = (logits.argmax(dim=2) == batch["target"]) * weight
    return correct.sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def bounded_scale(log_scale: Tensor) -> Tensor:
    """Return the scale of cosines, clamped to 100 as CLIP's is; above it still has a gradient, so that it can return."""
    return (log_scale - (log_scale - _LARGEST_SCALE).clamp(min=0).detach()).exp()
