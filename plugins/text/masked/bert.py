"""BERT (Devlin et al., 2019) and RoBERTa (Liu et al., 2019)."""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Encoder, EncoderBuilder, Paper, PretextTask, SslkitError, TaskOptions
from sslkit.text.encoders.base import TextEncoder
from sslkit.text.language_model import PART, LanguageModelHead, TokenStatistics, build_text_encoder, token_nats
from sslkit.text.masking import frame_passages, mask_tokens, starts_word
from sslkit.text.tokenizer import CLS, PAD, SEP, Tokenizer

_OTHER = 1  # answer about a pair that is not as in the text


class BERT(PretextTask):
    """Predict masked tokens from both sides (BERT; Devlin et al., 2019; RoBERTa: Liu et al., 2019).

    A row is a class token, text and a separator; of pairs, two pieces of text that a separator follows each. Masks are drawn
    anew in every step, as in RoBERTa.
    """

    class Options(TaskOptions):
        """Options of `bert`."""

        variant: Literal["bert", "roberta"] = Field(
            default="roberta", description="bert: pairs of segments, and whether the second follows; roberta: passages."
        )
        pairs: Literal["auto", "none", "next", "order"] = Field(
            default="auto",
            description="Task on pairs: next (half of the second segments are another document's), order (half are swapped).",
        )
        mask_ratio: float = Field(default=0.15, gt=0, lt=1, description="Share of the tokens that are predicted.")
        masking: Literal["token", "word", "span"] = Field(
            default="token", description="Mask single tokens, whole words, or spans (geometric, 0.2; Joshi et al., 2020)."
        )

    options: Options
    encoder: TextEncoder
    head: nn.ModuleDict
    starts_word: Tensor
    modality: ClassVar = "text"
    requires: ClassVar = ("tokens", "class_token")
    masked: ClassVar = True
    defaults: ClassVar = {
        "encoder": "bert_micro",
        "unit": "wordpiece",
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.01,
        "betas": "0.9,0.98",
        "warmup": 0.1,
        "clip": 1.0,
        "batch_size": 64,
    }
    paper: ClassVar = Paper(
        source="appendix A.2 of Devlin et al., 2019",
        settings={
            "encoder_option": {"width": "768", "depth": "12", "heads": "12", "dropout": "0.1", "distance": "0"},
            "vocabulary": 30_522,
            "context": 512,
            "batch_size": 256,
            "steps": 1_000_000,
            "lr": 1e-4,
            "betas": "0.9,0.999",
            "warmup": 0.01,
            "variant": "bert",
        },
        unsupported=(
            "norms after the layers",
            "128 tokens in nine steps of ten",
            "masks that repeat after ten passes",
            "a rate that falls linearly (here a cosine)",
        ),
    )

    @classmethod
    def build_encoder(cls, options: Options, build: EncoderBuilder) -> Encoder:
        """Build the encoder with the tokenizer of the data."""
        return build_text_encoder(build, "bert_micro")

    def build_head(self) -> nn.ModuleDict:
        """Build the head that predicts tokens and, for pairs, the pooler and classifier of the class token."""
        options, width = self.options, self.encoder.width
        self.pairs = {"bert": "next", "roberta": "none"}[options.variant] if options.pairs == "auto" else options.pairs
        parts: dict[str, nn.Module] = {"lm": LanguageModelHead(width, self.encoder.in_channels, transform=True, bias=True)}
        if self.pairs != "none":
            parts["pair"] = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))
        return nn.ModuleDict(parts)

    def setup(self) -> None:
        """Count the tokens of the text, and find out which begin a word."""
        if self.pairs == "next" and self.data.details["documents"] < 2:
            raise SslkitError(
                "whether a segment follows cannot be learned from a single document",
                "use --pairs order or none, or --documents blank-line",
                flag="pairs",
            )
        self.statistics = TokenStatistics(self.data)
        tokenizer = Tokenizer.from_bytes(self.data.details["tokenizer"])
        self.register_buffer("starts_word", starts_word(tokenizer), persistent=False)
        self.masks = max(1, round(self.options.mask_ratio * self.data.size))

    def transform(self, batch: Batch) -> Batch:
        """Return rows with masks, `tokens` `[B, T]`, `places` `[B, K]` of the tokens to predict, which these are, `target`
        `[B, K]`, and `weight` `[B, K]`: 0 where a row has less than K of them. Of pairs also `other` `[B]`.
        """
        entries = {}
        if self.pairs == "none":
            tokens = frame_passages(batch["tokens"], self.encoder.first_special)
        else:
            tokens, entries["other"] = self._pair(batch)
        masked = mask_tokens(tokens, self.starts_word, self.masks, self.options.masking, self.encoder.first_special)
        return {**masked, **entries}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return logits at the masked places, `[B, K, ids]`, and of pairs, `[B, 2]`."""
        states = self.encoder.states(batch["tokens"])
        chosen = states.gather(1, batch["places"][..., None].expand(-1, -1, states.shape[2]))
        output = {"tokens": self.head["lm"](chosen, self.encoder.token.weight)}
        if self.pairs != "none":
            output["pair"] = self.head["pair"](states[:, 0])
        return output

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sum of cross-entropies over masked tokens, which `counts` divides, and the mean over pairs."""
        terms = {"masked_nats": (token_nats(output["tokens"], batch["target"]) * batch["weight"]).sum()}
        if self.pairs != "none":
            terms["pair"] = F.cross_entropy(output["pair"], batch["other"])
        return terms

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of masked tokens."""
        return {"masked_nats": batch["weight"].sum()}

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how often masked tokens, and pairs, are recognized."""
        weight = batch["weight"]
        count = weight.sum(dim=1).clamp(min=1)
        correct = (output["tokens"].argmax(dim=2) == batch["target"]).float()
        metrics = {
            "accuracy": (correct * weight).sum(dim=1) / count,
        }
        if self.pairs != "none":
            metrics["pair_accuracy"] = (output["pair"].argmax(dim=1) == batch["other"]).float()
        return metrics

    def chance(self) -> dict[str, float]:
        """Return what the frequencies of tokens reach, and guessing about pairs."""
        levels = {"accuracy": self.statistics.chance()["accuracy"], "masked_nats": self.statistics.entropy()}
        return levels if self.pairs == "none" else {**levels, "pair_accuracy": 1 / 2}

    def exports(self) -> dict[str, nn.Module]:
        """Return the encoder and the head that predicts tokens."""
        return {"encoder": self.encoder, PART: self.head["lm"]}

    def metadata(self) -> dict[str, Any]:
        """Return what the head predicts."""
        head = self.head["lm"]
        assert isinstance(head, LanguageModelHead)
        return head.describe("masked")

    def _special(self, name: int) -> int:
        return self.encoder.first_special + name

    def _pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return rows of two segments, `[B, T]`, and whether the second is another one, or both are swapped, int64 `[B]`.

        A passage is divided where a sentence begins, as near to its middle as one does.
        """
        text, size, device = batch["tokens"], self.data.size, batch["tokens"].device
        place = torch.arange(size, device=device)
        room = size - 3
        distance = (place - room // 2).abs() + size * (~batch["starts_sentence"]).long()
        distance[:, :1], distance[:, room:] = 3 * size, 3 * size
        split = distance.argmin(dim=1)
        other = torch.randint(2, (len(text),), device=device)
        source = torch.arange(len(text), device=device)
        first_start, first_length = torch.zeros_like(split), split
        second_start, second_length = split, room - split
        if self.pairs == "order":
            swapped = other == _OTHER
            first_start, second_start = second_start.where(swapped, first_start), first_start.where(swapped, second_start)
            first_length, second_length = second_length.where(swapped, first_length), first_length.where(swapped, second_length)
        else:
            partner = source.roll(1)
            different = batch["document"][partner, -1] != batch["document"][:, 0]
            other = other * different.long()  # of one document, the second segment could follow after all
            source = partner.where(other == _OTHER, source)
            second_start = split[source]
            second_length = torch.minimum(room - second_start, room - first_length)
        inside = place - 1
        in_first = (inside >= 0) & (inside < first_length[:, None])
        offset = place - 2 - first_length[:, None]
        in_second = (offset >= 0) & (offset < second_length[:, None])
        first = text.gather(1, (inside + first_start[:, None]).clamp(0, size - 1))
        second = text[source].gather(1, (offset + second_start[:, None]).clamp(0, size - 1))
        rows = torch.full_like(text, self._special(PAD))
        rows = first.where(in_first, second.where(in_second, rows))
        separator = (inside == first_length[:, None]) | (offset == second_length[:, None])
        rows = rows.masked_fill(separator, self._special(SEP))
        rows[:, 0] = self._special(CLS)
        return rows, other
