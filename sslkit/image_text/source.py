"""Images with captions as a source: a table with columns `path` and `caption`."""

import csv
import hashlib
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslkit.console import say_once
from sslkit.contract.errors import SslkitError
from sslkit.contract.source import OpenSpec, ReadSeed, Rows
from sslkit.contract.task import Batch, DataInfo
from sslkit.data.columnar import is_columnar, read_texts
from sslkit.data.locations import find_parts
from sslkit.data.tables import read_table
from sslkit.image.options import IMAGES
from sslkit.image.source import ImageSource
from sslkit.image_text.options import ImageTextOptions
from sslkit.text.byte_pairs import PADDING, BytePairs
from sslkit.text.options import TextOptions

_WORDS, _LONGEST = 8192, 77  # tokens that are learned, and tokens of a caption: at most (77 as in CLIP)


class ImageTextSource(ImageSource):
    """Images with captions; a batch has `image`, as for images, `tokens`, int64 `[B, length]`, and `mask`, bool `[B, length]`.

    `mask` is true where a caption has a token. `info.details` has `words` (how many tokens there are), `length`, and
    `spelling`: bytes, from which `BytePairs.read` makes the tokenizer. For evaluations its images are images like any others.
    """

    noun: ClassVar = ImageTextOptions.noun
    captions: list[str]
    tokens: NDArray[np.int32]

    @classmethod
    def open(cls, spec: OpenSpec) -> Self:
        """Open `--data` and learn tokens from its captions."""
        assert spec.data is not None
        captions = read_captions(spec.data)
        pairs = super().open(spec)
        tokenizer = BytePairs.learn(captions, _WORDS)
        lengths = tokenizer.lengths(captions)
        context = spec.table(TextOptions).context
        length = min(_LONGEST if context == "auto" else context, max(lengths))
        cut = sum(count > length for count in lengths)
        if cut:
            say_once(f"{cut:,} captions are longer than {length} tokens: their ends are left out")
        pairs.captions, pairs.tokens = captions, tokenizer(captions, length)
        details = {"words": tokenizer.words, "length": length, "spelling": tokenizer.spelled()}
        pairs.info = DataInfo(len(captions), pairs.info.size, pairs.info.channels, "image_text", details)
        return pairs

    @classmethod
    def example(cls, folder: Path, samples: int) -> str:
        """Write squares of four colors in four positions, and captions that describe them."""
        random, place = np.random.default_rng(0), folder / "pairs"
        place.mkdir(exist_ok=True)
        colors = {"red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230), "yellow": (230, 220, 60)}
        places = {"top left": (2, 2), "top right": (2, 18), "bottom left": (18, 2), "bottom right": (18, 18)}
        with open(place / "captions.csv", "w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["path", "caption"])
            for number in range(samples):
                color, where = random.choice(list(colors)), random.choice(list(places))
                picture = random.integers(0, 60, (32, 32, 3), dtype=np.uint8)
                top, left = places[where]
                picture[top : top + 12, left : left + 12] = colors[color]
                Image.fromarray(picture).save(place / f"{number:04}.png")
                table.writerow([f"{number:04}.png", f"a {color} square, {where}"])
        return str(place / "captions.csv")

    def fingerprint(self) -> str:
        """Return a hash of the images' names and sizes and of the captions."""
        return hashlib.sha256("\0".join([self.index.fingerprint(), *self.captions]).encode()).hexdigest()[:16]

    def evaluation_fingerprint(self) -> str:
        """Return the hash of the images alone, which evaluations read."""
        return self.index.fingerprint()

    def read(self, rows: Rows, draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Return `image` as for images, and `tokens`, int32 `[B, length]`."""
        arrays, broken = super().read(rows, draw)
        return {**arrays, "tokens": self.tokens[rows]}, broken

    def prepare(self, batch: Batch) -> Batch:
        """Return `image` as for images, `tokens` as int64, and their `mask`."""
        tokens = batch["tokens"].long()
        return {**super().prepare(batch), "tokens": tokens, "mask": tokens != PADDING}


def read_captions(data: str) -> list[str]:
    """Return the captions of a table, in its order; raises SslkitError if there are none, or one is empty."""
    location, _, part = find_parts(data, IMAGES)["train"].partition("::")
    table = Path(location)
    if is_columnar(table, IMAGES):
        return read_texts(location, part, "caption")
    if table.suffix.lower() != ".csv":
        raise SslkitError(f"{data} has no captions", f"expected {ImageTextOptions.accepts}", flag="data")
    return read_table(table).column("caption", single_line=False)
