"""The verb of images with captions that writes text rather than numbers. Nothing here imports torch."""

from typing import Any, ClassVar

import sslkit
from sslkit.contract.command import Command
from sslkit.contract.result import Result
from sslkit.image_text.specs import CaptionSpec


class Caption(Command):
    """Write captions of images with a checkpoint of virtex; known captions tell what the images add."""

    Options: ClassVar = CaptionSpec
    panel: ClassVar = "Use"
    extended: ClassVar = True

    def run(self, spec: CaptionSpec) -> Any:
        """Write them."""
        return sslkit.caption(spec)

    def lines(self, result: Any) -> list[str | Result]:
        """Return where they are, and the score where captions are known."""
        line = f"wrote {result.samples:,} captions, {result.different:,} of them different, to {result.path}"
        return [line, *([] if result.score is None else [result.score])]
