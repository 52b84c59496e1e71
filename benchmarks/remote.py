"""The first epoch of shards on a server, compared with the same shards on the local disk.

    python benchmarks/remote.py --data DIR --scratch SCRATCH > benchmarks/remote.json

DIR holds photographs, which are put into four shards. The server runs on this machine, in a process of its own, answers ranges
over connections that stay open, and has Nagle's algorithm turned off. An epoch begins with an empty cache of canvases and a
known index, and is over when every image was decoded. One core is left to the server, as if it were another machine; with
`--workers` as many as cores it takes its share of theirs.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import tarfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sslkit.data.loader import Loader, epoch_batches
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec
from tests.server import serve

SHARDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int)
    arguments = parser.parse_args()
    folder = arguments.scratch / "shards"
    images = make(arguments.data, folder)
    os.environ["SSLKIT_CACHE"] = str(arguments.scratch / "cache")
    addresses: Any = multiprocessing.Queue()
    server = multiprocessing.Process(target=run_server, args=(folder, addresses), daemon=True)
    server.start()
    pattern = f"part-{{0..{SHARDS - 1}}}.tar"
    places = {"local": f"wds:{folder}/{pattern}", "http": f"wds:{addresses.get()}/{pattern}"}
    cores = len(os.sched_getaffinity(0))
    workers = arguments.workers or max(1, cores - 1)
    rates: dict[str, list[float]] = {name: [] for name in places}
    for turn in range(arguments.turns + 1):
        for name, data in places.items():
            rate = epoch(data, arguments.batch_size, workers, arguments.scratch / "cache" / "canvases")
            if turn:  # the first makes the index, and brings the files into memory
                rates[name].append(rate)
    server.terminate()
    ratios = [http / local for http, local in zip(rates["http"], rates["local"], strict=True)]
    print(
        json.dumps(
            {
                "date": date.today().isoformat(),
                "machine": f"{cores} cores, {platform.machine()}, torch {torch.__version__}",
                "images": images,
                "workers": workers,
                "images_per_second": {name: round(statistics.median(values)) for name, values in rates.items()},
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
            },
            indent=2,
        )
    )


def make(data: Path, folder: Path) -> int:
    """Put photographs into shards, unless they are there, and return their number."""
    files = sorted(data.rglob("*.jpg"))
    if not folder.exists():
        folder.mkdir(parents=True)
        for number in range(SHARDS):
            with tarfile.open(folder / f"part-{number}.tar", "w") as shard:
                for place, file in enumerate(files[number::SHARDS]):
                    shard.add(file, f"{place:06}.jpg")
    return len(files)


def run_server(folder: Path, addresses: Any) -> None:
    """Serve a folder until the process is ended."""
    with serve(folder) as server:
        addresses.put(server.address)
        time.sleep(1e6)


def epoch(data: str, batch_size: int, workers: int, canvases: Path) -> float:
    """Return the images per second of an epoch that decodes everything."""
    shutil.rmtree(canvases, ignore_errors=True)
    source = ImageSource.open(DataSpec(data=data, size=224, workers=workers))
    loader = Loader(source, workers, substitute=True)
    batches = epoch_batches(source.info.samples, batch_size, 0, 0)
    began = time.perf_counter()
    count = sum(len(raw["index"]) for raw in loader(batches))
    seconds = time.perf_counter() - began
    loader.close()
    return count / seconds


if __name__ == "__main__":
    main()
