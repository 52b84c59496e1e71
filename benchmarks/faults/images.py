"""Two thousand bad images of all kinds: none stops a run, all are listed with a reason."""

import csv
import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from promises import TINY, Promise, ran

Make = Callable[[random.Random], bytes]


def mutated_images(folder: Path, data: Path, long: bool) -> list[Promise]:
    """Train on good images among bad ones."""
    images, seed = folder / "images", random.Random(3)
    images.mkdir()
    count = 2000 if long else 400
    surely = {}  # bad whatever a decoder forgives: name to kind
    for number in range(count):
        kind = list(_KINDS)[number % len(_KINDS)]
        make, suffix, bad = _KINDS[kind]
        name = f"{number:05}{_ODD[number % len(_ODD)]}{suffix}"
        (images / name).write_bytes(make(seed))
        if bad:
            surely[name] = kind
    for number in range(count // 4):
        (images / f"good-{number:05}.png").write_bytes(_png(seed))
    deep = images
    for _ in range(60):
        deep = deep / "deeper"
    deep.mkdir(parents=True)
    (deep / "good.png").write_bytes(_png(seed))
    (images / "loop").symlink_to(images)
    (images / "nowhere.png").symlink_to(folder / "missing")
    (images / "folder.png").mkdir()
    os.mkfifo(images / "pipe.png")
    surely |= {"nowhere.png": "link to nowhere", "pipe.png": "named pipe"}
    if os.getuid():
        (images / "locked.png").write_bytes(_png(seed))
        (images / "locked.png").chmod(0)
        surely["locked.png"] = "no permission"

    kinds = f"{count:,} mutated images of {len(_KINDS) + 5} kinds, {len(surely):,} of them bad for any decoder, among good ones"
    runs = Promise(kinds, "the run goes to its end")
    listed = Promise("each that is bad for any decoder", "broken.csv has it, with a reason")
    memory = Promise("the same run, a decompression bomb among them", "at most 2 GB of memory")
    how = ["--data", images, *TINY, "--epochs", 3, "--workers", 2, "--max-broken", 1, "--out", folder / "run"]
    code, errors = ran("pretrain", "rotation", *how)
    runs.check(code == 0, f"code {code}: {errors}")
    reasons = {}
    if (folder / "run" / "broken.csv").exists():
        with open(folder / "run" / "broken.csv", newline="", encoding="utf-8", errors="surrogateescape") as stream:
            reasons = dict(csv.reader(stream))
    for name, kind in surely.items():
        listed.check(bool(reasons.get(name)), f"{name!r}: {kind}")
    if code == 0:
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        memory.check(lines[-1]["memory"] < 2e9, f"{lines[-1]['memory']:,} bytes")
    return [runs, listed, memory]


def _png(seed: random.Random) -> bytes:
    return _saved("PNG", seed)


def _saved(format: str, seed: random.Random) -> bytes:
    pixels = np.frombuffer(seed.randbytes(24 * 24 * 3), dtype=np.uint8).reshape(24, 24, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def _cut(format: str) -> Make:
    return lambda seed: (whole := _saved(format, seed))[: seed.randrange(1, len(whole) // 2)]


def _flipped(format: str) -> Make:
    def make(seed: random.Random) -> bytes:
        data = bytearray(_saved(format, seed))
        for _ in range(20):
            data[seed.randrange(len(data))] ^= 1 << seed.randrange(8)
        return bytes(data)

    return make


def _bomb(seed: random.Random) -> bytes:
    """Return a PNG of 30,000 times 30,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def _thin(seed: random.Random) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (1, 100_000)).save(stream, "PNG")
    return stream.getvalue()


# What they are made by, their suffix, and whether no decoder may accept them.
_KINDS: dict[str, tuple[Make, str, bool]] = {
    "empty": (lambda seed: b"", ".png", True),
    "zeros": (lambda seed: bytes(1000), ".jpg", True),
    "noise": (lambda seed: seed.randbytes(2000), ".png", True),
    "text": (lambda seed: b"<html>404</html>", ".jpg", True),
    "cut PNG": (_cut("PNG"), ".png", True),
    "cut JPEG": (_cut("JPEG"), ".jpg", True),
    "cut WebP": (_cut("WEBP"), ".webp", True),
    "flipped PNG": (_flipped("PNG"), ".png", False),
    "flipped JPEG": (_flipped("JPEG"), ".jpg", False),
    "flipped GIF": (_flipped("GIF"), ".gif", False),
    "flipped TIFF": (_flipped("TIFF"), ".tif", False),
    "wrong suffix": (lambda seed: _saved("JPEG", seed), ".png", False),
    "bomb": (_bomb, ".png", True),
    "1 x 100,000": (_thin, ".png", False),
}
_ODD = ("", " with space", "-ünï☃", "-line\nbreak", "-'quote\"", "-,comma", "-$(touch x)", "-\udcff")
