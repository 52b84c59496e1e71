"""Build encoders from recipes.

A name is one of ours or another package's (the entry-point group `sslkit.encoders`), any timm name, `LIBRARY:NAME` of an
installed encoder library such as `torchvision:resnet18`, or `package.module:factory`, which is imported only when the user
wrote it on the command line.
"""

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from sslkit import registry
from sslkit.contract.encoder import Encoder, EncoderLibrary
from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.contract.modality import Modality
from sslkit.encoders.composed import Concat, Projected
from sslkit.encoders.recipe import ConcatRecipe, PlainRecipe, ProjectedRecipe, Recipe, SelectRecipe, read_recipe, recipe_for
from sslkit.nn.norms import replace_batch_norm

DEFAULT_LIBRARY = "timm"  # of names without a prefix


def build_encoder(
    recipe: Recipe | str, pretrained: bool = False, allowed: str | None = None, *, size: int = 224, channels: int = 3
) -> Encoder:
    """Build the encoder of a recipe, with random weights or (`pretrained`) those that timm or torchvision publish.

    Instead of a recipe it may be a name from `sslkit encoders` or of timm; `size` (of a sample, in pixels or as the
    modality counts) and `channels` belong to a name only. Raises SslkitError for an unknown name and for options its factory
    refuses. A `package.module:factory` is imported only if `allowed` repeats it, or given as a name.
    """
    if isinstance(recipe, str):
        allowed, recipe = recipe, recipe_for(recipe, size, channels, pretrained=pretrained)
    parsed = read_recipe(recipe)
    if isinstance(parsed, ConcatRecipe):
        return concat(*(_build_part(part, pretrained, allowed) for part in parsed.concat))
    if isinstance(parsed, ProjectedRecipe):
        layers = parsed.projector
        encoder = Projected(_build_plain(parsed.encoder, pretrained, allowed), layers.widths, layers.norm)
        encoder.recipe = recipe
        return encoder
    return _build_part(parsed, pretrained, allowed)


def concat(*parts: Encoder) -> Concat:
    """Return one encoder that puts the features of several side by side; its recipe is made of theirs."""
    encoder = Concat(list(parts))
    encoder.recipe = {"concat": [part.recipe for part in parts]}
    return encoder


def scale_width(recipe: Recipe, factor: float) -> Recipe:
    """Return a plain recipe for the same architecture, `factor` times as wide; raises SslkitError if it has no width."""
    name, options = recipe["name"], recipe["options"]
    scaled: dict[str, Any] = {}
    with _reported(name, options):
        if name in registry.names(registry.ENCODERS):
            width = inspect.signature(registry.load(registry.find(registry.ENCODERS, name))).parameters.get("width")
            scaled = {} if width is None else {"width": options.get("width", width.default) * factor}
        elif ":" not in name:
            scaled = _library(DEFAULT_LIBRARY).scale_width(name, _without_norm(options), factor)
    if not scaled:
        raise SslkitError(
            f"{name} cannot be made narrower",
            "encoders that can: resnet_micro, vit_micro, timm's resnets and vit_*",
            flag="encoder",
        )
    whole = {key: int(value) if isinstance(value, float) and value == int(value) else value for key, value in scaled.items()}
    return {**recipe, "options": {**options, **whole}}


def check_requirements(encoder: Encoder, name: str, requires: tuple[str, ...], task: str, modality: Modality) -> None:
    """Raise SslkitError if an encoder is of another modality than a task's, or lacks something the task requires."""
    if encoder.modality != modality.name:
        raise SslkitError(
            f"{name} is an encoder of {encoder.modality} data, and {task} needs one of {modality.name} data",
            "choose another; `sslkit encoders` lists them",
            flag="encoder",
        )
    missing = [requirement for requirement in requires if requirement not in encoder.provides]
    if missing:
        hint = modality.suggestions.get(missing[0])
        raise SslkitError(
            f"{task} requires {' and '.join(missing)} and {name} provides {', '.join(encoder.provides)}",
            f"try {hint}" if hint else "",
            flag="encoder",
        )


def _build_part(recipe: PlainRecipe | SelectRecipe, pretrained: bool, allowed: str | None) -> Encoder:
    if isinstance(recipe, PlainRecipe):
        return _build_plain(recipe, pretrained, allowed)
    inner = _build_plain(recipe.encoder, pretrained, allowed)
    modality = registry.load_modality(inner.modality)
    selected = modality.count_selected(recipe.select, recipe.in_channels)
    if selected != inner.in_channels:
        problem = f"{recipe.select} has {selected} channels, and its encoder takes {inner.in_channels}"
        raise SslkitError(f"the encoder recipe is not one of sslkit's: {problem}")
    encoder = modality.select(recipe.select, recipe.in_channels, inner)
    encoder.recipe = recipe.model_dump()
    return encoder


# By factories that are given options they did not expect.
_RAISED = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@contextmanager
def _reported(name: str, options: dict[str, Any]) -> Iterator[None]:
    """Turn what factories raise into one line, and keep options from naming files."""
    files = [option for option in options if option.startswith(("checkpoint", "cache", "pretrained"))]
    if files:
        raise SslkitError(
            f"{files[0]} is not one an encoder may have", "--init and --pretrained load weights", flag="encoder_option"
        )
    try:
        yield
    except _RAISED as error:
        listed = ", ".join(f"{key}={value}" for key, value in options.items())
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        wrong = f"--encoder-option: {name} cannot be built with {listed}" if listed else f"--encoder: {name} cannot be built"
        raise SslkitError(f"{wrong}: {reason}") from error


