"""`--init` with weights of others: six dialects with what their files usually hold besides, strictly, at any size."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from sslkit import Encoder, SslkitError
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.dialects import DIALECTS
from sslkit.engine.initial import load_initial
from sslkit.specs.train import PretrainSpec

Run = Callable[..., Any]
State = dict[str, Tensor]


def vit(size: int = 32) -> Encoder:
    return build_encoder(recipe_for("vit_micro", size, 3, {"width": "32", "depth": "2", "heads": "2"}))


def dinov2(name: str = "vit_small_patch14_dinov2", size: int = 28) -> Encoder:
    return build_encoder(recipe_for(name, size, 3, {"depth": "2"}))


def resnet() -> Encoder:
    return build_encoder(recipe_for("torchvision:resnet18", 224))


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def training(state: Any) -> dict[str, Any]:
    """Return a checkpoint as training scripts write it: numbers, options and an optimizer beside the weights."""
    moments = {0: {"step": 3, "exp_avg": torch.ones(3)}}
    return {
        **state,
        "epoch": 7,
        "best": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1, path="/data"),
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1, "params": [0]}]},
    }


def dino(state: State) -> dict[str, Any]:
    head = {"mlp.0.weight": torch.ones(2, 2), "last_layer.weight_g": torch.ones(2, 1)}
    return training(
        {
            "student": under("module.backbone.", {name: value + 1 for name, value in state.items()})
            | under("module.head.", head),
            "teacher": under("backbone.", state) | under("head.", head),
            "dino_loss": {"center": torch.zeros(1, 2)},
        }
    )


def mae(state: State) -> dict[str, Any]:
    decoder = {
        "mask_token": torch.ones(1, 1, 2),
        "decoder_pos_embed": torch.ones(1, 5, 2),
        "decoder_embed.weight": torch.ones(2, 2),
        "decoder_blocks.0.norm1.weight": torch.ones(2),
        "decoder_norm.weight": torch.ones(2),
        "decoder_pred.weight": torch.ones(2, 2),
    }
    return training({"model": state | decoder, "scaler": {"scale": 65536.0}})


def moco(state: State) -> dict[str, Any]:
    head = {"fc.0.weight": torch.ones(2, 2), "fc.2.weight": torch.ones(2, 2)}
    key = {name: value + 1 for name, value in state.items()}
    queue = {"module.queue": torch.ones(2, 4), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    both = under("module.encoder_q.", state | head) | under("module.encoder_k.", key | head)
    return training({"arch": "resnet18", "state_dict": both | queue})


def mocov3(state: State) -> dict[str, Any]:
    head = {"head.0.weight": torch.ones(2, 2), "head.1.running_mean": torch.ones(2)}
    key = {name: value + 1 for name, value in state.items()}
    both = under("module.base_encoder.", state | head) | under("module.momentum_encoder.", key | head)
    return training({"state_dict": both | {"module.predictor.0.weight": torch.ones(2, 2)}})


def lightly(state: State) -> dict[str, Any]:
    from torchvision.models import resnet18

    model = resnet18()
    model.load_state_dict(state, strict=False)
    backbone = nn.Sequential(*list(model.children())[:-1]).state_dict()
    heads = {"projection_head.layers.0.weight": torch.ones(2, 2), "projection_head_momentum.layers.0.weight": torch.ones(2, 2)}
    momentum = under("backbone_momentum.", {name: value + 1 for name, value in backbone.items()})
    return {
        "state_dict": under("backbone.", dict(backbone)) | momentum | heads | {"criterion.memory_bank.bank": torch.ones(2)},
        "pytorch-lightning_version": "2.5.0",
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []}],
        "lr_schedulers": [],
        "loops": {"fit_loop": {"state_dict": {}}},
    }


def dinov2_training(state: State) -> dict[str, Any]:
    chunked = {name.replace("blocks.", "blocks.0.", 1): value for name, value in state.items()}
    head = {"mlp.0.weight": torch.ones(2, 2)}
    teacher = under("backbone.", chunked | {"mask_token": torch.ones(1, 2)}) | under("dino_head.", head)
    return {"teacher": teacher | under("ibot_head.", head)}


def split(state: State, name: str) -> dict[str, Tensor]:
    query, key, value = state[name].chunk(3)
    return {"query": query, "key": key, "value": value}


def transformers_vit(state: State) -> dict[str, Any]:
    theirs = {
        "vit.embeddings.cls_token": state["cls_token"],
        "vit.embeddings.position_embeddings": state["pos_embed"],
        "vit.embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "vit.embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "vit.layernorm.weight": state["norm.weight"],
        "vit.layernorm.bias": state["norm.bias"],
        "vit.pooler.dense.weight": torch.ones(2, 2),
        "classifier.weight": torch.ones(2, 2),
    }
    for block in range(2):
        ours, start = f"blocks.{block}", f"vit.encoder.layer.{block}"
        for kind in ("weight", "bias"):
            for name, value in split(state, f"{ours}.attn.qkv.{kind}").items():
                theirs[f"{start}.attention.attention.{name}.{kind}"] = value
            theirs[f"{start}.attention.output.dense.{kind}"] = state[f"{ours}.attn.proj.{kind}"]
            theirs[f"{start}.intermediate.dense.{kind}"] = state[f"{ours}.mlp.fc1.{kind}"]
            theirs[f"{start}.output.dense.{kind}"] = state[f"{ours}.mlp.fc2.{kind}"]
            theirs[f"{start}.layernorm_before.{kind}"] = state[f"{ours}.norm1.{kind}"]
            theirs[f"{start}.layernorm_after.{kind}"] = state[f"{ours}.norm2.{kind}"]
    return theirs


def transformers_dinov2(state: State) -> dict[str, Any]:
    theirs = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": torch.ones(1, 2),
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for block in range(2):
        ours, start = f"blocks.{block}", f"encoder.layer.{block}"
        for number in (1, 2):
            theirs[f"{start}.layer_scale{number}.lambda1"] = state[f"{ours}.ls{number}.gamma"]
        for kind in ("weight", "bias"):
            for name, value in split(state, f"{ours}.attn.qkv.{kind}").items():
                theirs[f"{start}.attention.attention.{name}.{kind}"] = value
            theirs[f"{start}.attention.output.dense.{kind}"] = state[f"{ours}.attn.proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                theirs[f"{start}.{name}.{kind}"] = state[f"{ours}.{name}.{kind}"]
    return theirs


def in_memory(state: State) -> dict[str, Any]:
    """Return the names that models of version 5 have before they are written to a file."""
    renames = {
        "encoder.layer.": "layers.",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    renamed = {}
    for name, value in transformers_vit(state).items():
        for before, after in renames.items():
            name = name.replace(before, after)
        renamed[name] = value
    return renamed


CASES: dict[str, tuple[Callable[[], Encoder], Callable[[State], dict[str, Any]], str]] = {
    "dino": (vit, dino, "student (32 tensors), head (2 tensors), center (1 tensor), training state (1 tensor)"),
    "dinov2": (dinov2, lambda state: state | {"mask_token": torch.ones(1, 2)}, "mask token (1 tensor)"),
    "dinov2, of a training": (dinov2, dinov2_training, "head (2 tensors)"),
    "mae": (vit, mae, "decoder (5 tensors)"),
    "moco": (resnet, moco, "queue (2 tensors)"),
    "moco, version 3": (vit, mocov3, "momentum encoder"),
    "lightly": (resnet, lightly, "momentum encoder"),
    "transformers-vit": (vit, transformers_vit, "head (2 tensors)"),
    "transformers-vit, in memory": (vit, in_memory, "head (2 tensors)"),
    "transformers-dinov2": (dinov2, transformers_dinov2, "mask token (1 tensor)"),
    "plain": (resnet, lambda state: {"state_dict": state | {"fc.weight": torch.ones(2, 2)}}, "head (1 tensor)"),
}


@pytest.mark.parametrize("case", CASES)
def test_published_files_fill_every_weight(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build, write, left_out = CASES[case]
    published, encoder = build(), build()
    state = {
        name: torch.randn_like(value) if value.is_floating_point() else value + 3 for name, value in model_state(published)
    }
    torch.save(write(state), tmp_path / "published.pth")
    load_initial(encoder, str(tmp_path / "published.pth"))
    loaded = dict(model_state(encoder))
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], value) for name, value in state.items())
    assert left_out in capsys.readouterr().err


def model_state(encoder: Encoder) -> Any:
    return encoder.model.state_dict().items()


def test_every_dialect_is_tested_and_offered() -> None:
    assert {case.partition(",")[0] for case in CASES} == set(DIALECTS)
    offered = PretrainSpec.model_fields["dialect"].annotation
    assert set(offered.__args__) == {"auto", *DIALECTS}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_one_unknown_key_is_an_error(suffix: str, tmp_path: Path) -> None:
    encoder, file = vit(), tmp_path / f"weights{suffix}"
    state = {**dict(model_state(encoder)), "blocks.0.surprise": torch.ones(2)}
    torch.save(state, file) if suffix == ".pth" else save_file(state, file)
    with pytest.raises(SslkitError, match=r"does not match the encoder: left over: blocks.0.surprise"):
        load_initial(encoder, str(file))
    del state["blocks.0.surprise"], state["norm.bias"]
    torch.save(state, file) if suffix == ".pth" else save_file(state, file)
    with pytest.raises(SslkitError, match=r"does not match the encoder: missing: norm.bias"):
        load_initial(encoder, str(file))


def test_a_tie_is_resolved_by_the_user(tmp_path: Path) -> None:
    encoder = dinov2()
    state = dict(model_state(encoder))
    decoder = {"mask_token": torch.ones(1, 2), "decoder_pos_embed": torch.ones(1, 2), "decoder_blocks.0.w": torch.ones(1)}
    torch.save(state | decoder, tmp_path / "both.pth")
    with pytest.raises(SslkitError, match=r"--dialect: the names in .* could be dinov2 or mae \(name one of them\)"):
        load_initial(encoder, str(tmp_path / "both.pth"))
    load_initial(encoder, str(tmp_path / "both.pth"), "mae")
    with pytest.raises(SslkitError, match="left over: decoder_"):
        load_initial(encoder, str(tmp_path / "both.pth"), "dinov2")


@pytest.mark.parametrize("sizes", [(32, 48), (48, 32)])
def test_position_embeddings_are_resampled_as_timm_does(
    sizes: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published, encoder = vit(sizes[0]), vit(sizes[1])
    nn.init.normal_(published.model.pos_embed)
    torch.save(published.model.state_dict(), tmp_path / "published.pth")
    load_initial(encoder, str(tmp_path / "published.pth"))
    side = sizes[1] // 4
    expected = resample_abs_pos_embed(published.model.pos_embed, [side, side], num_prefix_tokens=1)
    assert torch.allclose(encoder.model.pos_embed, expected, atol=1e-6)
    assert torch.equal(encoder.model.pos_embed[:, 0], published.model.pos_embed[:, 0])
    assert f"resampled from {sizes[0] // 4}x{sizes[0] // 4} to {side}x{side}" in capsys.readouterr().err


@pytest.mark.slow
def test_our_own_checkpoints_are_resampled_too(digits: Path, tmp_path: Path, sslkit: Run) -> None:
    flags = ["--data", digits, "--batch-size", 16, "--steps", 1, "--workers", 0]
    for name in ("vit_micro", "convvit_micro"):
        options = ["--encoder", name, "--encoder-option", "width=32", "--encoder-option", "depth=1"]
        options += ["--encoder-option", "heads=1" if name == "convvit_micro" else "heads=2"]
        first, second = tmp_path / f"{name}-1", tmp_path / f"{name}-2"
        assert sslkit("pretrain", "rotation", *flags, *options, "--size", 32, "--out", first).code == 0
        init = ["--init", first / "model.safetensors"]
        ran = sslkit("pretrain", "rotation", *flags, *options, *init, "--size", 64, "--out", second)
        assert ran.code == 0 and "position embeddings were resampled from" in ran.err, ran.err


def test_registers_of_dinov2_have_their_class_position_inside(tmp_path: Path) -> None:
    encoder = dinov2("vit_small_patch14_reg4_dinov2")
    state = {name: torch.randn_like(value) for name, value in model_state(encoder)}
    assert state["pos_embed"].shape[1] == 37**2  # no row for the class token, whose position is added to it
    theirs = dict(state)
    theirs["register_tokens"] = theirs.pop("reg_token")
    row = torch.randn(1, 1, state["pos_embed"].shape[2])
    theirs["pos_embed"], theirs["mask_token"] = torch.cat([row, state["pos_embed"]], dim=1), torch.ones(1, 2)
    torch.save(theirs, tmp_path / "published.pth")
    load_initial(encoder, str(tmp_path / "published.pth"))
    loaded = dict(model_state(encoder))
    assert torch.allclose(loaded["cls_token"], state["cls_token"] + row)
    assert torch.equal(loaded["pos_embed"], state["pos_embed"]) and torch.equal(loaded["reg_token"], state["reg_token"])


def test_from_the_command_line(digits: Path, tmp_path: Path, sslkit: Run) -> None:
    encoder = build_encoder(recipe_for("torchvision:resnet18", 16))
    torch.save(moco(dict(model_state(encoder))), tmp_path / "moco.pth.tar")
    flags = ["--data", digits, "--encoder", "torchvision:resnet18", "--size", 16, "--batch-size", 16, "--workers", 0]
    flags += ["--init", tmp_path / "moco.pth.tar", "--steps", 1, "--lr", 0, "--weight-decay", 0, "--out", tmp_path / "run"]
    ran = sslkit("pretrain", "rotation", *flags)
    assert ran.code == 0 and "in the dialect moco" in ran.err and "momentum encoder (" in ran.err, ran.err
    from sslkit import load

    assert torch.equal(load(tmp_path / "run" / "model.safetensors").model.conv1.weight, encoder.model.conv1.weight)
