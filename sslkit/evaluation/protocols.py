"""The protocols of fine-tuning, whose settings are computed from its spec. Nothing here imports torch.

A value set by hand gives a result without an id, and another value here means a new version: two results with one id
were made the same way.
"""

from typing import Any

from sslkit.contract.evaluation import Protocol
from sslkit.specs.data import ANNOTATIONS, MAIN_PART
from sslkit.specs.train import FEWEST_AT_ONCE, FinetuneSpec

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


# Flags of `finetune` that choose data, start and machine, not the training.
_NOT_TRAINING = frozenset(
    {"data", *ANNOTATIONS, "test", "seed", "device", "workers", "cache", "cache_limit", "reindex", "out", "encoder", "ckpt"}
    | {"encoder_option", "pretrained", "init", "compile", "sync_batchnorm", "checkpoint_every", "resume", "protocol", "devices"}
    | {"details", "scratch", "part", "dialect", "log", "max_broken", "activation_checkpointing"}
)


_OF_TEACHER = frozenset({"teacher", "distill", "teacher_weight", "teacher_temperature"})


def with_protocol_values(spec: FinetuneSpec) -> FinetuneSpec:
    """Return the spec with the protocol's and the recipe's values for the options that were not set."""
    defaults = {**RECIPES[spec.recipe], **_FINETUNE[spec.protocol]}
    lengths = {"epochs", "steps", "minutes"}
    if lengths & spec.model_fields_set:
        defaults = {name: value for name, value in defaults.items() if name not in lengths}
    return spec.model_copy(update={name: value for name, value in defaults.items() if name not in spec.model_fields_set})


def part_setting(part: str) -> dict[str, str]:
    """Return the setting that says which encoder of a checkpoint was evaluated, if it is not the main one."""
    return {} if part == MAIN_PART else {"part": part}


def finetune_settings(spec: FinetuneSpec) -> dict[str, Any]:
    """Return everything in a spec that decides the training."""
    data = {name: value for name, value in spec.sample_values().items() if value != "auto"}
    settings = {**spec.model_dump(mode="json", exclude=set(_NOT_TRAINING) | spec.tables()), **data}
    if spec.projector_layers == 0:
        del settings["projector_layers"]
    if spec.teacher is None:
        settings = {name: value for name, value in settings.items() if name not in _OF_TEACHER}
    if spec.cache == "compact":
        settings["cache"] = spec.cache
    if spec.micro_batch != "auto" and spec.micro_batch >= min(FEWEST_AT_ONCE, spec.batch_size):
        settings["micro_batch"] = "auto"  # which became such a number on some machine, and is recorded as it
    return settings


def finetune_protocol(spec: FinetuneSpec) -> str | None:
    """Return the id of the spec's protocol if every value is the protocol's, else None."""
    expected = next(protocol.settings for protocol in FINETUNE_PROTOCOLS if protocol.id == spec.protocol)
    settings = finetune_settings(spec)
    if expected["seeds"] == 1:  # a protocol with one seed keeps its id with more
        settings["seeds"] = 1
    return spec.protocol if settings == expected else None


def _settings_of(protocol: Any) -> dict[str, Any]:
    return finetune_settings(with_protocol_values(FinetuneSpec(protocol=protocol)))


FINETUNE_PROTOCOLS = (
    Protocol(
        "finetune/full-v1",
        "encoder and head are trained for 20 epochs: crops and flips, AdamW, the weights of the last step",
        _settings_of("finetune/full-v1"),
    ),
    Protocol(
        "finetune/partial-v1",
        "as full-v1, but only the encoder's last block and the head are trained",
        _settings_of("finetune/partial-v1"),
    ),
    Protocol(
        "finetune/fewlabel-v1",
        "as full-v1 with 1% and 10% of each class's labels, 50 epochs of batch 32, mean of 3 seeds",
        _settings_of("finetune/fewlabel-v1"),
    ),
)
