"""visualize: components against numpy, the foreground of planted images, attention of the last block, and the picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.image.encoders.timm import VisionTransformerEncoder
from sslkit.image.visualize import component_colors

Run = Callable[..., Any]


def test_colors_are_principal_components_of_all_places() -> None:
    torch.manual_seed(0)
    maps = torch.randn(5, 8, 3, 4) * torch.linspace(0.2, 3, 8).view(1, 8, 1, 1)
    colors, share = component_colors(maps)
    places = maps.movedim(1, 3).reshape(-1, 8).numpy().astype(np.float64)
    _, values, vectors = np.linalg.svd(places - places.mean(axis=0), full_matrices=False)
    assert share == pytest.approx((values[:3] ** 2).sum() / (values**2).sum())
    for number in range(3):
        vector = vectors[number] * np.sign(vectors[number][np.abs(vectors[number]).argmax()])
        component = (places - places.mean(axis=0)) @ vector
        low, high = np.quantile(component, [0.01, 0.99])
        expected = np.clip((component - low) / (high - low), 0, 1)
        assert np.allclose(colors[:, number].reshape(-1).numpy(), expected, atol=1e-5)


def test_the_foreground_is_what_the_border_is_not() -> None:
    torch.manual_seed(0)
    maps = 0.1 * torch.randn(4, 6, 8, 8)
    maps[:, 0, 2:6, 2:6] += 3.0
    colors, _ = component_colors(maps, foreground=True)
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:6, 2:6] = False
    assert colors[:, :, outside].max() == 0 and colors[:, :, ~outside].amax(dim=1).min() >= 0
    assert (colors[:, :, ~outside] > 0).any(dim=1).float().mean() > 0.9


@pytest.mark.parametrize("name", ["vit_micro", "vit_tiny_patch16_224"])
def test_attention_is_that_of_the_last_block(name: str) -> None:
    size = 16 if name == "vit_micro" else 64
    torch.manual_seed(0)
    encoder = build_encoder(recipe_for(name, size, 3)).eval()
    assert isinstance(encoder, VisionTransformerEncoder)
    block, captured = encoder.model.blocks[-1], dict[str, Tensor]()
    block.norm1.register_forward_hook(lambda module, inputs, output: captured.update(normed=output))
    block.attn.register_forward_hook(lambda module, inputs, output: captured.update(attended=output))
    image = torch.rand(2, 3, size, size)
    encoder.tokens(image)
    query, key, value = block.attn.qkv(captured["normed"]).unflatten(2, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(2, 3) * block.attn.scale).softmax(dim=3)
    assert torch.allclose(block.attn.proj((weights @ value).transpose(1, 2).flatten(2)), captured["attended"], atol=1e-5)
    rows = weights[:, :, 0] if encoder.class_token else weights[:, :, encoder.prefix :].mean(dim=2)
    assert torch.allclose(encoder.attention(image).flatten(2), rows[:, :, encoder.prefix :], atol=1e-6)


def test_a_picture_of_digits(trained: Path, digits: Path, sslkit: Run, tmp_path: Path) -> None:
    out = tmp_path / "features.png"
    words = ["visualize", "--ckpt", trained, "--data", digits, "--out", out, "--samples", 4]
    result = sslkit(*words, "--json").json
    assert (result["samples"], result["heads"]) == (4, 0) and 0 < result["variance"] <= 1
    with Image.open(out) as picture:
        assert picture.size == (2 * 134 + 6, 4 * 134 + 6 + 21)
        first = np.asarray(picture).copy()
    sslkit(*words)
    with Image.open(out) as picture:
        assert (np.asarray(picture) == first).all()
    ran = sslkit(*words, "--layer", 2, "--foreground")
    assert ran.code == 0 and "drew 4 images in" in ran.out and "of the variance of places" in ran.out


def test_attention_heads_are_columns(digits: Path, sslkit: Run, tmp_path: Path) -> None:
    flags = ["--encoder", "vit_micro", "--encoder-option", "width=16", "--encoder-option", "depth=1", "--size", 16]
    run = tmp_path / "vit"
    assert sslkit("pretrain", "rotation", "--data", digits, *flags, "--steps", 2, "--batch-size", 16, "--out", run).code == 0
    result = sslkit("visualize", "--ckpt", run / "model.safetensors", "--heads", 3, "--out", tmp_path / "v.png", "--json").json
    assert result["heads"] == 3
    with Image.open(tmp_path / "v.png") as picture:
        assert picture.size[0] == 5 * 134 + 6


def test_what_is_refused(trained: Path, digits: Path, sslkit: Run, tmp_path: Path) -> None:
    ran = sslkit("visualize", "--ckpt", trained, "--data", digits, "--layer", 9, "--out", tmp_path / "v.png")
    assert ran.code == 2 and "has 4 layers (got 9)" in ran.err and not (tmp_path / "v.png").exists()
    ran = sslkit("visualize", "--ckpt", trained, "--data", digits, "--out", tmp_path / "v.jpg")
    assert ran.code == 2 and "--out" in ran.err
