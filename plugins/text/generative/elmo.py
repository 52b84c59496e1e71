"""ELMo (Peters et al., 2018)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit import Batch, Encoder, EncoderBuilder, Paper, PretextTask, SslkitError, TaskOptions
from sslkit.text.encoders.recurrent import BidirectionalRecurrent
from sslkit.text.language_model import PART, LanguageModelHead, TokenStatistics, build_text_encoder


class ELMo(PretextTask):
    """Predict each token from all before it and from all after it, by two recurrent networks (ELMo; Peters et al., 2018).

    Both share input and output vectors. States begin at zero in each passage.
    """

    class Options(TaskOptions):
        """No options: the encoder has them."""

    encoder: BidirectionalRecurrent
    head: LanguageModelHead
    modality: ClassVar = "text"
    requires: ClassVar = ("tokens", "layers")
    visible_targets: ClassVar = ("next", "previous")  # of each position those of the others
    masked: ClassVar = True
    compiles: ClassVar = False
    defaults: ClassVar = {
        "encoder": "elmo_text",
        "unit": "bpe",
        "context": 64,
        "optimizer": "adamw",
        "lr": 2e-3,
        "weight_decay": 0.05,
        "clip": 1.0,
        "batch_size": 64,
    }
    paper: ClassVar = Paper(
        source="section 3.4 of the paper, and the authors' code (allenai/bilm-tf)",
        settings={
            "encoder_option": {"width": "512", "depth": "2", "dropout": "0.1"},
            "unit": "word",
            "context": 20,
            "batch_size": 128,
            "epochs": 10,
            "clip": 10.0,
        },
        unsupported=(
            "4,096 units that are projected to 512, cells clipped at 3",
            "words as characters, by convolutions",
            "Adagrad at a rate of 0.2 (here AdamW)",
            "8,192 sampled negatives (here all tokens)",
            "states carried over",
        ),
    )

    @classmethod
    def build_encoder(cls, options: Any, build: EncoderBuilder) -> Encoder:
        """Build the encoder with the tokenizer of the data."""
        if build.recipe["name"] != "elmo_text":
            raise SslkitError(f"elmo needs elmo_text (got {build.recipe['name']})", "omit it", flag="encoder")
        return build_text_encoder(build, "elmo_text")

    def build_head(self) -> LanguageModelHead:
        """Build the head of both directions, which shares the encoder's input vectors."""
        return LanguageModelHead(self.encoder.token.embedding_dim, self.encoder.in_channels)

    def setup(self) -> None:
        """Count the tokens of the text."""
        self.statistics = TokenStatistics(self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return `tokens` `[B, T + 1]`, and the `next` one of all but the last and the `previous` one of all but the first."""
        tokens = torch.cat([batch["previous"][:, None], batch["tokens"]], dim=1)
        return {"tokens": tokens, "next": tokens[:, 1:], "previous": tokens[:, :-1]}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return logits of the next tokens and of the previous ones, `[B, T, ids]` each."""
        vectors = self.encoder.token.weight
        return {
            "next": self.head(self.encoder.states_before(batch["tokens"])[-1][:, :-1], vectors),
            "previous": self.head(self.encoder.states_after(batch["tokens"])[-1][:, 1:], vectors),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the mean cross-entropy in nats per token of each direction."""
        return {name: F.cross_entropy(logits.flatten(0, 1), batch[name].flatten()) for name, logits in output.items()}

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how often the likeliest token is right, and the bits per byte: means of both directions."""
        following, preceding = (self.statistics.measure(logits, batch[name]) for name, logits in output.items())
        return {name: (following[name] + preceding[name]) / 2 for name in following}

    def chance(self) -> dict[str, float]:
        """Return what the frequencies of tokens reach."""
        return self.statistics.chance()

    def exports(self) -> dict[str, nn.Module]:
        """Return encoder and head."""
        return {"encoder": self.encoder, PART: self.head}

    def metadata(self) -> dict[str, Any]:
        """Return what the head predicts."""
        return self.head.describe("both")
