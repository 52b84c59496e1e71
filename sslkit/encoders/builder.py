"""The builder passed to a task's `build_encoder`: the chosen encoder's recipe, and variants of it."""

from dataclasses import dataclass
from typing import Any

from sslkit import registry
from sslkit.contract.encoder import Encoder
from sslkit.contract.task import DataInfo
from sslkit.encoders.build import build_encoder, scale_width
from sslkit.encoders.recipe import Recipe


@dataclass(frozen=True)
class RecipeBuilder:
    """Build the encoder that the user chose, or one made of it, for this data."""

    recipe: Recipe
    data: DataInfo
    encodes: str = registry.DEFAULT_MODALITY
    pretrained: bool = False
    allowed: str | None = None  # a `package.module:factory` that may be imported

    def __call__(self, select: str | None = None, width: float = 1.0, **changes: Any) -> Encoder:
        """Return the encoder, seeing only `l`, `ab`, `gray` or `sobel` of the image, `width` times as wide, its recipe changed.

        Raises SslkitError if it can't be made so.
        """
        recipe = {**self.recipe, **changes}
        if select is not None:
            recipe["in_channels"] = registry.load_modality(self.encodes).selections[select]
        if width != 1:
            recipe = scale_width(recipe, width)
        return build_encoder(recipe if select is None else {"select": select, "encoder": recipe}, self.pretrained, self.allowed)
