"""Build encoders from recipes: small trees of plain values that stand in every checkpoint.

A plain recipe is `{"name": ..., "in_channels": 3, "size": 32, "stem": "small", "options": {...}}`. `name` is one of ours
or another package's (the entry-point group `sslkit.encoders`), any timm name, `torchvision:NAME`, or
`package.module:factory`, which is imported only when the user wrote it on the command line.
`{"select": "l" | "ab" | "gray" | "sobel", "encoder": plain}` shows a part of the image to an encoder, and
`{"concat": [...]}` puts several of both kinds side by side.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sslkit import registry
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.encoders.composed import Concat
from sslkit.image.encoders.base import WrappedEncoder
from sslkit.image.encoders.select import CHANNELS, Select

Recipe = dict[str, Any]


_SMALL = 64  # pixels; up to here a 7×7 stride-2 stem with max-pooling would leave almost nothing of the image


# What to name to somebody whose encoder lacks something.
_OFFERED = {"tokens": "vit_micro or timm's vit_*", "palette": "igpt", "masked_convolutions": "convvit_micro"}


def recipe_for(
    name: str, size: int, in_channels: int = 3, options: dict[str, str] | None = None, pretrained: bool = False
) -> Recipe:
    """Return the recipe for a name as the user wrote it; option values are read as Python literals where they are."""
    return {
        "name": name,
        "in_channels": in_channels,
        "size": size,
        # Published weights fit only the stem they were trained with.
        "stem": "small" if size <= _SMALL and not pretrained else "standard",
        "options": {key: _literal(value) for key, value in (options or {}).items()},
    }


def build_encoder(recipe: Recipe, pretrained: bool = False, allowed: str | None = None) -> Encoder:
    """Build the encoder of a recipe, with random weights or (`pretrained`) those that timm or torchvision publish.

    Raises SslkitError for a name nobody knows and for options its factory refuses. A `package.module:factory` is
    imported only if `allowed` repeats it.
    """
    parts = recipe.get("concat") if isinstance(recipe, dict) and len(recipe) == 1 else None
    if isinstance(parts, list) and parts:
        return concat(*(_build_part(part, pretrained, allowed) for part in parts))
    return _build_part(recipe, pretrained, allowed)


def concat(*parts: Encoder) -> Concat:
    """Return one encoder that puts the features of several side by side; its recipe is made of theirs."""
    encoder = Concat(list(parts))
    encoder.recipe = {"concat": [part.recipe for part in parts]}
    return encoder


def plain_recipes(recipe: Recipe) -> list[Recipe]:
    """Return the plain recipes in a recipe's tree."""
    if "concat" in recipe:
        return [plain for part in recipe["concat"] for plain in plain_recipes(part)]
    return [recipe["encoder"] if "select" in recipe else recipe]


def input_channels(recipe: Recipe) -> int:
    """Return the channels of the images that a recipe's encoder takes."""
    first = recipe["concat"][0] if "concat" in recipe else recipe
    return 3 if "select" in first else int(first["in_channels"])


def encoder_name(recipe: Recipe) -> str:
    """Return what to call a recipe's encoder: `resnet_micro`, `l:resnet_micro+ab:resnet_micro`."""
    if "concat" in recipe:
        return "+".join(encoder_name(part) for part in recipe["concat"])
    if "select" in recipe:
        return f"{recipe['select']}:{encoder_name(recipe['encoder'])}"
    return str(recipe["name"])


def scale_width(recipe: Recipe, factor: float) -> Recipe:
    """Return a plain recipe for the same architecture, `factor` times as wide; raises SslkitError if it has no width."""
    name, options = recipe["name"], recipe["options"]
    found: dict[str, Any] = {}
    with _told(name, options):
        if name in registry.names(registry.ENCODERS):
            width = inspect.signature(registry.load(registry.find(registry.ENCODERS, name))).parameters.get("width")
            found = {} if width is None else {"width": options.get("width", width.default) * factor}
        elif ":" not in name:
            from sslkit.image.encoders.timm import width_options

            found = width_options(name, options, factor)
    if not found:
        raise SslkitError(
            f"{name} cannot be made narrower",
            "encoders that can: resnet_micro, vit_micro, timm's resnets and vit_*",
            flag="encoder",
        )
    whole = {key: int(value) if isinstance(value, float) and value == int(value) else value for key, value in found.items()}
    return {**recipe, "options": {**options, **whole}}


def check_requirements(encoder: Encoder, name: str, reads: tuple[str, ...], task: str, modality: str = "image") -> None:
    """Raise SslkitError if a task reads something that the encoder does not offer."""
    if encoder.modality != modality:
        raise SslkitError(
            f"{task} is for {modality} data and {name} reads {encoder.modality}", "name another one", flag="encoder"
        )
    missing = [what for what in reads if what not in encoder.offers]
    if missing:
        raise SslkitError(
            f"{task} reads {' and '.join(missing)} and {name} offers {', '.join(encoder.offers)}",
            f"try {_OFFERED.get(missing[0], 'resnet_micro')}",
            flag="encoder",
        )


