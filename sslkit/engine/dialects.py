"""Dialects: how published checkpoints name the weights of an encoder, and what else they hold."""

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from sslkit.contract.errors import SslkitError

# In any file: wrappers, and the state of the training.
_WRAPPERS = re.compile(r"(^|\.)(?:module|_orig_mod)\.")
_TRAINING_STATE = r"^(optimizers?|optimizer_states?|(lr_)?schedulers?|(fp16_)?scaler|amp|callbacks|loops|args|epoch)(\.|$)"
_HEADS = r"^(fc|head|heads|head_dist|classifier|pooler|projector|projection_head|prediction_head|predictor)\."

_RESNET_SEQUENCE = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

_TRANSFORMERS = (  # of Hugging Face, in the names of timm; those of files, and of models since version 5
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"^layernorm\.", "norm."),
)
_TRANSFORMERS_QUERY = r"layers?\.0\.attention\.(attention\.query|q_proj)\."


@dataclass(frozen=True)
class Dialect:
    """Describe one way to name weights: patterns are searched in keys, without wrappers such as `module.`."""

    recognized: tuple[str, ...]  # each matches some key of the file; () for plain names
    encoder: str  # what stands before the keys of the encoder
    renames: tuple[tuple[str, str], ...] = ()  # to the names of timm and torchvision, one after the other
    left_over: dict[str, str] = field(default_factory=dict)  # groups of keys that are not the encoder's


DIALECTS: dict[str, Dialect] = {
    "dino": Dialect(  # https://github.com/facebookresearch/dino
        recognized=(r"^teacher\.backbone\.", r"^(teacher|student)\.head\."),
        encoder=r"^teacher\.backbone\.",
        left_over={"head": r"^teacher\.head\.", "student": r"^student\.", "center": r"^dino_loss\."},
    ),
    "dinov2": Dialect(  # https://github.com/facebookresearch/dinov2; blocks may be in chunks
        recognized=(r"(^|\.)mask_token$", r"(^|\.)blocks\.[\d.]+\.ls1\.gamma$"),
        encoder=r"^(teacher\.backbone\.|model\.teacher\.backbone\.|model\.)?",
        renames=(
            (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
            (r"^register_tokens$", "reg_token"),
            (r"\.mlp\.w12\.", ".mlp.fc1."),
            (r"\.mlp\.w3\.", ".mlp.fc2."),
        ),
        left_over={
            "head": r"(^|\.)(dino_head|ibot_head)\.",
            "student": r"^(model\.)?student\.",
            "center": r"(^|\.)(dino_loss|ibot_patch_loss)\.",
            "mask token": r"^mask_token$",
        },
    ),
    "mae": Dialect(  # https://github.com/facebookresearch/mae
        recognized=(r"(^|\.)decoder_pos_embed$", r"(^|\.)decoder_blocks\."),
        encoder=r"^(model\.)?",
        left_over={"decoder": r"^decoder_", "mask token": r"^mask_token$"},
    ),
    "moco": Dialect(  # https://github.com/facebookresearch/moco and moco-v3
        recognized=(r"(^|\.)(encoder_q|base_encoder)\.",),
        encoder=r"^(state_dict\.)?(encoder_q|base_encoder)\.",
        left_over={
            "momentum encoder": r"^(state_dict\.)?(encoder_k|momentum_encoder)\.",
            "queue": r"^(state_dict\.)?queue(_ptr)?$",
            "head": r"^(state_dict\.)?predictor\.",
        },
    ),
    "lightly": Dialect(  # https://github.com/lightly-ai/lightly: a ResNet as a Sequential of its children
        recognized=(r"(^|\.)backbone\.0\.weight$", r"(^|\.)backbone\.4\."),
        encoder=r"^(state_dict\.)?backbone\.",
        renames=tuple((rf"^{number}\.", f"{name}.") for number, name in _RESNET_SEQUENCE.items()),
        left_over={
            "momentum encoder": r"^(state_dict\.)?backbone_momentum\.",
            "head": r"^(state_dict\.)?(projection|prediction)_head(_momentum)?\.",
            "queue": r"(^|\.)memory_bank\.",
            "loss": r"^(state_dict\.)?(criterion|loss)\.",
        },
    ),
    "transformers-vit": Dialect(  # Hugging Face: ViTModel, ViTForImageClassification, ViTMAE
        recognized=(_TRANSFORMERS_QUERY, r"layers?\.0\.layernorm_before\."),
        encoder=r"^(vit\.)?",
        renames=(
            *_TRANSFORMERS,
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        ),
        left_over={"decoder": r"^decoder\.", "mask token": r"^embeddings\.mask_token$"},
    ),
    "transformers-dinov2": Dialect(  # Hugging Face: Dinov2Model and Dinov2WithRegisters
        recognized=(_TRANSFORMERS_QUERY, r"layers?\.0\.layer_scale1\.lambda1$"),
        encoder=r"^(dinov2\.|dinov2_with_registers\.)?",
        renames=(
            *_TRANSFORMERS,
            (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
            (r"\.mlp\.weights_in\.", ".mlp.fc1."),
            (r"\.mlp\.weights_out\.", ".mlp.fc2."),
        ),
        left_over={"mask token": r"^embeddings\.mask_token$"},
    ),
    "plain": Dialect(  # the names of timm or torchvision
        recognized=(),
        encoder=r"^(state_dict|model_state_dict|model|backbone)\.|^",
        left_over={"averaged weights": r"^(state_dict_ema|model_ema|ema)\."},
    ),
}


def recognize(keys: Iterable[str], source: str, name: str = "auto") -> str:
    """Return the dialect of a file's keys, or the one that the user named.

    Raises SslkitError if several are possible.
    """
    plain = [strip_wrappers(key) for key in keys]
    matching = [
        dialect
        for dialect, described in DIALECTS.items()
        if described.recognized and all(any(re.search(pattern, key) for key in plain) for pattern in described.recognized)
    ]
    if name != "auto":
        return name
    if len(matching) > 1:
        raise SslkitError(f"the names in {source} could be {' or '.join(matching)}", "name one of them", flag="dialect")
    return matching[0] if matching else "plain"


def strip_wrappers(key: str) -> str:
    """Return a key without what DataParallel and torch.compile put before it."""
    while (stripped := _WRAPPERS.sub(r"\1", key)) != key:
        key = stripped
    return key


def sort_keys(keys: Iterable[str], name: str, expected: Container[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the encoder's keys, by their names in timm or torchvision, and the others by group.

    `expected` are the names of the encoder that is to be filled. A key that belongs to no group counts as the encoder's.
    """
    dialect = DIALECTS[name]
    encoder: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    left_over = {"training state": _TRAINING_STATE, **dialect.left_over}
    for key in keys:
        full = strip_wrappers(key)
        inner = re.sub(dialect.encoder, "", full, count=1)
        group = next(
            (group for group, pattern in left_over.items() if re.search(pattern, full) or re.search(pattern, inner)), None
        )
        if group is None and inner not in expected and re.search(_HEADS, inner):
            group = "head"
        if group is not None:
            groups.setdefault(group, []).append(key)
            continue
        for pattern, replacement in dialect.renames:
            inner = re.sub(pattern, replacement, inner)
        encoder[inner] = key
    return encoder, groups
