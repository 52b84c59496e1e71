"""Language models: the head that predicts tokens, and the task base of those that predict the next one."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.options import TaskOptions
from sslkit.contract.task import Batch, DataInfo, EncoderBuilder, PretextTask
from sslkit.encoders.build import build_encoder
from sslkit.engine.checkpoint import Checkpoint, load_strictly, read_model
from sslkit.engine.seeds import seed_stage
from sslkit.text.encoders.base import TextEncoder
from sslkit.text.tokenizer import Tokenizer

PART = "lm"  # of a checkpoint: the head
_METADATA = "language_model"
_PARTS = {"transform": True, "bias": True, "tied": False}  # of a description, and what they are if the head has them


class LanguageModelHead(nn.Module):
    """Score every token by its input vector (Press & Wolf, 2017; Inan et al., 2017): logits are products with them.

    `transform` adds a layer with GELU and norm before, `bias` one value per token after, as in BERT. Without both it has no
    weights. Without `tied`, tokens have vectors of the head's own.
    """

    def __init__(self, width: int, ids: int, transform: bool = False, bias: bool = False, tied: bool = True) -> None:
        super().__init__()
        self.output = None if tied else nn.Parameter(torch.empty(ids, width))
        if self.output is not None:
            nn.init.kaiming_uniform_(self.output, a=math.sqrt(5))  # as a linear layer's
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)) if transform else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(ids)) if bias else None

    def forward(self, states: Tensor, vectors: Tensor) -> Tensor:
        """Return logits `[..., ids]` of states `[..., width]`; `vectors` `[ids, width]` are the encoder's."""
        return F.linear(self.transform(states), vectors if self.output is None else self.output, self.bias)

    def describe(self, predicts: str) -> dict[str, Any]:
        """Return what a checkpoint records of it; `predicts` is `next`, `both` (next and previous) or `masked`."""
        parts = {"transform": not isinstance(self.transform, nn.Identity), "bias": self.bias is not None}
        return {_METADATA: {"predicts": predicts, **parts, "tied": self.output is None}}


def read_language_model(path: str, part: str, predicts: Literal["next", "masked"]) -> "LanguageModel":
    """Return encoder and head of a checkpoint in eval mode; raises SslkitError if it has no head that predicts so."""
    checkpoint = read_model(path, part=part)
    checkpoint.check_modality("text")
    head = checkpoint.recorded_by_task(_METADATA)
    if head is None or head.get("predicts") not in (predicts, "both" if predicts == "next" else predicts):
        has = f"predicts {head.get('predicts')} tokens" if head is not None else "has no language-model head"
        needed = {"next": "gpt, rnn_lm, neural_lm or elmo", "masked": "bert"}[predicts]
        raise SslkitError(f"{checkpoint.path} {has}", f"expected a checkpoint of {needed}", flag="ckpt")
    encoder = checkpoint.build_encoder()
    if not isinstance(encoder, TextEncoder):
        raise SslkitError(f"{checkpoint.path} has a language-model head and no encoder of text", "it was altered", flag="ckpt")
    module = build_head(head, encoder)
    load_strictly(module, checkpoint.part(PART), str(checkpoint.path))
    return LanguageModel(checkpoint, encoder, module.eval(), encoder.tokenizer(), head)


def check_window(model: "LanguageModel") -> None:
    """Raise SslkitError for a checkpoint whose samples its encoder does not take, or have no room for a token."""
    size = model.checkpoint.size
    if size < 3:
        raise SslkitError(f"samples of {model.checkpoint.path} have {size} tokens", "the file was altered", flag="ckpt")
    model.encoder.check_length(size)


def predicted_tokens(checkpoint: Checkpoint) -> str | None:
    """Return what the language-model head of a checkpoint predicts: `next`, `both` or `masked`; None if it has no head."""
    head = checkpoint.recorded_by_task(_METADATA)
    return None if head is None else head.get("predicts")


def build_head(description: dict[str, Any], encoder: TextEncoder) -> LanguageModelHead:
    """Return a head with random weights as a checkpoint describes it."""
    transform, bias, untied = (description.get(name) is value for name, value in _PARTS.items())
    width = encoder.width if untied or transform else encoder.token.embedding_dim
    return LanguageModelHead(width, encoder.in_channels, transform, bias, not untied)


@dataclass(frozen=True)
class LanguageModel:
    """A trained language model: what was read, and what it is made of."""

    checkpoint: Checkpoint
    encoder: TextEncoder
    head: LanguageModelHead
    tokenizer: Tokenizer
    description: dict[str, Any]  # of the head

    def to(self, device: torch.device) -> Self:
        """Move encoder and head to a device."""
        self.encoder.to(device)
        self.head.to(device)
        return self

    def logits(self, states: Tensor) -> Tensor:
        """Return the scores of all tokens, float32 `[..., ids]`, from states of the encoder."""
        logits: Tensor = self.head(states, self.encoder.token.weight)
        return logits.float()


