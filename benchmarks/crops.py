"""Crops of canvases compared with torchvision's RandomResizedCrop on the original photographs, and what a canvas costs.

    python benchmarks/crops.py --data DIR > benchmarks/crops.json

DIR holds photographs, such as the test part of cats_dogs.tar.gz. Every box is drawn by torchvision on the original, which PIL
crops and resizes with antialiasing: the reference of the PSNR. Canvases of format 1 held the middle square only.
"""

import argparse
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor

from sslkit.image.decode import CanvasFormat, decode
from sslkit.image.transforms.geometry import CropBox, crop

SIZE, MIDDLE, WHOLE = 224, 256, 304


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    files = sorted(arguments.data.rglob("*.jpg"))[: arguments.images]
    torch.manual_seed(0)
    psnr: dict[str, list[float]] = {"whole": [], "whole, one tap": [], "middle, one tap (format 1)": []}
    reach = 0
    for file in files:
        original = Image.open(file).convert("RGB")
        width, height = original.size
        top, left, down, across = torchvision.transforms.RandomResizedCrop.get_params(
            torch.empty(1, height, width), [0.08, 1.0], [3 / 4, 4 / 3]
        )
        box = (left, top, left + across, top + down)
        expected = np.asarray(original.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box), np.float64)
        whole = tensor(read(file, CanvasFormat(WHOLE, "whole")))
        place = [top / height, left / width, down / height, across / width]
        psnr["whole"].append(quality(cut(whole, place, True), expected))
        psnr["whole, one tap"].append(quality(cut(whole, place, False), expected))
        short = min(width, height)
        x, y = left - (width - short) / 2, top - (height - short) / 2
        if min(x, y) >= 0 and max(x + across, y + down) <= short:
            reach += 1
            middle = tensor(read(file, CanvasFormat(MIDDLE)))
            place = [y / short, x / short, down / short, across / short]
            psnr["middle, one tap (format 1)"].append(quality(cut(middle, place, False), expected))
    formats = {"middle (format 1)": CanvasFormat(MIDDLE), "whole": CanvasFormat(WHOLE, "whole")}
    decoding: dict[str, list[float]] = {name: [] for name in formats}
    cropping: dict[str, list[float]] = {"middle, one tap (format 1)": [], "whole": []}
    batches = {"middle, one tap (format 1)": torch.rand(64, 3, MIDDLE, MIDDLE), "whole": torch.rand(64, 3, WHOLE, WHOLE)}
    for _ in range(arguments.turns):
        for name, form in formats.items():
            began = time.perf_counter()
            for file in files[:100]:
                read(file, form)
            decoding[name].append((time.perf_counter() - began) * 10)  # ms an image
        for name, canvas in batches.items():
            began = time.perf_counter()
            half = torch.full((64,), 0.5)
            crop(canvas, CropBox(half / 2, half / 2, half, half), SIZE, shrinks=name == "whole")
            cropping[name].append((time.perf_counter() - began) / 64 * 1000)
    print(
        json.dumps(
            {
                "date": date.today().isoformat(),
                "machine": f"{torch.get_num_threads()} cores, {platform.machine()}, torch {torch.__version__}",
                "photographs": len(files),
                "psnr_db": {name: round(statistics.median(values), 1) for name, values in psnr.items()},
                "psnr_db_worst_tenth": {name: round(float(np.quantile(values, 0.1)), 1) for name, values in psnr.items()},
                "boxes_within_the_middle": round(reach / len(files), 2),
                "decoding_ms": {name: round(statistics.median(values), 2) for name, values in decoding.items()},
                "cropping_ms": {name: round(statistics.median(values), 2) for name, values in cropping.items()},
                "bytes": {name: 3 * form.side**2 for name, form in formats.items()},
            },
            indent=2,
        )
    )


def read(file: Path, form: CanvasFormat) -> np.ndarray:
    """Return a photograph on its canvas."""
    with open(file, "rb") as stream:
        return decode(stream, form).canvas


def tensor(canvas: np.ndarray) -> Tensor:
    """Return a canvas as `[1, C, S, S]` in [0, 1]."""
    return torch.from_numpy(canvas.copy()).permute(2, 0, 1)[None].float() / 255


def cut(canvas: Tensor, place: list[float], shrinks: bool) -> np.ndarray:
    """Return the crop of a box, as levels of 0 to 255."""
    top, left, down, across = (torch.tensor([value]) for value in place)
    return (crop(canvas, CropBox(top, left, down, across), SIZE, shrinks=shrinks)[0] * 255).permute(1, 2, 0).double().numpy()


def quality(image: np.ndarray, expected: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / np.square(image - expected).mean()))


if __name__ == "__main__":
    main()
