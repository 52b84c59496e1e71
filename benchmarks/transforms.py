"""SimCLR views per second: batched on the device, against torchvision image by image in worker processes.

    python benchmarks/transforms.py --size 32
    python benchmarks/transforms.py --size 224

Both begin from the same uint8 canvases in memory and end with a float batch, on the same cores: ours with as many threads,
torchvision's with as many workers. They take turns. Prints one line of JSON.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from sslkit.engine.memory import keep_freed_memory
from sslkit.image.views import strong_view


class Views(Dataset[torch.Tensor]):
    """Draw a view of each canvas with torchvision, as SimCLR does."""

    def __init__(self, canvases: np.ndarray, size: int, strength: float, blur: float) -> None:
        self.canvases = canvases
        jitter = v2.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
        odd = round(size / 10) // 2 * 2 + 1
        self.draw = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.08, 1.0)),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([jitter], p=0.8),
                v2.RandomGrayscale(0.2),
                *([v2.RandomApply([v2.GaussianBlur(odd, (0.1, 2.0))], p=blur)] if blur else []),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, row: int) -> torch.Tensor:
        view: torch.Tensor = self.draw(Image.fromarray(self.canvases[row % len(self.canvases)]))
        return view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    arguments = parser.parse_args()
    small = arguments.size <= 64
    batch_size = arguments.batch_size or (256 if small else 64)
    canvas, strength, blur = (arguments.size, 0.5, 0.0) if small else (round(arguments.size * 8 / 7), 1.0, 0.5)
    canvases = np.random.default_rng(0).integers(0, 255, (batch_size, canvas, canvas, 3), dtype=np.uint8)
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    loader = DataLoader(
        Views(canvases, arguments.size, strength, blur), batch_size, num_workers=cores, persistent_workers=True, shuffle=False
    )
    theirs = iter(loader)
    ours = batched(torch.from_numpy(canvases), arguments.size, strength, blur)
    rates: dict[str, list[float]] = {"ours": [], "torchvision": []}
    for turn in range(arguments.turns + 1):
        for name, source in (("ours", ours), ("torchvision", theirs)):
            rate = measured(source, batch_size, arguments.seconds)
            if turn:  # the first warms up
                rates[name].append(rate)
    ratios = [a / b for a, b in zip(rates["ours"], rates["torchvision"], strict=True)]
    print(
        json.dumps(
            {
                "size": arguments.size,
                "batch_size": batch_size,
                "cores": cores,
                "views_per_second": round(statistics.median(rates["ours"])),
                "torchvision_views_per_second": round(statistics.median(rates["torchvision"])),
                "ratio": round(statistics.median(ratios), 1),
                "ratios": [round(ratio, 1) for ratio in sorted(ratios)],
            }
        )
    )


def batched(canvases: torch.Tensor, size: int, strength: float, blur: float) -> Iterator[Any]:
    keep_freed_memory()  # as the engine does on a CPU
    jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    with torch.no_grad():
        while True:
            image = canvases.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
            batch = {"canvas": image, "aspect": torch.ones(len(image))}
            yield strong_view(batch, size, (0.08, 1.0), jitter, blur=blur)


def measured(source: Iterator[Any], batch_size: int, seconds: float) -> float:
    """Return the views per second of a turn; workers that have run ahead during the other's turn are let empty first."""
    for _ in range(2 * len(os.sched_getaffinity(0)) + 1):
        next(source)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(source)
        count += batch_size
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
