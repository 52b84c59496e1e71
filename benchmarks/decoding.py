"""The first epoch: images per second of the loader that decodes and fills the cache, against decoding alone on the same cores.

    python benchmarks/decoding.py --folder SCRATCH --images 2000 --pixels 400 --size 224

SCRATCH gets JPEGs of smooth noise, once. Decoding alone is `read_canvas` in as many processes as there are cores; the loader
has as many workers, and a cache folder of its own in every turn. Prints one line of JSON.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sslkit.data.index import Index
from sslkit.data.loader import Loader, epoch_batches
from sslkit.image.decode import CanvasFormat, image_sizes, read_canvas
from sslkit.image.source import ImageSource, choose_canvas
from sslkit.specs.data import DataSpec

_BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--pixels", type=int, default=400, help="short side of the JPEGs")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    images = arguments.folder / f"jpeg-{arguments.images}-{arguments.pixels}"
    make(images, arguments.images, arguments.pixels)
    os.environ["SSLKIT_CACHE"] = str(arguments.folder / "cache")
    index = ImageSource.read_index(str(images), DataSpec())
    cores = len(os.sched_getaffinity(0))
    form = CanvasFormat(choose_canvas(arguments.size, image_sizes(index), "whole")[0], "whole")
    alone, loading = [], []
    for turn in range(arguments.turns + 1):
        bare, ours = decode(index, form, cores), load(images, index, arguments.size, cores)
        if turn:  # the first brings the files into memory
            alone.append(bare)
            loading.append(ours)
    ratios = [a / b for a, b in zip(loading, alone, strict=True)]
    print(
        json.dumps(
            {
                "images": arguments.images,
                "pixels": arguments.pixels,
                "canvas": form.side,
                "cores": cores,
                "decoding_alone_images_per_second": round(statistics.median(alone)),
                "loader_images_per_second": round(statistics.median(loading)),
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
            }
        )
    )


def make(folder: Path, count: int, pixels: int) -> None:
    """Write JPEGs that are about as hard to decode as photographs, unless they are there."""
    if folder.exists():
        return
    half = folder.with_name(folder.name + "-unfinished")
    half.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 255, (40, 53, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((pixels * 4 // 3, pixels), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (fine + generator.integers(-12, 12, fine.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(half / f"{number:05d}.jpg", quality=90)
    half.rename(folder)


def decode(index: Index, form: CanvasFormat, cores: int) -> float:
    """Return the images per second of processes that decode and do nothing else."""
    parts = np.array_split(np.random.default_rng(0).permutation(len(index)), cores)
    with multiprocessing.Pool(cores, _share, (index, form)) as pool:
        pool.map(_decode, [part[:2] for part in parts])  # they have started
        began = time.perf_counter()
        pool.map(_decode, parts, chunksize=1)
        return len(index) / (time.perf_counter() - began)


def _share(index: Index, form: CanvasFormat) -> None:
    global _shared
    _shared = index, form


def _decode(rows: np.ndarray) -> None:
    for row in rows:
        read_canvas(_shared[0], int(row), _shared[1])


def load(data: Path, index: Index, size: int, cores: int) -> float:
    """Return the images per second of a loader that fills a new cache, from its first batch on."""
    shutil.rmtree(Path(os.environ["SSLKIT_CACHE"]) / "canvases", ignore_errors=True)
    source = ImageSource.for_training(index, DataSpec(data=str(data), workers=cores, size=size))
    loader = Loader(source, cores, substitute=True)
    batches = epoch_batches(len(index), _BATCH, 0, 0)
    began, count = 0.0, 0
    for raw in loader(batches):
        if not began:
            began = time.perf_counter()
        else:
            count += len(raw["index"])
    rate = count / (time.perf_counter() - began)
    loader.close()
    return rate


if __name__ == "__main__":
    main()