def _build_part(recipe: Recipe, pretrained: bool, allowed: str | None) -> Encoder:
    if not isinstance(recipe, dict) or recipe.keys() != {"select", "encoder"}:
        return _build_plain(recipe, pretrained, allowed)
    select, inner = recipe["select"], _build_plain(recipe["encoder"], pretrained, allowed)
    if not isinstance(select, str) or CHANNELS.get(select) != inner.in_channels:
        raise _not_ours(recipe)
    encoder = Select(select, inner)
    encoder.recipe = recipe
    return encoder


# By factories that are given options they did not expect.
_RAISED = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@contextmanager
def _told(name: str, options: dict[str, Any]) -> Iterator[None]:
    """Turn what factories raise into one line, and keep options from naming files."""
    files = [option for option in options if option.startswith(("checkpoint", "cache", "pretrained"))]
    if files:
        raise SslkitError(
            f"{files[0]} is not one an encoder may have", "--init and --pretrained load weights", flag="encoder_option"
        )
    try:
        yield
    except _RAISED as error:
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        wrong = f"--encoder-option: {name} cannot be built with {given}" if given else f"--encoder: {name} cannot be built"
        raise SslkitError(f"{wrong}: {reason}") from error


def _not_ours(recipe: Any) -> SslkitError:
    return SslkitError(f"encoder recipe {recipe!r} is not one of sslkit's")


def _build_plain(recipe: Recipe, pretrained: bool, allowed: str | None) -> Encoder:
    try:
        name, settings = recipe["name"], {"in_channels": recipe["in_channels"], "size": recipe["size"]}
        options = dict(recipe["options"])
        stem = recipe["stem"]
    except (KeyError, TypeError, ValueError) as error:
        raise _not_ours(recipe) from error
    if not isinstance(name, str):
        raise _not_ours(recipe)
    unknown = set(recipe) - {"name", "in_channels", "size", "stem", "options"}
    if unknown:
        raise SslkitError(f"encoder recipe of {name} has unknown entries: {', '.join(sorted(unknown))}", "upgrade sslkit")
    with _told(name, options):
        encoder = _build(name, settings, options, stem, pretrained, allowed)
    encoder.recipe = recipe
    return encoder


def _build(
    name: str, settings: dict[str, int], options: dict[str, Any], stem: str, pretrained: bool, allowed: str | None
) -> Encoder:
    scheme, _, rest = name.partition(":")
    if scheme == "torchvision":
        from sslkit.image.encoders.torchvision import torchvision_encoder

        return torchvision_encoder(rest, stem=stem, pretrained=pretrained, **settings, **options)
    if rest and scheme.replace("_", "-") in ("hf-hub", "local-dir"):
        raise SslkitError(f"{name} is not supported", "use a plain timm name, and --init for your own weights", flag="encoder")
    if rest:
        if name != allowed:
            raise SslkitError(f"the encoder is {name}, which would be imported and run", f"allow it with --encoder {name}")
        return _from_factory(name, settings, options)
    if name in registry.names(registry.ENCODERS):
        if pretrained:
            raise SslkitError(f"no weights are published for {name}", "use a timm or torchvision name", flag="pretrained")
        factory = registry.load(registry.find(registry.ENCODERS, name))
        known = [option for option in inspect.signature(factory).parameters if option not in settings]
        for option in options:
            if option not in known:
                raise SslkitError(f"{name} has no option {option}", did_you_mean(option, known), flag="encoder_option")
        return _as_encoder(factory(**settings, **options), settings)
    from sslkit.image.encoders.timm import timm_encoder, timm_names

    if name.partition(".")[0] not in timm_names():
        own = registry.names(registry.ENCODERS)
        raise SslkitError(f"unknown encoder {name}", did_you_mean(name, own + timm_names(), listing=own), flag="encoder")
    return timm_encoder(name, stem=stem, pretrained=pretrained, **settings, **options)


def _from_factory(name: str, settings: dict[str, int], options: dict[str, Any]) -> Encoder:
    module, _, factory = name.partition(":")
    try:
        build_it = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise SslkitError(f"cannot import {name}: {error}", flag="encoder") from error
    return _as_encoder(build_it(**options), settings)


def _as_encoder(module: nn.Module, settings: dict[str, int]) -> Encoder:
    """Return the module itself if it is an Encoder, else wrap it and measure the width of what it returns."""
    if isinstance(module, Encoder):
        return module
    sample = torch.zeros(2, settings["in_channels"], settings["size"], settings["size"])
    training = module.training
    with torch.no_grad():
        output = module.eval()(sample)
    module.train(training)
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise SslkitError(f"the factory's module should return [B, width] (got {shape} for 2 images)", flag="encoder")
    return WrappedEncoder(module, width=output.shape[1], in_channels=settings["in_channels"])


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
