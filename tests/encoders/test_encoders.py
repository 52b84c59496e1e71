"""Encoders: recipes, shapes, tokens, refusals."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sslkit import DataInfo
from sslkit.contract.errors import SslkitError
from sslkit.encoders.build import build_encoder, check_requirements, concat, scale_width
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.initial import load_initial
from sslkit.registry import load_modality
from sslkit.tasks.load import load_task
from sslkit.text.encoders.word_vectors import encode_words
from tests.canvases import canvases


def built(name: str, size: int = 32, options: dict[str, str] | None = None, channels: int = 3) -> Any:
    return build_encoder(recipe_for(name, size, channels, options)).eval()


@pytest.mark.parametrize(
    ("name", "sizes"), [("resnet_micro", (16, 32, 45)), ("vit_micro", (16, 32, 40)), ("resnet18", (32, 48))]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size(name: str, sizes: tuple[int, ...], channels: int) -> None:
    encoder = built(name, channels=channels)
    for size in sizes:
        assert encoder(torch.rand(2, channels, size, size)).shape == (2, encoder.width)
        feature_map = encoder.feature_map(torch.rand(2, channels, size, size))
        assert feature_map.shape[:2] == (2, encoder.width)


def test_an_encoder_by_its_name() -> None:
    import sslkit

    assert sslkit.build_encoder("resnet_micro").recipe["size"] == 224
    assert sslkit.build_encoder("vit_micro", size=32, channels=1)(torch.rand(2, 1, 32, 32)).shape == (2, 128)
    with pytest.raises(SslkitError, match="resnet_macro"):
        sslkit.build_encoder("resnet_macro")


def test_the_package_lists_its_names() -> None:
    import sslkit

    assert {"pretrain", "PretrainSpec", "build_encoder", "load", "__version__"} < set(dir(sslkit))
    assert all(getattr(sslkit, name) is not None for name in dir(sslkit))


def test_resnet_micro_is_the_network_of_the_reference_figures() -> None:
    encoder = built("resnet_micro")
    assert [tuple(layer.shape[1:]) for layer in encoder.layers(torch.rand(1, 3, 32, 32))] == [
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
        (128, 4, 4),
    ]
    assert built("resnet_micro", options={"width": "8"}).width == 64


def test_features_are_the_mean_of_the_map() -> None:
    encoder, image = built("resnet_micro"), torch.rand(2, 3, 32, 32)
    assert torch.allclose(encoder(image), encoder.feature_map(image).mean(dim=(2, 3)), atol=1e-6)


def test_normalization_is_inside() -> None:
    encoder, image = built("resnet_micro"), torch.rand(2, 3, 32, 32)
    shifted = built("resnet_micro")
    shifted.load_state_dict(encoder.state_dict())
    shifted.mean += 0.1
    assert torch.allclose(encoder(image), shifted(image + 0.1), atol=1e-4)


def test_tokens() -> None:
    encoder, image = built("vit_micro"), torch.rand(2, 3, 32, 32)
    tokens = encoder.tokens(image)
    assert tokens.shape == (2, 1 + 64, 128)
    assert torch.equal(encoder(image), encoder.pool(tokens))
    assert len(encoder.layers(image)) == 4
    assert torch.equal(encoder.layers(image)[-1], tokens)
    assert torch.equal(encoder.feature_map(image)[0, :, 1, 2], tokens[0, 1 + 8 + 2])


def test_kept_tokens_do_not_depend_on_others() -> None:
    encoder, image = built("vit_micro"), torch.rand(2, 3, 32, 32)
    keep = torch.stack([torch.randperm(64)[:16] for _ in range(2)])
    kept = encoder.tokens(image, keep=keep)
    assert kept.shape == (2, 1 + 16, 128)
    other = image.clone()
    dropped = next(i for i in range(64) if i not in keep[0])
    row, column = divmod(dropped, 8)
    other[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.5
    assert torch.equal(encoder.tokens(other, keep=keep), kept)
    everything = torch.arange(64).expand(2, 64)
    assert torch.allclose(encoder.tokens(image, keep=everything), encoder.tokens(image), atol=1e-6)


def test_masked_tokens_do_not_leak_their_pixels() -> None:
    encoder, image = built("vit_micro"), torch.rand(2, 3, 32, 32)
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[:, 9] = True
    fill = torch.randn(128)
    masked = encoder.tokens(image, mask=mask, fill=fill)
    other = image.clone()
    other[:, :, 4:8, 4:8] = 0
    assert torch.equal(encoder.tokens(other, mask=mask, fill=fill), masked)
    assert not torch.equal(masked, encoder.tokens(image))


def test_size_that_patches_do_not_divide() -> None:
    with pytest.raises(SslkitError, match="not a multiple"):
        built("vit_micro")(torch.rand(1, 3, 30, 30))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_timm_vit_has_tokens_at_any_size(name: str) -> None:
    encoder = built(name, size=64)
    assert encoder.tokens(torch.rand(1, 3, 48, 48)).shape == (1, 1 + 9, 192)


def test_small_stem() -> None:
    assert built("resnet18", size=32).model.conv1.kernel_size == (3, 3)
    assert built("resnet18", size=96).model.conv1.kernel_size == (7, 7)
    assert recipe_for("resnet18", 32)["stem"] == "small"
    assert recipe_for("resnet18", 32, pretrained=True)["stem"] == "standard"


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:mobilenet_v3_small", "torchvision:convnext_tiny"])
def test_torchvision(name: str) -> None:
    encoder = built(name, size=64)
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, encoder.width)


def test_user_factory_needs_the_users_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_encoders.py").write_text(
        "import torch\ndef flat(width=5):\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(width))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = recipe_for("my_encoders:flat", 8, 3, {"width": "6"})
    with pytest.raises(SslkitError, match="allow it with --encoder my_encoders:flat"):
        build_encoder(recipe)
    assert "my_encoders" not in sys.modules
    assert build_encoder(recipe, allowed="my_encoders:flat")(torch.rand(2, 3, 8, 8)).shape == (2, 6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet_mikro", {}, "did you mean resnet_micro"),
        ("resnet19", {}, "did you mean resnet1"),
        ("torchvision:resnet19", {}, "did you mean"),
        ("resnet_micro", {"color": "red"}, "has no option color .known: width"),
        ("resnet_micro", {"width": "4"}, "multiple of 8"),
        ("vit_micro", {"dept": "3"}, "did you mean depth"),
        ("vit_micro", {"depth": "two"}, "--encoder-option: vit_micro cannot be built with depth=two"),
        ("vit_micro", {"heads": "3"}, "cannot be built with heads=3"),
        ("resnet18.bogus", {}, "cannot be built|unknown"),
        ("hf_hub:someone/model", {}, "not supported"),
        ("local-dir:/tmp", {}, "not supported"),
        ("os:system", {}, "would be imported"),
    ],
)
def test_refusals(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(SslkitError, match=message):
        built(name, options=options)


def test_unknown_entries_of_a_recipe() -> None:
    with pytest.raises(SslkitError, match="is not one of sslkit's: encoder: Field required"):
        build_encoder({**recipe_for("resnet_micro", 32), "select": "l"})


def test_missing_abilities_are_named() -> None:
    with pytest.raises(SslkitError, match="mae requires tokens and resnet_micro provides pooled, feature_map, layers"):
        check_requirements(built("resnet_micro"), "resnet_micro", ("tokens",), "mae", load_modality("image"))
    check_requirements(built("vit_micro"), "vit_micro", ("tokens",), "mae", load_modality("image"))


def test_resnet_micro_needs_no_timm() -> None:
    code = "import sys; from sslkit import build_encoder; from sslkit.encoders.recipe import recipe_for; "
    code += (
        "build_encoder(recipe_for('resnet_micro', 32)); assert 'timm' not in sys.modules and 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def half(select: str, name: str = "resnet_micro", size: int = 32) -> Any:
    return RecipeBuilder(recipe_for(name, size), DataInfo(1, size))(select=select, width=0.5)


def test_an_encoder_may_select_channels() -> None:
    image = torch.rand(2, 3, 32, 32)
    gray = image.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    for select, channels in (("l", 1), ("ab", 2), ("gray", 1)):
        encoder = half(select).eval()
        assert encoder.recipe == {
            "select": select,
            "in_channels": 3,
            "encoder": {**recipe_for("resnet_micro", 32, channels), "options": {"width": 8}},
        }
        channel = encoder.channels(image)
        assert channel.shape == (2, channels, 32, 32) and float(channel.min()) > -0.05 and float(channel.max()) < 1.05
        assert encoder(image).shape == (2, 64) and encoder.feature_map(image).shape == (2, 64, 4, 4)
    assert torch.allclose(half("ab").channels(gray), torch.tensor(0.5), atol=2e-3)


def test_encoders_side_by_side() -> None:
    both = concat(half("l"), half("ab")).eval()
    image = torch.rand(2, 3, 32, 32)
    assert both.width == 128 and both(image).shape == (2, 128)
    assert torch.equal(both(image)[:, :64], both.encoders[0](image))
    assert torch.allclose(both(image), both.feature_map(image).mean(dim=(2, 3)), atol=1e-6)
    assert [layer.shape[1] for layer in both.layers(image)] == [16, 32, 64, 128]
    again = build_encoder(both.recipe).eval()
    again.load_state_dict(both.state_dict())
    assert torch.equal(again(image), both(image))
    with pytest.raises(SslkitError, match=r"take images of \[1, 3\] channels"):
        concat(built("resnet_micro", channels=1), half("l"))


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [("vit_micro", 32, 64), ("resnet18", 32, 256), ("resnet50", 96, 1024), ("vit_small_patch16_224", 64, 192)],
)
def test_half_as_wide(name: str, size: int, width: int) -> None:
    encoder = half("l", name, size).eval()
    assert encoder.width == width and encoder(torch.rand(1, 3, size, size)).shape == (1, width)
    assert build_encoder(encoder.recipe).width == width


def test_encoders_without_a_width_are_refused() -> None:
    for name in ("mobilenetv3_small_100", "torchvision:resnet18"):
        with pytest.raises(SslkitError, match="cannot be made narrower"):
            half("l", name)


@pytest.mark.parametrize(
    "recipe",
    [
        {"select": "red", "encoder": recipe_for("resnet_micro", 32, 1)},
        {"select": "l", "encoder": recipe_for("resnet_micro", 32, 3)},
        {"select": "l", "encoder": {"select": "l", "encoder": recipe_for("resnet_micro", 32, 1)}},
        {"concat": [{"concat": [recipe_for("resnet_micro", 32)]}]},
        {"concat": []},
        {"concat": "resnet_micro"},
        {"concat": [recipe_for("resnet_micro", 32)], "more": 1},
        {"select": "l", "encoder": {**recipe_for("os:getcwd", 32, 1)}},
        {"select": ["l"], "encoder": recipe_for("resnet_micro", 32, 1)},
    ],
    ids=lambda recipe: str(recipe)[:40],
)
def test_other_trees_are_refused(recipe: Any) -> None:
    with pytest.raises(SslkitError):
        build_encoder(recipe)


def test_an_encoder_of_another_modality_is_refused() -> None:
    with pytest.raises(SslkitError, match="word_vectors is an encoder of text data, and rotation needs one of image data"):
        check_requirements(built("word_vectors", channels=5), "word_vectors", ("pooled",), "rotation", load_modality("image"))


def test_word_vectors() -> None:
    words = ["the", "été"]
    encoder = built("word_vectors", 4, {"width": "8", "letters": str(len(encode_words(words)))}, channels=2)
    assert encoder.words == []
    encoder.spell(words)
    assert encoder.words == words
    sample = torch.tensor([[0, 1, 5, -1], [9, 9, 9, 9]])
    assert torch.allclose(encoder(sample)[0], encoder.table.weight.mean(dim=0)) and not encoder(sample)[1].any()
    assert encoder.tokens(sample).shape == (2, 4, 8)


def test_colors_are_those_of_float32_under_autocast() -> None:
    gray = torch.linspace(0, 1, 32 * 32).view(1, 1, 32, 32).expand(1, 3, -1, -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        color = half("ab").channels(gray)
    assert color.dtype == torch.float32 and float((color - 0.5).abs().max()) < 1e-3


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "cache_dir"])
def test_a_recipe_names_no_file(option: str) -> None:
    with pytest.raises(SslkitError, match=f"--encoder-option: {option} is not for an encoder|{option} is not one"):
        build_encoder({**recipe_for("resnet18", 32), "options": {option: "/etc/passwd"}})


@pytest.mark.parametrize(
    "changes", [{"name": 5}, {"options": {"act_layer": "zzz"}}, {"options": {"block": "a"}}, {"options": 3}]
)
def test_odd_recipes_are_one_line(changes: dict[str, Any]) -> None:
    with pytest.raises(SslkitError):
        build_encoder({**recipe_for("resnet18", 32), **changes})


def test_an_odd_width_is_one_line() -> None:
    for name in ("resnet_micro", "resnet50"):
        with pytest.raises(SslkitError):
            RecipeBuilder(recipe_for(name, 32, options={"width": "abc"}), DataInfo(1, 32))(select="l", width=0.5)


@pytest.mark.parametrize("name", ["resnet_micro", "vit_micro", "resnet18", "vit_tiny_patch16_224", "torchvision:resnet18"])
def test_stages_hold_every_parameter_once(name: str) -> None:
    encoder = built(name, size=64)
    identities = [id(parameter) for stage in encoder.stages() for parameter in stage]
    assert sorted(identities) == sorted(id(parameter) for parameter in encoder.parameters())
    both = concat(encoder, built("vit_micro", size=64))
    assert len(both.stages()) == max(len(encoder.stages()), 5)
    assert sum(map(len, both.stages())) == len(list(both.parameters()))


def test_stages_are_in_the_order_of_depth() -> None:
    encoder = built("resnet18")
    assert encoder.stages()[0][0] is encoder.model.conv1.weight
    assert any(parameter is encoder.model.layer4[1].conv2.weight for parameter in encoder.stages()[-1])


def test_layers_of_timms_networks_end_in_the_feature_map() -> None:
    encoder = built("resnet18", size=64)
    image = torch.rand(2, 3, 64, 64)
    layers = encoder.layers(image)
    assert len(layers) == 5 and torch.allclose(layers[-1], encoder.feature_map(image))


def test_layers_and_pooling_of_tokens() -> None:
    from sslkit.evaluation.features import reader

    encoder, image = built("vit_tiny_patch16_224", size=64), torch.rand(2, 3, 64, 64)
    tokens = encoder.tokens(image)

    def read(layer: str, pool: str) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return reader(encoder, "vit", layer, pool)(image)

    close = torch.testing.assert_close
    close(read("last", "auto")["last"], encoder(image).detach())
    close(read("last", "class")["last"], tokens[:, 0].detach())
    close(read("last", "average")["last"], tokens[:, 1:].mean(dim=1).detach())
    close(read("last", "both")["last"], torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1).detach())
    every = read("all", "auto")
    assert list(every) == [str(number) for number in range(1, 13)]
    close(every["12"], encoder(image).detach())
    close(read("last4", "auto")["last4"], torch.cat([every[str(number)] for number in (9, 10, 11, 12)], dim=1))
    close(read("5", "auto")["5"], every["5"])
    beside = concat(encoder, built("vit_tiny_patch16_224", size=64)).eval()
    with torch.no_grad():
        close(reader(beside, "two", "12", "auto")(image)["12"], beside(image))
        assert reader(beside, "two", "12", "both")(image)["12"].shape == (2, 4 * 192)
    with pytest.raises(SslkitError, match="has no class token"):
        reader(built("resnet_micro"), "resnet_micro", "last", "class")
    with pytest.raises(SslkitError, match="provides pooled, but no layers"):
        reader(built("torchvision:resnet18"), "resnet", "2", "auto")


def test_views_of_other_sizes_are_whole_patches() -> None:
    data = DataInfo(8, 32)
    vit, plain = (RecipeBuilder(recipe_for(name, 32, 3), data) for name in ("vit_micro", "resnet_micro"))
    assert [vit().nearest_valid_size(side) for side in (16, 17, 20)] == [16, 20, 20] and plain().nearest_valid_size(17) == 17
    assert (
        vit(select="l").nearest_valid_size(18) == 20 and concat(vit(select="l"), vit(select="ab")).nearest_valid_size(9) == 12
    )
    for name in ("jigsaw", "relative_position", "counting", "swav"):
        task_class = load_task(name)
        task = task_class(task_class.Options(), vit(), DataInfo(8, 64))
        task.predict(task.transform(canvases(torch.rand(2, 3, 64, 64))))


def test_views_for_an_encoder_of_one_size_have_that_size() -> None:
    recipe = recipe_for("swin_tiny_patch4_window7_224", 64, options={"img_size": "64", "window_size": "4", "embed_dim": "24"})
    swin = RecipeBuilder(recipe, DataInfo(8, 64))()
    assert swin.nearest_valid_size(16) == 64 and built("torchvision:vit_b_16", size=224).nearest_valid_size(96) == 224
    for name in ("jigsaw", "swav"):
        task_class = load_task(name)
        task = task_class(task_class.Options(), swin, DataInfo(8, 64))
        task.predict(task.transform(canvases(torch.rand(2, 3, 64, 64))))


@pytest.mark.parametrize("side", [16, 32, 48])
@pytest.mark.parametrize("name", ["vit_micro", "vit_small_patch16_224", "deit3_small_patch16_224"])
def test_positions_in_double_precision_are_those_of_timm(name: str, side: int) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(recipe_for(name, 32)).eval()
    image = torch.rand(2, 3, side, side)
    with torch.no_grad():
        assert torch.allclose(encoder.double()(image.double()).float(), encoder.float()(image), atol=1e-4)


@pytest.mark.parametrize("name", ["vit_micro", "convnext_atto"])
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    recipe = recipe_for(name, 32)
    plain, recomputed = build_encoder(recipe).double(), build_encoder(recipe).double()
    recomputed.load_state_dict(plain.state_dict())
    assert recomputed.checkpoint_activations()
    image = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    kept = []
    for encoder in (plain, recomputed):
        saved = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            encoder(image).square().sum().backward()
        kept.append(saved)
    assert kept[1] < 0.6 * kept[0]
    for first, second in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert first.grad is not None and second.grad is not None
        assert torch.allclose(first.grad, second.grad, atol=1e-10)


def test_batch_norm_is_not_recomputed() -> None:
    assert not build_encoder(recipe_for("resnet18", 32)).checkpoint_activations()
    assert not build_encoder(recipe_for("resnet_micro", 32)).checkpoint_activations()


@pytest.mark.parametrize("name", ["resnet10t", "resnet18", "torchvision:resnet18"])
def test_weights_say_which_stem_they_need(name: str, tmp_path: Path) -> None:
    published = build_encoder(recipe_for(name, 224))
    file = tmp_path / "published.safetensors"
    save_file({key: value.contiguous() for key, value in published.model.state_dict().items()}, file)
    small = build_encoder(recipe_for(name, 32))
    if name != "resnet10t":  # whose stem has no 7x7 convolution
        with pytest.raises(SslkitError, match=r"has the standard stem \(7x7\), .* \(use --encoder-option stem=standard\)"):
            load_initial(small, str(file))
    fitting = build_encoder(recipe_for(name, 32, options={"stem": "standard"}))
    load_initial(fitting, str(file))
    assert all(map(torch.equal, fitting.model.state_dict().values(), published.model.state_dict().values()))


def test_a_stem_that_does_not_exist() -> None:
    with pytest.raises(SslkitError, match=r"--encoder-option: stem=big \(small or standard is expected\)"):
        recipe_for("resnet18", 32, options={"stem": "big"})


@pytest.mark.parametrize("name", ["resnet_micro", "resnet18", "efficientnet_b0", "torchvision:resnet18"])
def test_group_norm_instead_of_batch_norm(name: str) -> None:
    torch.manual_seed(0)
    encoder = built(name, options={"norm": "group"}).train()
    norms = [module for module in encoder.modules() if isinstance(module, nn.GroupNorm)]
    assert norms and not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules())
    assert all(norm.num_groups == max(1, norm.num_channels // 16) for norm in norms if norm.num_channels % 16 == 0)
    images = torch.rand(3, 3, 64, 64)
    together, alone = encoder(images), torch.cat([encoder(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-4)  # no sample depends on others, in training mode
    together.sum().backward()
    assert all(norm.weight.grad is not None for norm in norms)
    stages = [parameter for stage in encoder.stages() for parameter in stage]
    assert len(stages) == len(set(stages)) == len(list(encoder.parameters()))


def test_activations_inside_timms_norms_are_kept() -> None:
    encoder = built("efficientnet_b0", options={"norm": "group"})
    plain = built("efficientnet_b0")
    activations = [sum(isinstance(module, nn.SiLU) for module in network.modules()) for network in (encoder, plain)]
    assert activations[0] == activations[1] > 40


def test_group_norm_needs_a_batch_norm_and_no_published_weights() -> None:
    with pytest.raises(SslkitError, match=r"norm=group replaces BatchNorm, and vit_micro has none"):
        built("vit_micro", options={"norm": "group"})
    with pytest.raises(SslkitError, match=r"resnet18 has no pretrained weights for GroupNorm"):
        build_encoder(recipe_for("resnet18", 64, options={"norm": "group"}), pretrained=True)
    narrow = scale_width(recipe_for("resnet18", 64, options={"norm": "group"}), 0.5)
    assert build_encoder(narrow).width == 256 and narrow["options"]["norm"] == "group"


FACTORY = """
from sslkit.encoders.build import build_encoder

