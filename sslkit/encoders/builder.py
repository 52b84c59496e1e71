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
        """Return the encoder, `width` times as wide, its recipe changed, seeing only a part of the sample.

        Of images that is `l`, `ab`, `gray`, `sobel`, or a range of channels such as `0-2`.

        Raises SslkitError if it can't be made so.
        """
        recipe = {**self.recipe, **changes}
        if select is not None:
            recipe["in_channels"] = registry.load_modality(self.encodes).count_selected(select, self.data.channels)
        if width != 1:
            recipe = scale_width(recipe, width)
        if select is not None:
            recipe = {"select": select, "in_channels": self.data.channels, "encoder": recipe}
        return build_encoder(recipe, self.pretrained, self.allowed)
