"""The verb of images that draws features rather than numbers. Nothing here imports torch."""

from typing import Any, ClassVar

import sslkit
from sslkit.contract.command import Command
from sslkit.image.specs import VisualizeSpec


class Visualize(Command):
    """Draw what features show of images: principal components as colors, and attention maps."""

    Options: ClassVar = VisualizeSpec
    panel: ClassVar = "Look"
    extended: ClassVar = True

    def run(self, spec: VisualizeSpec) -> Any:
        """Draw it."""
        return sslkit.visualize(spec)

    def lines(self, result: Any) -> list[str]:
        """Return where the picture is, and what it shows."""
        heads = f" and {result.heads} attention heads" if result.heads else ""
        share = f"components have {result.variance:.0%} of the variance of places"
        return [f"drew {result.samples} images{heads} in {result.picture}; the three {share}"]
