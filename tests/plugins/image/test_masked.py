"""Masked tasks: masked patches do not leak, predictions are placed correctly, tokenizers fit or are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from sslkit import DataInfo, SslkitError
from sslkit.encoders.build import build_encoder
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.image.examples import example_checkpoint, example_tokenizer
from sslkit.image.transforms import gray_out_patches, patchify, random_mask, replace_patches, split_patches, take_patches
from sslkit.tasks.load import load_task
from tests.canvases import canvases

CPU = torch.device("cpu")
SMALL = {"vit_micro": {"width": "32", "depth": "2"}, "convvit_micro": {"width": "32", "depth": "1", "heads": "1"}}


def task_on(name: str, encoder: str = "vit_micro", size: int = 32, **options: Any) -> Any:
    task_class, data = load_task(name), DataInfo(64, size)
    return task_class(
        task_class.Options(**options), RecipeBuilder(recipe_for(encoder, size, 3, SMALL[encoder]), data)(), data
    ).eval()


def test_patches_come_back_to_their_places() -> None:
    image = torch.rand(3, 3, 32, 32)
    mask = random_mask(3, 64, 40, CPU)
    _, masked = split_patches(mask, 40)
    values = take_patches(patchify(image, 4), masked)
    replaced = replace_patches(torch.zeros_like(image), masked, values, 4)
    grayed = gray_out_patches(image, masked, (8, 8))
    for row in range(32):
        for column in range(32):
            for sample in range(3):
                covered = bool(mask[sample, row // 4 * 8 + column // 4])
                pixel = image[sample, :, row, column]
                assert torch.equal(replaced[sample, :, row, column], pixel if covered else torch.zeros(3))
                assert torch.equal(grayed[sample, :, row, column], torch.full((3,), 0.5) if covered else pixel)


@pytest.mark.parametrize("name", ["vit_micro", "vit_tiny_patch16_224"])
def test_a_quarter_of_the_patches_costs_less_than_a_third(name: str) -> None:
    size = 32 if name == "vit_micro" else 224
    encoder = build_encoder(recipe_for(name, size))
    image = torch.zeros(1, 3, size, size)
    count = (size // encoder.patch) ** 2
    whole, part = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with torch.no_grad():
        with whole:
            encoder.tokens(image)
        with part:
            encoder.tokens(image, keep=torch.arange(count // 4)[None])
    # torch counts no attention on CPUs; that of a quarter of the tokens is a sixteenth.
    assert part.get_total_flops() <= 0.30 * whole.get_total_flops()


@pytest.mark.parametrize("name", ["mae", "mcmae", "cae"])
def test_encoders_do_not_depend_on_masked_patches(name: str, tmp_path: Path) -> None:
    options = {"tokenizer": example_tokenizer(tmp_path)} if name == "cae" else {}
    task = task_on(name, "convvit_micro" if name == "mcmae" else "vit_micro", **options)
    batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
    other = {**batch, "image": gray_out_patches(batch["image"], batch["masked"], (8, 8))}
    first, second = (task.encoder.tokens(version["image"], keep=batch["visible"]) for version in (batch, other))
    assert torch.allclose(first, second, atol=1e-5)
    assert not torch.allclose(task.encoder.tokens(batch["image"]), task.encoder.tokens(other["image"]), atol=1e-3)


def test_mcmae_visible_positions_do_not_depend_on_masked_patches() -> None:
    encoder = task_on("mcmae", "convvit_micro").encoder
    image, mask = torch.rand(2, 3, 32, 32), random_mask(2, 64, 32, CPU)
    fill = torch.zeros(32)
    tokens = encoder.tokens(image, mask=mask, fill=fill)
    again = encoder.tokens(gray_out_patches(image, split_patches(mask, 32)[1], (8, 8)), mask=mask, fill=fill)
    assert torch.allclose(tokens, again, atol=1e-5)


def test_simmim_masks_whole_squares() -> None:
    task = task_on("simmim")
    batch = task.transform(canvases(torch.rand(16, 3, 36, 36)))
    squares = batch["mask"].view(16, 4, 2, 4, 2)
    assert task.reasons() == {"mask_patch": "8 px of 32"}
    assert torch.equal(squares.any(dim=4).any(dim=2), squares.all(dim=4).all(dim=2))
    assert (batch["mask"].sum(dim=1) == 40).all()  # 60% of 16 squares, rounded, of 4 patches
    expected = sum(
        float((value - patchify(batch["image"], 4)[sample, place]).abs().mean())
        for sample in range(16)
        for value, place in zip(batch["target"][sample] + 0.5, batch["masked"][sample], strict=True)
    )
    assert float(task.loss(batch["target"] + 0.5, batch)) == pytest.approx(expected / 16 / 40, rel=1e-4)


@pytest.mark.parametrize(("patch", "size"), [(6, 32), (12, 32), (32, 32)])
def test_simmim_refuses_squares_that_do_not_fill_the_image(patch: int, size: int) -> None:
    with pytest.raises(SslkitError, match="--mask-patch"):
        task_on("simmim", size=size, mask_patch=patch)


def test_simmim_error_share_is_one_for_the_mean_color() -> None:
    task = task_on("simmim")
    batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
    colors = patchify(batch["image"], 4).unflatten(2, (-1, 3)).mean(dim=2)
    visible = torch.stack([colors[sample][~batch["mask"][sample]].mean(dim=0) for sample in range(4)])
    baseline = visible[:, None].repeat(1, batch["target"].shape[1], 16)
    assert torch.allclose(task.metrics(baseline, batch)["error_share"], torch.ones(4), atol=1e-4)
    assert task.metrics(batch["target"], batch)["error_share"].max() == 0


@pytest.mark.parametrize("name", ["beit", "cae"])
def test_codes_are_the_tokenizers(name: str, tmp_path: Path) -> None:
    task = task_on(name, tokenizer=example_tokenizer(tmp_path))
    task.train()
    assert not any(module.training for module in task.tokenizer.modules())
    batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
    every = task.tokenizer(batch["image"])
    vectors, codes = task.tokenizer.tokenizer(task.tokenizer.encoder, batch["image"]), task.tokenizer.tokenizer.codebook.codes
    assert every.shape == (4, 64) and len(every.unique()) > 3
    for sample in range(4):
        for place in range(64):
            distances = [float((vectors[sample, place] - code).square().sum()) for code in codes]
            assert distances[int(every[sample, place])] == pytest.approx(min(distances), rel=1e-4)
        assert torch.equal(batch["code"][sample], every[sample, batch["masked"][sample]])
    assert batch["masked"].shape[1] == (26 if name == "beit" else 32)


@pytest.mark.parametrize("name", ["beit", "cae"])
def test_tokenizers_that_are_missing_or_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SslkitError, match="no tokenizer was given") as error:
        task_on(name)
    assert f"sslkit pretrain vqvae --data DATA; then: sslkit pretrain {name} --data DATA --tokenizer" in str(error.value.hint)
    with pytest.raises(SslkitError, match="was trained by check and contains no tokenizer"):
        task_on(name, tokenizer=example_checkpoint(tmp_path))
    with pytest.raises(SslkitError, match="it takes 32 px and 3 channels, but the data has 64 px"):
        task_on(name, size=64, tokenizer=example_tokenizer(tmp_path))
    task_class, data = load_task(name), DataInfo(64, 32)
    coarse = RecipeBuilder(recipe_for("vit_micro", 32, 3, {**SMALL["vit_micro"], "patch": "8"}), data)()
    with pytest.raises(SslkitError, match="its grid is 8×8, but the encoder has 4×4 patches"):
        task_class(task_class.Options(tokenizer=example_tokenizer(tmp_path)), coarse, data)


def test_cae_aligns_with_the_encoding_of_masked_patches(tmp_path: Path) -> None:
    task = task_on("cae", tokenizer=example_tokenizer(tmp_path))
    batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
    output = task.predict(batch)
    assert not output["latent_target"].requires_grad
    assert torch.allclose(output["latent_target"], task.encoder.tokens(batch["image"], keep=batch["masked"])[:, 1:], atol=1e-5)
    terms = task.loss(output, batch)
    assert torch.allclose(terms["alignment"], 2 * F.mse_loss(output["latent"], output["latent_target"]))


@pytest.mark.parametrize("target", ["pixels", "normalized", "pca"])
def test_mae_preview_inverts_the_target(target: str) -> None:
    task = task_on("mae", target=target, **({"components": 48} if target == "pca" else {}))
    if target == "pca":
        task.axes.copy_(torch.linalg.qr(torch.randn(48, 48))[0])
        task.mean_patch.copy_(torch.rand(48))
    batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
    preview = task.preview(batch, batch["target"])
    assert preview.shape == (4, 3, 3, 32, 32)
    assert torch.allclose(preview[:, 2], preview[:, 0], atol=1e-4) and torch.equal(preview[:, 0], batch["image"])
    assert not torch.equal(preview[:, 1], preview[:, 0])
