"""A million files: indexing them cold and warm, against a bare parallel walk with stat.

    python benchmarks/index.py --folder SCRATCH --files 1000000

SCRATCH gets the files, hard links to a few images in a thousand folders; they stay, so that a second call is quick. Each
measurement is a process of its own, in turns. Prints one line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

_LINKS = 50_000  # of one file: some file systems allow 65,000

_COLD = """
import sys, time, pathlib
from sslkit.image.options import IMAGES
from sslkit.data.index import index_folder
began = time.perf_counter()
index = index_folder("data", pathlib.Path(sys.argv[1]), sys.argv[2] == "cold", IMAGES)
print(time.perf_counter() - began, len(index))
"""
_WARM = """
import resource, sys, time, pathlib
from sslkit.image.options import IMAGES
from sslkit.data.index import index_folder
import torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before, began = resident(), time.perf_counter()
index = index_folder("data", pathlib.Path(sys.argv[1]), False, IMAGES)
index.fingerprint()
seconds = time.perf_counter() - began
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(seconds, len(index), peak - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["SSLKIT_CACHE"] = str(arguments.folder / "cache")
    images = arguments.folder / f"images-{arguments.files}"
    make(images, arguments.files)
    walks, colds, warms, memories = [], [], [], []
    for turn in range(arguments.turns + 1):  # the first fills the system's caches
        walk = bare_walk(images)
        cold, count = (float(word) for word in ran(_COLD, images, "cold"))
        assert count == arguments.files
        warm, count, memory = (float(word) for word in ran(_WARM, images))
        assert count == arguments.files
        if turn:
            walks.append(walk)
            colds.append(cold)
            warms.append(warm)
            memories.append(memory)
    ratios = [cold / walk for cold, walk in zip(colds, walks, strict=True)]
    print(
        json.dumps(
            {
                "files": arguments.files,
                "bare_walk_seconds": round(statistics.median(walks), 2),
                "index_seconds": round(statistics.median(colds), 2),
                "ratio": round(statistics.median(ratios), 2),
                "warm_seconds": round(statistics.median(warms), 2),
                "warm_megabytes": round(statistics.median(memories) / 1e6),
            }
        )
    )


def make(folder: Path, files: int) -> None:
    """Write the files, unless they are there."""
    if folder.exists():
        return
    half = folder.with_name(folder.name + "-unfinished")
    half.mkdir(parents=True)
    seeds = folder.parent / "originals"
    seeds.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(files // _LINKS + 1):
        Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(seeds / f"{number}.png")
    for number in range(files):
        inside = half / f"class-{number % 1000:03d}"
        if number < 1000:
            inside.mkdir()
        os.link(seeds / f"{number // _LINKS}.png", inside / f"image-{number // 1000:05d}.png")
    half.rename(folder)


def bare_walk(root: Path) -> float:
    """Return the seconds of listing folders and asking every file for its status, several folders at a time."""

    def walk(folder: str) -> tuple[list[str], int]:
        inside, file_count = [], 0
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    inside.append(entry.path)
                else:
                    entry.stat()
                    file_count += 1
        return inside, file_count

    began = time.perf_counter()
    level = [str(root)]
    with ThreadPoolExecutor() as pool:
        while level:
            level = [folder for inside, _ in pool.map(walk, level) for folder in inside]
    return time.perf_counter() - began


def ran(code: str, *words: object) -> list[str]:
    """Return what a program printed."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()


if __name__ == "__main__":
    main()
