"""The neural probabilistic language model (Bengio et al., 2003)."""

from typing import Any, ClassVar

from sslkit import Encoder, EncoderBuilder, Paper, SslkitError
from sslkit.text.encoders.feedforward import FeedForwardEncoder
from sslkit.text.language_model import LanguageModelHead, NextTokenTask, build_text_encoder


class NeuralLanguageModel(NextTokenTask):
    """Predict each word from the vectors of the few words before it (neural language model; Bengio et al., 2003)."""

    encoder: FeedForwardEncoder
    defaults: ClassVar = {
        "encoder": "feedforward_text",
        "unit": "word",
        "vocabulary": 8192,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.01,
        "clip": 1.0,
        "batch_size": 64,
    }
    paper: ClassVar = Paper(
        source="section 4.2 of the paper, on the Brown corpus",
        settings={
            "encoder_option": {"order": "5", "vectors": "30", "width": "100", "direct": "1"},
            "vocabulary": 16_383,
            "epochs": 20,
            "optimizer": "sgd",
            "lr": 1e-3,
            "sgd_momentum": 0.0,
            "weight_decay": 1e-4,
            "warmup": 0.0,
        },
        unsupported=("a rate of 1/(1 + 1e-8 t) (here a cosine)", "a trigram mixed in"),
    )

    @classmethod
    def build_encoder(cls, options: Any, build: EncoderBuilder) -> Encoder:
        """Build the encoder with the words of the data."""
        if build.recipe["name"] != "feedforward_text":
            raise SslkitError(f"neural_lm needs feedforward_text (got {build.recipe['name']})", "omit it", flag="encoder")
        return build_text_encoder(build, "feedforward_text")

    def build_head(self) -> LanguageModelHead:
        """Build the head, which has output vectors and biases of its own."""
        return LanguageModelHead(self.encoder.width, self.encoder.in_channels, bias=True, tied=False)
