"""Images with captions as a source: a table with columns `path` and `caption`."""

import csv
import hashlib
import sys
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslkit.console import say_once
from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.contract.source import OpenSpec, ReadSeed, Rows
from sslkit.contract.task import Batch, DataInfo
from sslkit.data.columnar import is_columnar, read_texts
from sslkit.data.locations import find_parts
from sslkit.data.tables import read_table
from sslkit.engine.checkpoint import read_model
from sslkit.image.options import IMAGES
from sslkit.image.source import ImageSource
from sslkit.image_text.encoders import caption_framing
from sslkit.image_text.options import ImageTextOptions
from sslkit.text.encoders.base import Framing, TokenEncoder
from sslkit.text.options import TextOptions, Unit
from sslkit.text.tokenizer import Tokenizer, check_vocabulary

_TOWER = "text"  # the part of a checkpoint that reads captions
_UNIT: Unit = "wordpiece"  # of captions, unless another one is named
_LONGEST = 77  # tokens of a caption at most, as in CLIP


class ImageTextSource(ImageSource):
    """Images with captions; a batch has `image`, as for images, `tokens`, int64 `[B, length]`, and `mask`, bool `[B, length]`.

    `mask` is true where a caption has a token; rows with the same image have the same number `image_id`, int64 `[B]`.
    `info.details` has `tokenizer` (bytes for `Tokenizer.from_bytes`), `length`, `captions`, the tokens of all as int32
    `[N, length]`, and `text_checkpoint`: the file from which the text tower starts, or None. For evaluations, images are read
    alone.
    """

    noun: ClassVar = ImageTextOptions.noun
    starting_parts: ClassVar = (_TOWER,)
    captions: list[str]
    tokens: NDArray[np.int32]
    image_ids: NDArray[np.int64]
    padding: int

    @classmethod
    def open(cls, spec: OpenSpec) -> Self:
        """Open `--data`, and learn pieces from its captions unless the text tower has a tokenizer."""
        assert spec.data is not None
        captions = read_captions(spec.data)
        pairs = super().open(spec)
        if len(set(captions)) < 2:
            raise SslkitError(
                f"all captions of {spec.data} are {captions[0]!r}", "they should differ between images", flag="data"
            )
        tokenizer, frame, longest = _read_tower(spec) or _learn_pieces(spec, captions)
        encoded = tokenizer.encode(captions)
        needed = max(len(frame([ids], sys.maxsize)) for ids in encoded)
        length = min(longest, needed)
        tokens = frame.pad(encoded, length)
        if (tokens == tokens[0]).all():
            raise SslkitError(f"all captions of {spec.data} have the same tokens", "choose another --unit", flag="data")
        cut = sum(len(frame([ids], sys.maxsize)) > length for ids in encoded)
        if cut:
            say_once(f"{cut:,} captions are longer than {length} tokens: their ends are left out")
        if "unit" not in spec.table(TextOptions).model_fields_set:
            origin = "the text tower's" if _TOWER in spec.starts() else "of captions"
            pairs.resolved["unit"] = tokenizer.unit, origin
        pairs.captions, pairs.tokens, pairs.padding = captions, tokens, frame.padding
        names = [pairs.index.name(row) for row in range(len(captions))]
        pairs.image_ids = np.unique(names, return_inverse=True)[1].astype(np.int64)
        if not pairs.image_ids.any():
            raise SslkitError(f"all captions of {spec.data} are of {names[0]}", "at least two images are needed", flag="data")
        details = {
            "tokenizer": tokenizer.to_bytes(),
            "length": length,
            "captions": tokens,
            "text_checkpoint": spec.starts().get(_TOWER),
        }
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
        """Return a hash of the images' names and sizes, of the captions, and of the tokenizer."""
        digest = hashlib.sha256("\0".join([self.index.fingerprint(), *self.captions]).encode())
        digest.update(self.info.details["tokenizer"])
        return digest.hexdigest()[:16]

    def evaluation_fingerprint(self) -> str:
        """Return the hash of the images alone, which evaluations read."""
        return self.index.fingerprint()

    def read(self, rows: Rows, draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Return `image` as for images, `tokens`, int32 `[B, length]`, and `image_id`, int64 `[B]`."""
        arrays, broken = super().read(rows, draw)
        return {**arrays, "tokens": self.tokens[rows], "image_id": self.image_ids[rows]}, broken

    def prepare(self, batch: Batch) -> Batch:
        """Return `image` as for images, `tokens` as int64, and their `mask`."""
        tokens = batch["tokens"].long()
        return {**super().prepare(batch), "tokens": tokens, "mask": tokens != self.padding}


def _read_tower(spec: OpenSpec) -> tuple[Tokenizer, Framing, int] | None:
    """Return tokenizer, framing and longest sample of the text tower that `--init-part` names; None if it names none."""
    file = spec.starts().get(_TOWER)
    if file is None:
        return None
    with renamed_flags({"ckpt": "init_part"}):
        checkpoint = read_model(file)
        checkpoint.check_modality("text")
        encoder = checkpoint.build_encoder()
        if not isinstance(encoder, TokenEncoder):
            raise SslkitError(f"{file} has no encoder of text", flag="ckpt")
        tokenizer, options = encoder.tokenizer(), spec.table(TextOptions)
    for name, value in (("unit", options.unit), ("vocabulary", options.vocabulary)):  # a run that goes on has its unit recorded
        if name in options.model_fields_set and value not in ("auto", tokenizer.unit):
            problem = f"{value}, and captions are split by the tokenizer of --init-part, whose unit is {tokenizer.unit}"
            raise SslkitError(problem, "leave it out, and --recipe paper", flag=name)
    context = options.context
    longest = min(_LONGEST, checkpoint.size) if context == "auto" else context
    encoder.check_length(longest)
    return tokenizer, encoder.framing(), longest


def _learn_pieces(spec: OpenSpec, captions: list[str]) -> tuple[Tokenizer, Framing, int]:
    """Return a tokenizer learned from captions, what stands around each, and how many tokens it has at most."""
    options = spec.table(TextOptions)
    vocabulary = None if options.vocabulary == "auto" else options.vocabulary
    unit = options.unit if "unit" in options.model_fields_set else _UNIT
    check_vocabulary(unit, options.vocabulary)
    tokenizer = Tokenizer.learn(unit, lambda: captions, vocabulary)
    return tokenizer, caption_framing(tokenizer), _LONGEST if options.context == "auto" else options.context


def read_captions(data: str) -> list[str]:
    """Return the captions of a table, in its order; raises SslkitError if there are none, or one is empty."""
    location, _, part = find_parts(data, IMAGES)["train"].partition("::")
    table = Path(location)
    if is_columnar(table, IMAGES):
        return read_texts(location, part, "caption")
    if table.suffix.lower() != ".csv":
        raise SslkitError(f"{data} has no captions", f"expected {ImageTextOptions.accepts}", flag="data")
    return read_table(table).column("caption", single_line=False)
