"""Recipes of encoders: small trees of plain values that stand in every checkpoint.

A plain recipe is `{"name": ..., "in_channels": 3, "size": 32, "stem": "small", "options": {...}}`; `{"select": "l",
"encoder": plain}` shows a part of the sample to an encoder; `{"concat": [...]}` puts the features of several side by side;
`{"projector": {"widths": [128], "norm": "batch"}, "encoder": plain}` has the first layers of a projector on top.
"""

import ast
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from sslkit import registry
from sslkit.contract.errors import SslkitError

Recipe = dict[str, Any]  # as it stands in a checkpoint: what `read_recipe` reads

_SMALL = 64  # pixels; up to here a 7×7 stride-2 stem with max-pooling would leave almost nothing of the image


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PlainRecipe(_Model):
    """One encoder by name, and what it is built with."""

    name: str
    in_channels: Annotated[int, Field(ge=1)]
    size: Annotated[int, Field(ge=1)]
    stem: Literal["small", "standard"]
    options: dict[str, Any]

    @property
    def plain(self) -> list["PlainRecipe"]:
        """Return the plain recipes in this tree."""
        return [self]

    @property
    def channels(self) -> int:
        """Return the channels of the samples that the encoder takes."""
        return self.in_channels

    @property
    def title(self) -> str:
        """Return the name for messages and tables."""
        return self.name


class SelectRecipe(_Model):
    """An encoder that sees a part of the sample: `l`, `ab`, `gray` or `sobel` of an RGB image, or some of its channels."""

    select: str
    in_channels: int = Field(default=3, ge=1)  # of the sample
    encoder: PlainRecipe

    @property
    def plain(self) -> list[PlainRecipe]:
        """Return the plain recipe inside."""
        return [self.encoder]

    @property
    def channels(self) -> int:
        """Return the channels of the sample from which the part is taken."""
        return self.in_channels

    @property
    def title(self) -> str:
        """Return the name, `l:resnet_micro`."""
        return f"{self.select}:{self.encoder.name}"


class ConcatRecipe(_Model):
    """Several encoders of the same sample."""

    concat: Annotated[list["Part"], Field(min_length=1)]

    @property
    def plain(self) -> list[PlainRecipe]:
        """Return the plain recipes of all parts."""
        return [plain for part in self.concat for plain in part.plain]

    @property
    def channels(self) -> int:
        """Return the channels of the samples, which all parts share."""
        return self.concat[0].channels

    @property
    def title(self) -> str:
        """Return the name, `l:resnet_micro+ab:resnet_micro`."""
        return "+".join(part.title for part in self.concat)


class ProjectorLayers(_Model):
    """The first layers of a projector: their widths, and the norm after each."""

    widths: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    norm: Literal["batch", "layer", "none"]


class ProjectedRecipe(_Model):
    """An encoder, and layers of a projector on top."""

    projector: ProjectorLayers
    encoder: PlainRecipe

    @property
    def plain(self) -> list[PlainRecipe]:
        """Return the plain recipe inside."""
        return [self.encoder]

    @property
    def channels(self) -> int:
        """Return the channels of the samples that the encoder takes."""
        return self.encoder.channels

    @property
    def title(self) -> str:
        """Return the name, `resnet_micro:projector`."""
        return f"{self.encoder.name}:projector"


def _kind(value: Any) -> str:
    keys = value.keys() if isinstance(value, dict) else type(value).model_fields.keys() if isinstance(value, _Model) else ()
    return next((kind for kind in ("concat", "select", "projector") if kind in keys), "plain")


Part = Annotated[Annotated[PlainRecipe, Tag("plain")] | Annotated[SelectRecipe, Tag("select")], Discriminator(_kind)]
AnyRecipe = PlainRecipe | SelectRecipe | ConcatRecipe | ProjectedRecipe
_RECIPES: TypeAdapter[AnyRecipe] = TypeAdapter(
    Annotated[
        Annotated[PlainRecipe, Tag("plain")]
        | Annotated[SelectRecipe, Tag("select")]
        | Annotated[ConcatRecipe, Tag("concat")]
        | Annotated[ProjectedRecipe, Tag("projector")],
        Discriminator(_kind),
    ]
)


def read_recipe(values: Any) -> AnyRecipe:
    """Return the recipe that plain values describe; raises SslkitError for anything that is not a recipe."""
    try:
        return _RECIPES.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = (
            ".".join(str(part) for part in first["loc"] if part not in ("plain", "select", "concat", "projector")) or "recipe"
        )
        raise SslkitError(f"the encoder recipe is not one of sslkit's: {place}: {first['msg']}", "upgrade sslkit") from error


def recipe_for(
    name: str, size: int, in_channels: int = 3, options: dict[str, str] | None = None, pretrained: bool = False
) -> Recipe:
    """Return the recipe for a name as the user wrote it; option values are read as Python literals where they are.

    Of a library's encoder, the option `stem` chooses the stem: small or standard.
    """
    values = {key: _literal(value) for key, value in (options or {}).items()}
    # Published weights fit only the stem they were trained with.
    stem = "small" if size <= _SMALL and not pretrained else "standard"
    if "stem" in values and _is_of_library(name):
        stem = values.pop("stem")
        if stem not in ("small", "standard"):
            raise SslkitError(f"stem={stem}", "small or standard is expected", flag="encoder_option")
    return {"name": name, "in_channels": in_channels, "size": size, "stem": stem, "options": values}


def _is_of_library(name: str) -> bool:
    """Return whether an encoder is one of timm, torchvision or another library, not an entry point or a factory."""
    scheme, _, rest = name.partition(":")
    return scheme in registry.names(registry.LIBRARIES) if rest else name not in registry.names(registry.ENCODERS)


def encoder_name(recipe: Recipe) -> str:
    """Return the name of a recipe's encoder: `resnet_micro`, `l:resnet_micro+ab:resnet_micro`."""
    return read_recipe(recipe).title


def _literal(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