def randomize(model: LanguageModel, seed: int) -> LanguageModel:
    """Return the same network with random weights."""
    seed_stage(seed, "random", 0)
    encoder = build_encoder(model.checkpoint.recipe).to(model.encoder.device).eval()
    assert isinstance(encoder, TextEncoder)
    return replace(model, encoder=encoder, head=build_head(model.description, encoder).to(encoder.device).eval())


def build_text_encoder(build: EncoderBuilder, requires: str) -> Encoder:
    """Build an encoder that keeps the tokenizer of the data; raises SslkitError for one of another kind."""
    content = build.data.details["tokenizer"]
    with torch.device("meta"):
        suits = isinstance(build(), TextEncoder)
    if not suits:
        raise SslkitError(f"an encoder of tokens is needed (got {build.recipe['name']})", f"try {requires}", flag="encoder")
    encoder = build(options={**build.recipe["options"], "letters": len(content)})
    assert isinstance(encoder, TextEncoder)
    encoder.keep_tokenizer(content)
    return encoder


def token_nats(logits: Tensor, target: Tensor) -> Tensor:
    """Return -log p of each token `[...]` in nats, from logits `[..., ids]`."""
    # As a matrix: with the classes in the middle torch takes six times as long.
    return F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view(target.shape)


class TokenStatistics(nn.Module):
    """What counting alone tells of a text: the frequencies of its tokens, and how many bytes each stands for."""

    token_bytes: Tensor

    def __init__(self, data: DataInfo) -> None:
        super().__init__()
        counts = data.details["counts"].double()
        self.frequency = (counts / counts.sum()).clamp(min=1e-12)
        tokenizer = Tokenizer.from_bytes(data.details["tokenizer"])
        self.lossless = tokenizer.lossless
        sizes = torch.from_numpy(tokenizer.byte_lengths()) if tokenizer.lossless else torch.zeros(0)
        self.register_buffer("token_bytes", sizes, persistent=False)

    def entropy(self) -> float:
        """Return the nats per token of always predicting the frequencies of tokens."""
        return float(-(self.frequency * self.frequency.log()).sum())

    def measure(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return accuracy `[B]` of logits `[B, T, ids]` of tokens `[B, T]` and, of units that keep all text, bits per byte."""
        metrics = {"accuracy": (logits.argmax(dim=2) == target).float().mean(dim=1)}
        if self.lossless:
            nats = token_nats(logits, target).sum(dim=1)
            metrics["bits_per_byte"] = nats / math.log(2) / self.token_bytes[target].sum(dim=1).clamp(min=1)
        return metrics

    def chance(self) -> dict[str, float]:
        """Return what is reached by always predicting the frequencies of tokens, whatever stands before."""
        levels = {"accuracy": float(self.frequency.max())}
        if self.lossless:
            size = float((self.frequency * self.token_bytes.cpu()).sum())
            levels["bits_per_byte"] = self.entropy() / math.log(2) / size
        return levels


class NextTokenTask(PretextTask):
    """Base of tasks that predict each token of a passage from those before it."""

    class Options(TaskOptions):
        """No options: the encoder has them."""

    encoder: TextEncoder
    head: LanguageModelHead
    modality: ClassVar = "text"
    requires: ClassVar = ("causal",)
    visible_targets: ClassVar = ("target",)  # of each position that of the others before it
    masked: ClassVar = True

    @classmethod
    def build_encoder(cls, options: Any, build: EncoderBuilder) -> Encoder:
        """Build the encoder with the tokenizer of the data."""
        return build_text_encoder(build, "gpt_micro or rnn_text")

    def build_head(self) -> LanguageModelHead:
        """Build the head, which shares the encoder's input vectors."""
        return LanguageModelHead(self.encoder.token.embedding_dim, self.encoder.in_channels)

    def setup(self) -> None:
        """Count the tokens of the text."""
        self.statistics = TokenStatistics(self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return the tokens to predict, `target` `[B, T]`, and the `tokens` `[B, T]` that stand before each."""
        tokens = batch["tokens"]
        return {"tokens": torch.cat([batch["previous"][:, None], tokens[:, :-1]], dim=1), "target": tokens}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of the next tokens, `[B, T, ids]`."""
        logits: Tensor = self.head(self.encoder.next_states(batch["tokens"]), self.encoder.token.weight)
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats per token."""
        return F.cross_entropy(output.flatten(0, 1), batch["target"].flatten())

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return how often the likeliest token comes next and, of units that keep all of the text, the bits per byte."""
        return self.statistics.measure(output, batch["target"])

    def chance(self) -> dict[str, float]:
        """Return what the frequencies of tokens reach."""
        return self.statistics.chance()

    def exports(self) -> dict[str, nn.Module]:
        """Return encoder and head."""
        return {"encoder": self.encoder, PART: self.head}

    def metadata(self) -> dict[str, Any]:
        """Return what the head predicts."""
        return self.head.describe("next")
