"""Contrastive tasks: previews, memory, losses and refused options."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors import safe_open

from sslkit import Clock, DataInfo, SslkitError, build_encoder
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.image.views import Views
from sslkit.tasks.load import load_task
from sslkit.testing.bench import Bench, compare_traces
from tests.canvases import canvases

TWO_VIEWS = ("simclr", "moco", "margin", "mocov3")


@pytest.mark.parametrize("name", TWO_VIEWS)
def test_preview_shows_the_two_views_as_the_encoder_gets_them(build: Callable[..., Any], name: str) -> None:
    task = build(name)
    batch = task.transform(canvases(torch.rand(3, 3, 36, 36)))
    assert torch.equal(task.preview({**batch, "original": torch.rand(3, 3, 32, 32)}, None), batch["image"])
    assert len(task.preview_columns) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["moco", "--queue", 8], "--queue: 8 is smaller than the batch size of 16 (use at least 16)"),
        (["swav", "--queue", 8], "--queue: 8 is smaller than the batch size of 16 (use at least 16)"),
        (["moco", "--variant", "v3"], "--variant: v3 is a separate task: use sslkit pretrain mocov3 (got v3)"),
        (["moco", "--variant", "v1", "--blur", 0.5], "--blur: v1 has a fixed color jitter and no blur"),
        (
            ["byol", "--color-strength", "0.4/0.4"],
            "--color-strength: should be a number from 0 to 2, or four as 0.4/0.4/0.2/0.1",
        ),
        (["byol", "--blur", "1/2"], "--blur: should be a number from 0 to 1, or two or three as 1/0.1/0.5"),
        (["simclr", "--crop-scale", 0.001], "--crop-scale: 0.001 of an image of 16 px is a crop of one pixel"),
        (["swav", "--small-scale", 0.001], "--small-scale: 0.001 of an image of 16 px is a crop of one pixel"),
        (["swav", "--small-size", 1], "--small-size: should be"),
        (["swav", "--crops", "1+3"], "--crops: should be Large and small crops"),
        (["swav", "--prototypes", 1000], "--prototypes: 1,000 exceeds the 48 training samples (use at most 48)"),
        (
            ["msn", "--prototypes", 1000, "--encoder", "vit_micro", "--encoder-option", "width=32"],
            "--prototypes: 1,000 exceeds the 48 training samples",
        ),
        (["msn"], "--encoder: msn requires tokens"),
        (["cpc", "--size", 8], "--size: images of 8 px are too small to cut into patches"),
        (["pirl", "--size", 8], "--size: images of 8 px give nine tiles of only 2 px"),
    ],
)
def test_invalid_options_are_refused_in_one_line(
    sslkit: Callable[..., Any], digits: Path, tmp_path: Path, quick: list[str], flags: list[Any], message: str
) -> None:
    size = [] if "--size" not in flags else flags[flags.index("--size") :]
    flags_of_quick = [flag for flag in quick if not ("--encoder" in flags and flag in quick[:4])]
    run = sslkit(
        "pretrain", flags[0], "--data", digits, *flags_of_quick, *flags[1:], *size, "--steps", 1, "--out", tmp_path / "run"
    )
    assert run.code == 2 and message in run.err and not (tmp_path / "run" / "model.safetensors").exists()


def test_small_numbers_are_numbers(build: Callable[..., Any]) -> None:
    """Also those that Python writes with an exponent."""
    views = build("simclr", color_strength=1e-5, blur=1e-6).views
    assert views.jitter == pytest.approx((8e-6, 8e-6, 8e-6, 2e-6)) and views.blur == (1e-6, 1e-6, 1e-6)


def test_views_differ_in_blur_and_solarization_only_where_configured(build: Callable[..., Any]) -> None:
    byol, large, simclr = build("byol"), build("byol", size=96).views, build("simclr", size=96).views
    assert byol.views.blur == (0, 0, 0) and large.blur[:2] == (1.0, 0.1) and simclr.blur == (0.5, 0.5, 0.5)
    assert byol.views.solarize == (0, 0.2, 0) and simclr.solarize == (0, 0, 0)
    dark = build("byol", solarize=1.0, color_strength=0.0, gray=0.0).views.two(canvases(torch.full((4, 3, 36, 36), 0.9)))
    assert torch.allclose(dark[:, 0], torch.tensor(0.9)) and torch.allclose(dark[:, 1], torch.tensor(0.1))


@pytest.mark.parametrize(
    ("name", "jitter", "blur"),
    [
        ("simclr", (0.8, 0.8, 0.8, 0.2), (0.5, 0.5, 0.5)),
        ("swav", (0.8, 0.8, 0.8, 0.2), (0.5, 0.5, 0.5)),
        ("moco", (0.4, 0.4, 0.4, 0.1), (0.5, 0.5, 0.5)),
        ("simsiam", (0.4, 0.4, 0.4, 0.1), (0.5, 0.5, 0.5)),
        ("obow", (0.4, 0.4, 0.4, 0.1), (0.5, 0.5, 0.0)),
        ("npid", (0.4, 0.4, 0.4, 0.4), (0.0, 0.0, 0.0)),
        ("byol", (0.4, 0.4, 0.2, 0.1), (1.0, 0.1, 0.1)),
        ("mocov3", (0.4, 0.4, 0.2, 0.1), (1.0, 0.1, 0.1)),
        ("dino", (0.4, 0.4, 0.2, 0.1), (1.0, 0.1, 0.5)),
        ("msn", (0.4, 0.4, 0.4, 0.1), (0.5, 0.5, 0.5)),
    ],
)
def test_photographs_are_augmented_as_by_the_authors(name: str, jitter: tuple[float, ...], blur: tuple[float, ...]) -> None:
    options = load_task(name).Options
    large, small = (Views(options(), DataInfo(8, size)) for size in (224, 32))
    assert large.jitter == pytest.approx(jitter) and large.blur == blur
    assert small.jitter == pytest.approx((0.4, 0.4, 0.4, 0.1)) and small.blur == (0, 0, 0)
    assert options.photo_jitter in options.model_fields["color_strength"].description
    assert options.photo_blur in options.model_fields["blur"].description


def test_dino_solarizes_the_second_large_crop_only_and_blurs_each_kind_at_its_own_rate(build: Callable[..., Any]) -> None:
    # Bright stripes on a brighter ground: blur lowers their contrast, solarization the mean.
    image = torch.full((16, 3, 224, 224), 0.9)
    image[..., ::8] = 0.7
    options = {"color_strength": 0.0, "gray": 0.0, "crop_scale": 1.0, "small_scale": 1.0}
    sharp, blurred = (
        build("dino", size=224, solarize=1.0, blur=blur, **options).transform(canvases(image)) for blur in ("0/1/0", "0/1/1")
    )
    first, second = sharp["image"].unbind(1)
    assert torch.all(first > 0.6) and torch.all(second < 0.4) and torch.all(sharp["small"] > 0.6)
    assert float(second.std()) < 0.7 * float(first.std())
    assert float(blurred["small"].std()) < 0.7 * float(sharp["small"].std())
    views = build("dino", size=224, blur="0.3/0.2").crops
    assert views.blur == (0.3, 0.2, 0.2) and views.solarize == (0, 0.2, 0) and build("dino").crops.solarize == (0, 0, 0)


@pytest.mark.parametrize("name", ["npid", "pirl"])
def test_negatives_depend_on_the_seed_and_are_those_of_all_micro_batches(
    name: str, sslkit: Callable[..., Any], digits: Path, tmp_path: Path, quick: list[str]
) -> None:
    def negatives(seed: int, micro_batch: int) -> Any:
        out = tmp_path / f"{name}-{seed}-{micro_batch}"
        flags = ["--negatives", 8, "--steps", 2, "--seed", seed, "--micro-batch", micro_batch, "--out", out]
        assert sslkit("pretrain", name, "--data", digits, *quick, *flags).code == 0
        return torch.load(out / "resume.pt", weights_only=True)["task"]["bank.negatives"].tolist()

    first = negatives(0, micro_batch=16)
    assert first == negatives(0, micro_batch=8) != negatives(1, micro_batch=16)


@pytest.mark.parametrize("name", ["npid", "pirl"])
def test_micro_batches_share_the_negatives_that_a_step_draws(name: str) -> None:
    class FewNegatives(load_task(name)):  # type: ignore[misc]
        class Options(load_task(name).Options):  # type: ignore[misc]
            negatives: int = Field(default=3, ge=1, description="Fewer than samples.")

    with Bench(FewNegatives) as bench:
        compare_traces(bench.exact_steps(), bench.exact_steps(micro_batch=3), "with --micro-batch 3")


@pytest.mark.parametrize("name", ["npid", "pirl"])
def test_the_bank_is_updated_with_the_images_of_the_step(build: Callable[..., Any], name: str) -> None:
    task = build(name, negatives=8).train()
    index = torch.tensor([9, 3, 60])
    batch = task.transform(canvases(torch.rand(3, 3, 36, 36), index=index))
    assert torch.equal(batch["index"], index)
    before = task.bank.rows.clone()
    output = task.predict(batch)
    task.after_step(task.remember(output, batch))
    vector = output if isinstance(output, torch.Tensor) else output["image"]
    assert torch.allclose(task.bank.rows[index], F.normalize((before[index] + vector) / 2, dim=1), atol=1e-6)
    others = torch.ones(64, dtype=torch.bool).index_fill(0, index, False)
    assert torch.equal(task.bank.rows[others], before[others])


def test_npid_penalizes_the_distance_to_the_bank(build: Callable[..., Any]) -> None:
    task = build("npid", proximal=2.0)
    output = F.normalize(torch.randn(2, 128), dim=1)
    terms = task.loss(output, {"index": torch.tensor([0, 5])})
    distances = [float((output[i] - task.bank.rows[row]).square().sum()) for i, row in enumerate((0, 5))]
    assert float(terms["proximal"]) == pytest.approx(sum(distances), rel=1e-5)
    task.clock = Clock(step=1, steps=10)
    again = task.loss(output, {"index": torch.tensor([0, 5])})  # all 64 are negatives, whatever the step
    assert float(again["contrast"]) == pytest.approx(float(terms["contrast"]))


def test_pirl_weighs_image_and_tiles(build: Callable[..., Any]) -> None:
    output = {name: F.normalize(torch.randn(2, 128), dim=1) for name in ("image", "tiles")}
    batch = {"index": torch.tensor([0, 5])}
    for share in (0.0, 0.25, 1.0):
        torch.manual_seed(0)
        task = build("pirl", tiles=share)
        terms = task.loss(output, batch)
        alone = {name: task.loss({"image": output[name], "tiles": output[name]}, batch) for name in output}
        assert float(terms["tiles"]) == pytest.approx(share * sum(map(float, alone["tiles"].values())), rel=1e-5)
        assert float(terms["image"]) == pytest.approx((1 - share) * sum(map(float, alone["image"].values())), rel=1e-5)


def test_cmc_encodes_lightness_and_color_separately(build: Callable[..., Any]) -> None:
    class_of = load_task("cmc")
    data, options = DataInfo(64, 32), class_of.Options()
    recipe = recipe_for("resnet_micro", 32, 3, {"width": "16"})
    task = class_of(options, class_of.build_encoder(options, RecipeBuilder(recipe, data)), data).eval()
    assert task.exports()["encoder"].recipe["concat"][0]["select"] == "l" and task.encoder.width == 128
    image = torch.rand(4, 3, 32, 32)
    gray = image.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    output, darker = task.predict({"image": gray}), task.predict({"image": gray * 0.5})
    assert output.shape == (4, 2, 128)
    assert torch.allclose(output[:, 1], darker[:, 1], atol=1e-3) and not torch.allclose(output[:, 0], darker[:, 0], atol=1e-3)


def test_cmc_needs_color(build: Callable[..., Any]) -> None:
    with pytest.raises(SslkitError, match="images with 1 channels have no color"):
        build("cmc", channels=1)
    problems = {"0-2,4": "no '4'", "l,3": "no l, which is computed from RGB", "2-1,3": "no '2-1'", "x,0": "no 'x'"}
    for views, problem in problems.items():
        with pytest.raises(SslkitError, match=f"--views: {views}: images with 4 channels have {problem}"):
            cmc_of_channels(views)


def cmc_of_channels(views: str) -> Any:
    class_of = load_task("cmc")
    data, options = DataInfo(64, 32, 4), class_of.Options(views=views, color_strength=0)
    recipe = recipe_for("resnet_micro", 32, 4, {"width": "32"})
    return class_of(options, class_of.build_encoder(options, RecipeBuilder(recipe, data)), data)


def test_cmc_of_channels_matches_every_pair() -> None:
    task = cmc_of_channels("0-1,2,3").eval()
    recipe = task.exports()["encoder"].recipe
    assert [(part["select"], part["encoder"]["in_channels"]) for part in recipe["concat"]] == [("0-1", 2), ("2", 1), ("3", 1)]
    assert build_encoder(recipe).in_channels == 4
    image = torch.rand(5, 4, 32, 32)
    output = task.predict({"image": image}).detach()
    changed = task.predict({"image": torch.cat([image[:, :3], torch.rand(5, 1, 32, 32)], dim=1)})
    assert output.shape == (5, 3, 128) and torch.equal(output[:, :2], changed[:, :2])
    assert not torch.allclose(output[:, 2], changed[:, 2])
    expected = torch.zeros(())
    for first in range(3):
        for second in range(3):
            if first != second:
                scores = output[:, first] @ output[:, second].T / 0.07
                expected = expected - torch.stack([F.log_softmax(scores[row], dim=0)[row] for row in range(5)]).mean()
    assert torch.allclose(task.loss(output, {}), expected, rtol=1e-5)
    assert float(task.metrics(output, {})["information_bound_nats"].mean()) == pytest.approx(
        math.log(5) - float(expected) / 6, abs=1e-5
    )


def test_cpc_predicts_rows_below_from_rows_above_only(build: Callable[..., Any]) -> None:
    task = build("cpc").eval()
    patches = task.transform(canvases(torch.rand(2, 3, 36, 36)))["image"]
    assert patches.shape == (2, 49, 3, 16, 16) and task.patch == 8
    changed = patches.clone()
    changed[:, 21:] = torch.rand(2, 28, 3, 16, 16)  # rows 3 to 6
    before, after = task.predict({"image": patches})["prediction"], task.predict({"image": changed})["prediction"]
    assert before.shape == (2, 4, 7, 7, 128)
    assert torch.allclose(before[:, :, :3], after[:, :, :3], atol=1e-5) and not torch.allclose(
        before[:, :, 3], after[:, :, 3], atol=1e-3
    )


def test_cpc_loss_is_low_for_correct_predictions_only(build: Callable[..., Any]) -> None:
    task = build("cpc", negatives=64)
    patch = F.normalize(torch.randn(2, 7, 7, 128), dim=3)
    right = torch.stack([patch.roll(-below, dims=1) for below in (2, 3, 4, 5)], dim=1)  # the patches that many rows below
    wrong = torch.stack([patch.roll(-below, dims=2) for below in (2, 3, 4, 5)], dim=1)
    assert float(task.loss({"patch": patch, "prediction": right}, {})) < 0.2
    assert float(task.loss({"patch": patch, "prediction": wrong}, {})) > 3


@pytest.mark.parametrize("estimator", ["jensen_shannon", "info_nce"])
def test_infomax_matches_positions_to_the_vector_of_their_image(build: Callable[..., Any], estimator: str) -> None:
    task = build("infomax", estimator=estimator, prior=0.0)
    vector = 10 * F.normalize(torch.randn(6, 128), dim=1)
    place = vector[:, None].expand(-1, 4, -1)
    place = place - vector.mean(dim=0)
    right, wrong = ({"vector": vector, "place": places} for places in (place, place.roll(1, 0)))
    assert float(task.loss(right, {})["local"]) < 1 < float(task.loss(wrong, {})["local"])
    assert float(task.metrics(right, {})["accuracy"].min()) == 1 and float(task.metrics(wrong, {})["accuracy"].max()) == 0


def test_infomax_critic_learns_and_code_fools_it(build: Callable[..., Any]) -> None:
    task = build("infomax").train()
    output = task.predict(task.transform(canvases(torch.rand(4, 3, 36, 36))))
    terms = task.loss(output, {})
    terms["critic"].backward(retain_graph=True)
    assert all(p.grad is None for p in task.encoder.parameters()) and task.critic[0].weight.grad.any()
    task.zero_grad()
    terms["prior"].backward()
    assert task.critic[0].weight.grad is None and task.code.weight.grad.any()


def test_obow_words_come_from_the_teacher_and_enter_the_queue(build: Callable[..., Any]) -> None:
    task = build("obow", words=10).train()
    batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
    output = task.predict(batch)
    assert output["student"].shape == (4, 7, 10) and not output["words"].requires_grad
    assert torch.allclose(output["words"].sum(dim=1), torch.ones(4), atol=1e-6)
    task.after_step(task.remember(output, batch))
    assert torch.equal(task.words.rows[:4], output["word"]) and float(task.distance) == pytest.approx(
        float(output["distance"].mean()), rel=1e-5
    )


def test_obow_assigns_a_position_to_its_nearest_word(build: Callable[..., Any]) -> None:
    task = build("obow", words=6, sharpness=100.0)
    torch.manual_seed(0)
    feature_map = torch.randn(2, 64, 2, 2)
    with torch.no_grad():
        task.words.rows.copy_(10 * torch.randn(6, 64))
        task.words.rows[1], task.words.rows[4] = feature_map[0, :, 0, 0], feature_map[0, :, 1, 1]
    words = task._words(feature_map[:1].expand(1, -1, 2, 2), torch.zeros(1, 2))["words"][0]
    assert set(words.topk(2).indices.tolist()) == {1, 4}


def test_mocov3_freezes_the_patch_embedding_and_fits_its_temperature() -> None:
    task_class, data = load_task("mocov3"), DataInfo(64, 32)
    builders = [RecipeBuilder(recipe_for(name, 32), data) for name in ("vit_micro", "resnet_micro")]
    vit, plain = (task_class(task_class.Options(), build(), data) for build in builders)
    frozen = [name for name, parameter in vit.encoder.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.patch_embed.proj.weight", "model.patch_embed.proj.bias"]
    assert all(parameter.requires_grad for parameter in plain.encoder.parameters())
    assert (vit.temperature, plain.temperature) == (0.2, 1.0)


def test_mocov3_heads_are_those_of_the_kind_of_encoder() -> None:
    task_class, data = load_task("mocov3"), DataInfo(64, 32)
    for name, projector, predictor in (
        ("vit_micro", [True, True, False], [True, False]),
        ("resnet_micro", [True, False], [True]),
    ):
        task = task_class(task_class.Options(), RecipeBuilder(recipe_for(name, 32), data)(), data)
        for head, affine in ((task.head, projector), (task.predictor, predictor)):
            assert [layer.affine for layer in head if isinstance(layer, torch.nn.BatchNorm1d)] == affine


def test_momentum_rises_to_one(build: Callable[..., Any]) -> None:
    task = build("byol", momentum=0.5).train()
    for step, kept in ((0, 0.5), (5, 0.75), (10, 1.0)):
        task.clock = Clock(step=step, steps=11)
        old = task.teacher.parts[1][0].weight.clone()
        with torch.no_grad():
            task.head[0].weight.copy_(old + 1)
        task.after_step({})
        assert torch.allclose(task.teacher.parts[1][0].weight, old + 1 - kept, atol=1e-6)
    assert build("byol").reasons() == {"momentum": "0.9000: 1 - 10/steps, clipped to [0.9, 0.996], and rising to 1"}


@pytest.mark.parametrize(("name", "role"), [("dino", "teacher"), ("byol", "student")])
def test_the_checkpoint_records_whose_weights_it_keeps(
    sslkit: Callable[..., Any], digits: Path, tmp_path: Path, quick: list[str], name: str, role: str
) -> None:
    flags = ["--data", digits, *quick, "--steps", 2, "--out", tmp_path / "run"]
    assert sslkit("pretrain", name, *flags).code == 0
    with safe_open(tmp_path / "run" / "model.safetensors", "pt") as file:
        assert f'"role": "{role}"' in str(file.metadata())
        first = file.get_tensor("encoder.stem.weight")
    state = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["task"]
    weights = {"teacher": state["teacher.parts.0.stem.weight"], "student": state["encoder.stem.weight"]}
    assert torch.equal(first, weights[role]) and not torch.equal(weights["teacher"], weights["student"])
