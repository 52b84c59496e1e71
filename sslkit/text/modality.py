"""What the machinery asks of text."""

from typing import ClassVar

import torch
from torch import Tensor

from sslkit.contract.modality import Modality
from sslkit.text.options import TextOptions
from sslkit.text.source import TextSource


class TextModality(Modality):
    """Passages of words, int64 `[B, context]`."""

    options: ClassVar = TextOptions
    source: ClassVar = TextSource

    def example_inputs(self, count: int, channels: int, size: int) -> tuple[Tensor, str]:
        """Return random words, int64 `[count, size]`, of `channels` that there are."""
        return torch.randint(channels, (count, size), generator=torch.Generator().manual_seed(0)), "random words"
