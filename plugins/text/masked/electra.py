"""ELECTRA (Clark et al., 2020)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Encoder, EncoderBuilder, Paper, PretextTask, SslkitError, TaskOptions
from sslkit.nn.transformer import Block, DistanceBias
from sslkit.text.encoders.transformer import BidirectionalTransformer
from sslkit.text.language_model import LanguageModelHead, TokenStatistics, build_text_encoder, token_nats
from sslkit.text.masking import frame_passages, mask_tokens, starts_word
from sslkit.text.tokenizer import Tokenizer

_MASKED = 0.85  # share of the chosen tokens; the rest stays (the authors' code)

_CHANCE = 0.5  # AUC of guesses, and of rows in which nothing is replaced


class ELECTRA(PretextTask):
    """Detect tokens that a small masked language model has replaced (ELECTRA; Clark et al., 2020).

    Both networks are trained together and share their input vectors; what is kept is the one that detects.
    """

    class Options(TaskOptions):
        """Options of `electra`."""

        mask_ratio: float = Field(default=0.15, gt=0, lt=1, description="Share of the tokens that the generator replaces.")
        generator_heads: int = Field(default=1, ge=1, description="Attention heads of the generator, as wide as the encoder's.")
        detection: float = Field(default=50.0, gt=0, description="Weight of the detection loss.")

    options: Options
    encoder: BidirectionalTransformer
    head: nn.Module
    starts_word: Tensor
    modality: ClassVar = "text"
    requires: ClassVar = ("tokens", "class_token")
    visible_targets: ClassVar = ("target",)  # sampled tokens are compared with it
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
        source="appendix A of the paper, the small model",
        settings={
            "encoder_option": {"width": "256", "depth": "12", "heads": "4", "dropout": "0.1", "distance": "0"},
            "vocabulary": 30_522,
            "context": 128,
            "batch_size": 128,
            "steps": 1_000_000,
            "lr": 5e-4,
            "betas": "0.9,0.999",
            "warmup": 0.01,
        },
        unsupported=("norms after the layers", "input vectors of width 128", "a rate that falls linearly (here a cosine)"),
    )

    @classmethod
    def build_encoder(cls, options: Options, build: EncoderBuilder) -> Encoder:
        """Build the encoder with the tokenizer of the data."""
        return build_text_encoder(build, "bert_micro")

    def build_head(self) -> nn.Module:
        """Build the classifier of replaced tokens."""
        width = self.encoder.width
        return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def setup(self) -> None:
        """Build the generator, and count the tokens of the text."""
        if not isinstance(self.encoder, BidirectionalTransformer):
            raise SslkitError("electra needs a transformer that sees both sides", "try bert_micro", flag="encoder")
        heads = self.encoder.heads
        if self.options.generator_heads > heads:
            problem = f"{self.options.generator_heads} exceed the {heads} heads of the encoder"
            raise SslkitError(problem, "use fewer", flag="generator_heads")
        self.generator = Generator(self.encoder, self.options.generator_heads)
        self.statistics = TokenStatistics(self.data)
        tokenizer = Tokenizer.from_bytes(self.data.details["tokenizer"])
        self.register_buffer("starts_word", starts_word(tokenizer), persistent=False)
        self.masks = max(1, round(self.options.mask_ratio * self.data.size))

    def transform(self, batch: Batch) -> Batch:
        """Return rows with masks, `tokens` `[B, T]`, `places`, `target` and `weight` `[B, K]`, and `uniform` `[B, K]`.

        By the last the generator's tokens are sampled.
        """
        tokens = frame_passages(batch["tokens"], self.encoder.first_special)
        first_special = self.encoder.first_special
        masked = mask_tokens(tokens, self.starts_word, self.masks, "token", first_special, masked=_MASKED, random=0.0)
        return {**masked, "uniform": torch.rand(masked["target"].shape, device=tokens.device)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the generator's logits `[B, K, ids]`, and of all tokens `replaced`, a logit, and `is_replaced`, `[B, T]`."""
        tokens, places, target = batch["tokens"], batch["places"], batch["target"]
        logits = self.generator(tokens, places, self.encoder.token.weight)
        with torch.no_grad():  # sampling is not differentiable
            total = logits[..., : self.encoder.first_special].float().softmax(dim=2).cumsum(dim=2)
            sampled = torch.searchsorted(total, (batch["uniform"] * total[..., -1])[..., None])[..., 0]
            sampled = sampled.clamp(max=self.encoder.first_special - 1).where(batch["weight"] > 0, target)
            # A token that happens to be the original one is not replaced.
            is_replaced = torch.zeros_like(tokens).scatter(1, places, (sampled != target).long())
            tokens = tokens.scatter(1, places, sampled)
        replaced = self.head(self.encoder.states(tokens))[..., 0]
        return {"tokens": logits, "replaced": replaced, "is_replaced": is_replaced.to(replaced.dtype)}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sum of the generator's cross-entropies, which `counts` divides, and the weighted loss of detection."""
        masked = (token_nats(output["tokens"], batch["target"]) * batch["weight"]).sum()
        detected = F.binary_cross_entropy_with_logits(output["replaced"], output["is_replaced"])
        return {"masked_nats": masked, "replaced": self.options.detection * detected}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of masked tokens."""
        return {"masked_nats": batch["weight"].sum()}

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how often a replaced token scores above one that is not (AUC), and the generator's accuracy."""
        weight, replaced = batch["weight"], output["is_replaced"] > 0
        count = weight.sum(dim=1).clamp(min=1)
        pairs = replaced[:, :, None] & ~replaced[:, None]
        above = (output["replaced"][:, :, None] > output["replaced"][:, None]) & pairs
        auc = above.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)
        return {
            "detection_auc": auc.where(replaced.any(dim=1), _CHANCE),
            "generator_accuracy": ((output["tokens"].argmax(dim=2) == batch["target"]) * weight).sum(dim=1) / count,
        }

    def chance(self) -> dict[str, float]:
        """Return what the frequencies of tokens reach."""
        return {
            "detection_auc": _CHANCE,
            "generator_accuracy": self.statistics.chance()["accuracy"],
            "masked_nats": self.statistics.entropy(),
        }


class Generator(nn.Module):
    """A narrower transformer of the encoder's depth over the encoder's input vectors, and its scores of all tokens."""

    def __init__(self, encoder: BidirectionalTransformer, heads: int) -> None:
        super().__init__()
        width = heads * encoder.width // encoder.heads
        self.project = nn.Linear(encoder.width, width)
        self.position = nn.Parameter(torch.zeros_like(encoder.position[:, :width]))
        self.distance = None if encoder.distance is None else DistanceBias(heads, len(encoder.position))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in encoder.blocks)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, encoder.width)
        self.lm = LanguageModelHead(encoder.width, encoder.in_channels, transform=True, bias=True)

    def forward(self, tokens: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
        """Return logits `[B, K, ids]` of tokens `[B, T]` at `places` `[B, K]`."""
        x = self.project(F.embedding(tokens, vectors)) + self.position[: tokens.shape[1]]
        bias = None if self.distance is None else self.distance(tokens.shape[1])
        for block in self.blocks:
            x = block(x, bias=bias)
        chosen = self.norm(x).gather(1, places[..., None].expand(-1, -1, x.shape[2]))
        logits: Tensor = self.lm(self.widen(chosen), vectors)
        return logits