def net(norm="batch", in_channels=3, size=32):
    encoder = build_encoder("resnet_micro", size=32)
    encoder.norm = norm
    return encoder
"""


def test_a_factory_with_an_option_norm_receives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "normed.py").write_text(FACTORY)
    info = tmp_path / "normed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: normed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sslkit.encoders]\nnormed = normed:net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("normed:net", "normed"):
        encoder: Any = build_encoder(recipe_for(name, 32, options={"norm": "group"}), allowed=name)
        assert encoder.norm == "group" and any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())


@pytest.mark.parametrize(("name", "size"), [("resnet_micro", 64), ("repvgg_a0", 224)])
def test_narrow_convolutions_have_the_gradients_of_float64(name: str, size: int) -> None:
    """Where torch's own weight gradient corrupts memory: channels_last, strided 1×1 convolutions of few channels."""
    torch.manual_seed(0)
    encoder = build_encoder(recipe_for(name, size, 3, {"width": "8"} if name == "resnet_micro" else None)).eval()
    images, double = torch.rand(2, 3, size, size), copy.deepcopy(encoder).double()
    encoder(images).square().sum().backward()
    double(images.double()).square().sum().backward()
    for parameter, expected in zip(encoder.parameters(), double.parameters(), strict=True):
        assert parameter.grad is not None and expected.grad is not None
        largest = expected.grad.abs().max().item()
        torch.testing.assert_close(parameter.grad.double(), expected.grad, rtol=0, atol=1e-3 * largest)