def _build_plain(recipe: PlainRecipe, pretrained: bool, allowed: str | None) -> Encoder:
    settings = {"in_channels": recipe.in_channels, "size": recipe.size}
    group_norm = False
    if recipe.options.get("norm") == "group":
        with _reported(recipe.name, recipe.options):
            group_norm = not _takes_norm(recipe.name, allowed)
    if group_norm and pretrained:
        problem = f"{recipe.name} has no pretrained weights for GroupNorm"
        raise SslkitError(problem, "remove norm=group", flag="encoder_option")
    options = _without_norm(recipe.options) if group_norm else recipe.options
    with _reported(recipe.name, options):
        encoder = _build(recipe.name, settings, options, recipe.stem, pretrained, allowed)
    if group_norm and not replace_batch_norm(encoder):
        raise SslkitError(f"norm=group replaces BatchNorm, and {recipe.name} has none", "leave it out", flag="encoder_option")
    encoder.recipe = recipe.model_dump()
    return encoder


def _without_norm(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a factory is to get where norm=group lets GroupNorm replace BatchNorm."""
    return {key: value for key, value in options.items() if (key, value) != ("norm", "group")}


def _takes_norm(name: str, allowed: str | None) -> bool:
    """Return whether an encoder is of a factory that has an option `norm` itself."""
    if name in registry.names(registry.ENCODERS):
        factory = registry.load(registry.find(registry.ENCODERS, name))
    elif ":" in name and name == allowed and name.partition(":")[0] not in registry.names(registry.LIBRARIES):
        factory = _import_factory(name)
    else:
        return False
    return "norm" in inspect.signature(factory).parameters


def _build(
    name: str, settings: dict[str, int], options: dict[str, Any], stem: str, pretrained: bool, allowed: str | None
) -> Encoder:
    scheme, _, rest = name.partition(":")
    if rest and scheme in registry.names(registry.LIBRARIES):
        return _library(scheme).build(rest, stem=stem, pretrained=pretrained, **settings, **options)
    if rest and scheme.replace("_", "-") in ("hf-hub", "local-dir"):
        raise SslkitError(f"{name} is not supported", "use a plain timm name, and --init for your own weights", flag="encoder")
    if rest:
        if name != allowed:
            raise SslkitError(f"the encoder is {name}, which would be imported and run", f"allow it with --encoder {name}")
        return _as_encoder(_import_factory(name)(**options), settings)
    if name in registry.names(registry.ENCODERS):
        if pretrained:
            raise SslkitError(f"no weights are published for {name}", "use a timm or torchvision name", flag="pretrained")
        factory = registry.load(registry.find(registry.ENCODERS, name))
        known = [option for option in inspect.signature(factory).parameters if option not in settings]
        for option in options:
            if option not in known:
                raise SslkitError(f"{name} has no option {option}", did_you_mean(option, known), flag="encoder_option")
        return _as_encoder(factory(**settings, **options), settings)
    library = _library(DEFAULT_LIBRARY)
    if name.partition(".")[0] not in library.names():
        installed = registry.names(registry.ENCODERS)
        raise SslkitError(
            f"unknown encoder {name}", did_you_mean(name, installed + library.names(), listing=installed), flag="encoder"
        )
    return library.build(name, stem=stem, pretrained=pretrained, **settings, **options)


def check_published(name: str, modality: str) -> None:
    """Raise SslkitError if no library of published encoders has any for a modality."""
    scheme, _, rest = name.partition(":")
    library = scheme if rest and scheme in registry.names(registry.LIBRARIES) else DEFAULT_LIBRARY
    if _library(library).modality != modality:
        raise SslkitError(f"{library} publishes no {modality} encoders (got {name})", "name a checkpoint", flag="encoder")


def published_names() -> list[str]:
    """Return the names of the default library's architectures, which need no prefix."""
    return _library(DEFAULT_LIBRARY).names()


def encoder_origin(name: str) -> str:
    """Return the distribution and version that an encoder's name comes from."""
    scheme, _, rest = name.partition(":")
    if rest:
        return _library(scheme).version() if scheme in registry.names(registry.LIBRARIES) else scheme.partition(".")[0]
    for entry in registry.entries(registry.ENCODERS):
        if entry.name == name:
            return f"{entry.package} {entry.version}"
    return _library(DEFAULT_LIBRARY).version()


def _library(name: str) -> EncoderLibrary:
    library = registry.load(registry.find(registry.LIBRARIES, name))
    assert isinstance(library, type) and issubclass(library, EncoderLibrary), f"{name} is not an EncoderLibrary"
    return library()


def _import_factory(name: str) -> Any:
    module, _, factory = name.partition(":")
    try:
        return getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise SslkitError(f"cannot import {name}: {error}", flag="encoder") from error


def _as_encoder(module: nn.Module, settings: dict[str, int]) -> Encoder:
    """Return the module itself if it is an Encoder, else wrapped."""
    return module if isinstance(module, Encoder) else _library(DEFAULT_LIBRARY).wrap(module, **settings)
