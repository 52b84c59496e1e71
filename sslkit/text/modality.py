"""What the machinery asks of text."""

from typing import ClassVar

from sslkit.contract.modality import Modality
from sslkit.text.options import TextOptions
from sslkit.text.source import TextSource


class TextModality(Modality):
    """Passages of words, int64 `[B, context]`."""

    options: ClassVar = TextOptions
    source: ClassVar = TextSource
