"""Named protocols: everything that decides a number, under an id.

A value set by hand gives a result without an id, and another value here means a new version: two results with one id
were made the same way. Nothing here imports torch.
"""

from dataclasses import dataclass
from typing import Any

from sslkit.specs.train import FinetuneSpec


@dataclass(frozen=True)
class Protocol:
    """Hold what a protocol is: its settings, by the names of the flags that would change them."""

    id: str
    summary: str
    settings: dict[str, Any]

    @property
    def command(self) -> str:
        """Return the command that follows it."""
        return self.id.partition("/")[0]


_PROBE = {"held_out": 0.2, "seeds": 1}


_C_GRID = [0.001, 0.01, 0.1, 1.0, 10.0]


_SVM_GRID = [0.0001, 0.001, 0.01, 0.1, 1.0]


_RATES = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]


# What `finetune --recipe` changes.
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "strong": {
        "epochs": 50,
        "layer_decay": 0.75,
        "drop_path": 0.1,
        "crop_scale": 0.3,
        "label_smoothing": 0.1,
        "mixup": 0.2,
        "cutmix": 1.0,
        "randaugment": 9,
        "erasing": 0.25,
        "ema": 0.99,
    },
}


# What the fine-tuning protocols change.
_FINETUNE: dict[str, dict[str, Any]] = {
    "finetune/full-v1": {},
    "finetune/partial-v1": {"last_blocks": 1},
    "finetune/fewlabel-v1": {"shares": [0.01, 0.1], "epochs": 50, "batch_size": 32, "seeds": 3},
}


# Flags of `finetune` that say on what, from where and on which machine to train, not how.
_ELSEWHERE = frozenset(
    {"data", "label", "test", "seed", "device", "workers", "cache", "cache_limit", "reindex", "out", "encoder", "ckpt"}
    | {"encoder_option", "pretrained", "init", "compile", "sync_batchnorm", "checkpoint_every", "resume", "protocol"}
    | {"scratch", "log", "max_broken", "activation_checkpointing"}
)


def with_protocol_values(spec: FinetuneSpec) -> FinetuneSpec:
    """Return the spec with the protocol's and the recipe's values where nothing was given."""
    own = {**RECIPES[spec.recipe], **_FINETUNE[spec.protocol]}
    lengths = {"epochs", "steps", "minutes"}
    if lengths & spec.model_fields_set:
        own = {name: value for name, value in own.items() if name not in lengths}
    return spec.model_copy(update={name: value for name, value in own.items() if name not in spec.model_fields_set})


def finetune_settings(spec: FinetuneSpec) -> dict[str, Any]:
    """Return everything in a spec that decides how it trains."""
    data = {name: value for name, value in spec.data_values().items() if value != "auto"}
    return {**spec.model_dump(mode="json", exclude=set(_ELSEWHERE) | spec.tables()), **data}


def finetune_protocol(spec: FinetuneSpec) -> str | None:
    """Return the id of a settled spec's protocol if every value is the protocol's."""
    usual, own = PROTOCOLS[spec.protocol].settings, finetune_settings(spec)
    if usual["seeds"] == 1:  # more seeds are more of the same
        own["seeds"] = 1
    return spec.protocol if own == usual else None


def _finetune(protocol: Any) -> dict[str, Any]:
    return finetune_settings(with_protocol_values(FinetuneSpec(protocol=protocol)))


_ALL = (
    Protocol(
        "knn/weighted-v1",
        "the 20 nearest by cosine vote with weight exp(cosine / 0.07) (Wu et al., 2018)",
        {"k": 20, "temperature": 0.07, "shots": None, "seeds": 1},
    ),
    Protocol(
        "knn/weighted200-v1",
        "the 200 nearest by cosine vote with weight exp(cosine / 0.1)",
        {"k": 200, "temperature": 0.1, "shots": None, "seeds": 1},
    ),
    Protocol(
        "knn/plain-v1",
        "the 20 nearest by cosine have a vote each; the first class wins a tie",
        {"k": 20, "temperature": None, "shots": None, "seeds": 1},
    ),
    Protocol(
        "knn/fewshot-v1",
        "5 training images of each class; the 5 nearest vote with weight exp(cosine / 0.07); mean of 10 draws",
        {"k": 5, "temperature": 0.07, "shots": 5, "seeds": 10},
    ),
    Protocol(
        "probe/logreg-v1",
        "logistic regression on standardized features by L-BFGS; C chosen on a fifth of the training part",
        {"c": _C_GRID, "iterations": 300, **_PROBE},
    ),
    Protocol(
        "probe/sweep-v1",
        "linear heads on every layer by SGD, 20 epochs of batch 256; layer and rate chosen on a fifth of the training part",
        {"lr": _RATES, "layer": "all", "head_epochs": 20, "head_batch": 256, "head_momentum": 0.9, **_PROBE},
    ),
    Protocol(
        "probe/svm-v1",
        "linear SVM, one against the rest, on standardized features; C chosen on a fifth of the training part",
        {"c": _SVM_GRID, "iterations": 300, **_PROBE},
    ),
    Protocol("retrieval/map-v1", "mean average precision of ranking the training part by cosine to each test image", {}),
    Protocol(
        "zeroshot/names-v1",
        "the class whose name is nearest by cosine, in the joint space of images and captions (Radford et al., 2021)",
        {"templates": ["{}"]},
    ),
    Protocol("zeroshot/recall-v1", "recall at 1, 5 and 10 of captions by images and of images by captions, by cosine", {}),
    Protocol(
        "finetune/full-v1",
        "encoder and head learn for 20 epochs: crops and flips, AdamW, the last step's weights",
        _finetune("finetune/full-v1"),
    ),
    Protocol(
        "finetune/partial-v1",
        "as full-v1, but only the encoder's last block and the head learn",
        _finetune("finetune/partial-v1"),
    ),
    Protocol(
        "finetune/fewlabel-v1",
        "as full-v1 with 1% and 10% of each class's labels, 50 epochs of batch 32, mean of 3 seeds",
        _finetune("finetune/fewlabel-v1"),
    ),
)


PROTOCOLS = {protocol.id: protocol for protocol in _ALL}
