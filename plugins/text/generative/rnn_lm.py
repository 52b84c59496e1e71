"""Recurrent language models (Mikolov et al., 2010; Zaremba et al., 2014)."""

from typing import ClassVar

from sslkit import Paper
from sslkit.text.language_model import NextTokenTask


class RNNLanguageModel(NextTokenTask):
    """Predict each token from the state of a recurrent network (Mikolov et al., 2010; LSTM: Zaremba et al., 2014).

    States begin at zero in each passage: the paper carries them over, which shuffled passages do not allow.
    """

    compiles: ClassVar = False
    defaults: ClassVar = {
        "encoder": "rnn_text",
        "unit": "bpe",
        "optimizer": "adamw",
        "lr": 2e-3,
        "weight_decay": 0.05,
        "clip": 1.0,
        "batch_size": 32,
    }
    paper: ClassVar = Paper(
        source="section 4.1 of Zaremba et al., 2014, the medium model",
        settings={
            "encoder_option": {"width": "650", "depth": "2", "dropout": "0.5"},
            "unit": "word",
            "vocabulary": 10_000,
            "context": 35,
            "batch_size": 20,
            "epochs": 39,
            "optimizer": "sgd",
            "lr": 1.0,
            "sgd_momentum": 0.0,
            "weight_decay": 0.0,
            "warmup": 0.0,
            "clip": 5.0,
        },
        unsupported=("a rate that is divided by 1.2 after each epoch from the sixth on (here a cosine)", "states carried over"),
    )
