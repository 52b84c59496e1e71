"""GPT (Radford et al., 2018)."""

from typing import ClassVar

from sslkit import Paper
from sslkit.text.language_model import NextTokenTask


class GPT(NextTokenTask):
    """Predict each token from all before it, with a transformer (GPT; Radford et al., 2018).

    Norms stand before attention and feed-forward layers, as in GPT-2 (2019).
    """

    defaults: ClassVar = {
        "encoder": "gpt_micro",
        "unit": "bpe",
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.1,
        "betas": "0.9,0.95",
        "clip": 1.0,
        "batch_size": 32,
    }
    paper: ClassVar = Paper(
        source="section 4.1 of the paper",
        settings={
            "encoder_option": {"width": "768", "depth": "12", "heads": "12", "dropout": "0.1"},
            "vocabulary": 40_000,
            "context": 512,
            "batch_size": 64,
            "epochs": 100,
            "lr": 2.5e-4,
            "weight_decay": 0.01,
            "betas": "0.9,0.999",
        },
        unsupported=("norms after the layers", "a warm-up of 2,000 steps (here a share of the run)"),
    )
