"""Generative tasks: targets, which loss trains which network, codebooks against loops, causality of pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_run import FakeRun

from sslkit import DataInfo, SslkitError, read_model
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.image.tokenizer import read_tokenizer
from sslkit.nn import Codebook, error_share
from sslkit.tasks.load import load_task
from tests.canvases import canvases

IGPT = {"width": "32", "depth": "4", "heads": "1"}


def igpt(**options: Any) -> Any:
    task_class, data = load_task("igpt"), DataInfo(64, 32)
    parsed = task_class.Options(**options)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("igpt", 32, 3, IGPT), data))
    return task_class(parsed, encoder, data).eval()


def test_error_share_is_one_for_the_mean_color() -> None:
    true = torch.rand(3, 3, 8, 8)
    assert torch.allclose(error_share(true.mean(dim=(2, 3), keepdim=True).expand_as(true), true), torch.ones(3))
    assert error_share(true, true).max() == 0


def test_autoencoder_code_is_narrower_than_the_image(build: Callable[..., Any]) -> None:
    with pytest.raises(SslkitError, match="--code: 3072 is not a bottleneck for images of 3072 values"):
        build("autoencoder", code=3072)


def test_autoencoder_noise_zeroes_whole_pixels_of_the_input_only(build: Callable[..., Any]) -> None:
    batch = build("autoencoder", noise=0.3).transform(canvases(0.1 + torch.rand(8, 3, 36, 36)))
    zero = (batch["input"] == 0).all(dim=1)
    assert float(zero.float().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(batch["input"].amax(dim=1) == 0, zero) and batch["image"].min() > 0


def test_autoencoder_sparsity_counts_the_code(build: Callable[..., Any]) -> None:
    task = build("autoencoder", sparsity=0.5)
    batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
    output = task.predict(batch)
    terms = task.loss(output, batch)
    assert output["code"].min() == 0 and output["code"].shape == (4, 64)
    assert float(terms["sparsity"].detach()) == pytest.approx(0.5 * float(output["code"].detach().abs().mean()))


def test_autoencoder_layerwise_trains_one_stage_after_the_other(build: Callable[..., Any]) -> None:
    with pytest.raises(SslkitError, match="--layerwise and --sparsity"):
        build("autoencoder", layerwise=True, sparsity=0.1)
    task = build("autoencoder", layerwise=True)
    (group,) = task.param_groups()
    assert group["fixed_lr"] and len(group["params"]) == len(list(task.parameters()))
    names = [name for stage in task.stages for name in stage]
    assert len(task.stages) == 4 and len(names) == len(set(names))
    assert set(names) == {f"encoder.{name}" for name, _ in task.encoder.named_parameters()}
    task.clock.steps = 101
    for stage, step in enumerate((10, 30, 60, 100)):
        task.clock.step = step
        task.zero_grad()
        batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
        output = task.predict(batch)
        task.loss(output, batch)["reconstruction"].backward()
        moved = {f"encoder.{name}" for name, p in task.encoder.named_parameters() if p.grad is not None}
        assert batch["stage"] == str(stage) and moved == task.stages[stage]
        assert output["target"].shape == output["reconstruction"].shape and not output["target"].requires_grad


def test_autoencoder_layerwise_noise_hides_what_a_stage_reads(build: Callable[..., Any]) -> None:
    task = build("autoencoder", layerwise=True, noise=0.4).eval()
    task.clock.steps, task.clock.step = 101, 60
    batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
    maps = task.encoder.layers(batch["image"])
    assert torch.equal(batch["input"], batch["image"]) and batch["kept"].shape == maps[1].shape
    assert float((~batch["kept"]).float().mean()) == pytest.approx(0.4, abs=0.03)
    output = task.predict(batch)
    corrupted = task.encoder.sequence()[2](maps[1] * batch["kept"])
    assert torch.allclose(output["target"], maps[1]) and not output["target"].requires_grad
    assert torch.allclose(output["reconstruction"], task.head["2"](corrupted), atol=1e-5)
    assert torch.equal(task.encoder.layers(batch["image"])[3], maps[3])  # features are read without noise
    task.clock.step = 10
    first = task.transform(canvases(0.1 + torch.rand(4, 3, 36, 36)))
    assert "kept" not in first and (first["input"] == 0).any()
    task_class, data = load_task("autoencoder"), DataInfo(64, 32)
    encoder = RecipeBuilder(recipe_for("resnet18", 32), data)()
    with pytest.raises(SslkitError, match="--noise: noise between the stages of this encoder is not possible"):
        task_class(task_class.Options(layerwise=True, noise=0.4), encoder, data)


@pytest.mark.slow
def test_autoencoder_layerwise_compiles_for_each_stage(build: Callable[..., Any]) -> None:
    task = build("autoencoder", layerwise=True)
    compiled = torch.compile(task.predict, backend="aot_eager", fullgraph=True)
    task.clock.steps = 101
    for step in (10, 60, 100):
        task.clock.step = step
        batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
        assert torch.allclose(compiled(batch)["reconstruction"], task.predict(batch)["reconstruction"], atol=1e-4)


def test_autoencoder_layerwise_needs_feature_maps() -> None:
    task_class, data = load_task("autoencoder"), DataInfo(64, 32)
    encoder = RecipeBuilder(recipe_for("vit_micro", 32, 3, {"width": "32", "depth": "2"}), data)()
    with pytest.raises(SslkitError, match="--layerwise: the encoder's layers are not feature maps"):
        task_class(task_class.Options(layerwise=True), encoder, data)


def test_vae_divergence_is_that_of_normal_distributions(build: Callable[..., Any]) -> None:
    task = build("vae", beta=2.0, deviation=0.5)
    batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
    output = task.predict(batch)
    codes = torch.distributions.Normal(output["mean"], (output["log_variance"] / 2).exp())
    expected = torch.distributions.kl_divergence(codes, torch.distributions.Normal(0.0, 1.0)).sum(dim=1)
    terms = task.loss(output, batch)
    assert torch.allclose(task.metrics(output, batch)["code_information_nats"], expected, atol=1e-4)
    assert torch.allclose(terms["divergence"], 2 * expected.mean() / 3072, rtol=1e-4)
    assert torch.allclose(terms["reconstruction"], F.mse_loss(output["reconstruction"], batch["image"]) / 0.5)


def test_codebook_against_a_loop() -> None:
    torch.manual_seed(0)
    book, vectors = Codebook(4, 3), torch.randn(100, 3)
    book.initialize(torch.randn(20, 3), 40)
    assert book.counts.tolist() == [10.0] * 4
    counts, sums, codes = book.counts.clone(), book.sums.clone(), book.codes.clone()
    nearest = [min(range(4), key=lambda k: float((codes[k] - vector).square().sum())) for vector in vectors]
    assert book.nearest(vectors).tolist() == nearest
    book.update(vectors, decay=0.9)
    for code in range(4):
        members = vectors[[place for place, k in enumerate(nearest) if k == code]]
        count, total = 0.9 * counts[code] + 0.1 * len(members), 0.9 * sums[code] + 0.1 * members.sum(dim=0)
        assert torch.allclose(book.codes[code], total / count, atol=1e-5)
    shares = book.counts / book.counts.sum()
    assert float(book.perplexity()) == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-4)


def test_dead_codes_begin_anew_at_a_vector() -> None:
    book, vectors = Codebook(4, 3), torch.randn(100, 3)
    book.initialize(vectors, 100)
    book.codes[2] = 1000.0
    for _ in range(60):
        book.update(vectors, decay=0.9)
    assert book.codes[2].abs().max() < 10 and (book.counts > 1).all()


def test_vqvae_gradient_passes_the_codes_and_commits_the_vectors(build: Callable[..., Any]) -> None:
    torch.manual_seed(0)  # for other seeds, a value may round to the other side of a ReLU
    task = build("vqvae", codes=8, norm="none")
    task.before_epoch(FakeRun(torch.rand(64, 3, 36, 36)))
    batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
    output = task.predict(batch)
    assert output["vector"].shape == (4, 64, 64) and output["code"].shape == (4, 64)
    (gradient,) = torch.autograd.grad(task.loss(output, batch)["reconstruction"], output["vector"], retain_graph=True)
    codes = task.tokenizer.codebook.codes[output["code"]].requires_grad_()
    decoded = task.head(codes.transpose(1, 2).unflatten(2, (8, 8)))
    assert torch.allclose(decoded, output["reconstruction"], atol=1e-4)
    (expected,) = torch.autograd.grad(F.mse_loss(decoded, batch["image"]) / 0.0625, codes)
    assert torch.allclose(gradient, expected, atol=1e-6)
    with pytest.raises(SslkitError, match="--grid: the encoder has no feature map of side 7 at 32 px, only 32, 16, 8, 4"):
        build("vqvae", grid=7)


def test_a_run_of_vqvae_is_a_tokenizer_for_beit(
    sslkit: Callable[..., Any], digits: Path, quick: list[str], tmp_path: Path
) -> None:
    ran = sslkit(
        "pretrain", "vqvae", "--data", digits, *quick, "--size", 16, "--codes", 16, "--steps", 2, "--out", tmp_path / "t"
    )
    assert ran.code == 0, ran.err
    path = tmp_path / "t" / "model.safetensors"
    assert {name.partition(".")[0] for name in read_model(path).tensors} == {"encoder", "tokenizer"}
    image = torch.rand(2, 3, 16, 16)
    tokenizer = read_tokenizer(path, "beit", DataInfo(64, 16), (4, 4))
    assert tokenizer(image).shape == (2, 16) and tokenizer.num_codes == 16
    arguments = ["--data", digits, "--size", 16, "--steps", 2, "--batch-size", 16, "--workers", 0, "--tokenizer", path]
    small = ["--encoder", "vit_micro", "--encoder-option", "width=32", "--encoder-option", "depth=1"]
    ran = sslkit("pretrain", "beit", *arguments, *small, "--out", tmp_path / "beit")
    assert ran.code == 0, ran.err
    ran = sslkit("pretrain", "beit", *arguments[:-2], *small, "--out", tmp_path / "none")
    assert ran.code == 2 and "sslkit pretrain vqvae --data DATA" in ran.err and not (tmp_path / "none").exists()


def test_igpt_predicts_no_pixel_from_itself_or_later_ones() -> None:
    encoder = igpt().encoder
    codes = torch.randint(512, (2, 256))
    outputs = torch.stack(encoder.code_layers(codes))
    for place in (0, 1, 17, 100, 255):
        changed = codes.clone()
        changed[:, place] = (changed[:, place] + 7) % 512
        again = torch.stack(encoder.code_layers(changed))
        assert torch.equal(again[:, :, : place + 1], outputs[:, :, : place + 1])
        if place < 255:
            assert not torch.allclose(again[:, :, place + 1], outputs[:, :, place + 1])


def test_igpt_features_are_those_of_the_middle() -> None:
    encoder, image = igpt().encoder, torch.rand(2, 3, 32, 32)
    assert torch.allclose(encoder(image), encoder.layers(image)[1].mean(dim=1), atol=1e-5)


@pytest.mark.slow
def test_igpt_palette_is_the_datas_and_is_kept(sslkit: Callable[..., Any], tmp_path: Path) -> None:
    colors = np.array([[250, 10, 10], [10, 240, 10], [20, 20, 230], [128, 128, 128]], dtype=np.uint8)
    indices = np.random.default_rng(0).integers(0, 4, (48, 16, 16))
    np.save(tmp_path / "images.npy", colors[indices])
    small = ["--encoder-option", "width=32", "--encoder-option", "depth=2", "--encoder-option", "heads=1"]
    arguments = ["--data", tmp_path / "images.npy", "--size", 16, "--steps", 2, "--batch-size", 16, "--workers", 0, *small]
    ran = sslkit("pretrain", "igpt", *arguments, "--colors", 4, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    model = read_model(tmp_path / "run" / "model.safetensors")
    palette = (255 * model.part("encoder")["palette"]).round().to(torch.int64)
    assert sorted(palette.tolist()) == sorted(colors.astype(int).tolist())
    codes = model.build_encoder().codes(torch.tensor(colors[indices[:3]] / 255).permute(0, 3, 1, 2).float())
    assert torch.equal(palette[codes].view(3, 16, 16, 3), torch.tensor(colors[indices[:3]].astype(int)))
    ran = sslkit("pretrain", "igpt", *arguments, "--colors", 5, "--out", tmp_path / "more")
    assert ran.code == 2 and "--colors: 5 exceeds the 4 colors of the data" in ran.err
    ran = sslkit("pretrain", "igpt", "--data", tmp_path / "images.npy", "--encoder", "resnet_micro", "--out", tmp_path / "no")
    assert ran.code == 2 and "igpt requires palette and resnet_micro provides" in ran.err


def test_igpt_completes_the_lower_half_only() -> None:
    task = igpt(side=8, colors=16)
    batch = task.transform(canvases(torch.rand(3, 3, 36, 36)))
    preview = task.preview(batch, task.predict(batch))
    assert preview.shape == (3, 3, 3, 32, 32)
    assert torch.allclose(preview[:, 1, :, :14], preview[:, 2, :, :14])  # except where resizing blends the border
    assert not torch.allclose(preview[:, 1, :, 20:], preview[:, 2, :, 20:])


def test_bigan_each_term_trains_its_network(build: Callable[..., Any]) -> None:
    task = build("bigan", norm="none")
    batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
    output = task.predict(batch)
    assert torch.equal(output["real"], output["real_frozen"]) and torch.equal(output["fake"], output["fake_frozen"])
    terms = task.loss(output, batch)
    critic = list(task.critic.parameters())
    others = [*task.encoder.parameters(), *task.head.parameters()]
    assert torch.autograd.grad(terms["generator"], critic, retain_graph=True, allow_unused=True) == (None,) * len(critic)
    assert torch.autograd.grad(terms["critic"], others, retain_graph=True, allow_unused=True) == (None,) * len(others)
    assert all(gradient is not None for gradient in torch.autograd.grad(terms["generator"], others, retain_graph=True))
    assert all(gradient.any() for gradient in torch.autograd.grad(terms["critic"], critic))
