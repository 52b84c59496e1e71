"""Read word2vec's text format. Stand-alone: imports nothing of sslkit."""

from collections.abc import Callable
from typing import Any

import numpy as np


def load(file: str, settings: dict[str, Any]) -> Callable[[Any], Any]:
    """Return the mean vector of the words of a text, `[B, width]`, as a function of their positions in the file `[B, T]`."""
    with open(file, encoding="utf-8") as lines:
        words, width = map(int, next(lines).split())
        table = np.array([line.rstrip("\n").split(" ")[1:] for line in lines], dtype=np.float32)
    assert table.shape == (words, width), f"{table.shape} values instead of {(words, width)}"
    return lambda positions: table[positions].mean(axis=1)
