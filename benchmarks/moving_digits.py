"""Write clips of scikit-learn's digits that move over backgrounds with inertia: `python benchmarks/moving_digits.py OUT`.

OUT/train and OUT/test hold DIGIT/CLIP/FRAME.png, 24 frames of 32 pixels; digits and backgrounds of test are not in train.
A digit keeps its velocity but for a small push in every frame, and bounces off the borders. OUT/train.csv and OUT/test.csv have
`digit` and `speed` (slow, medium or fast: a third of the clips each), which no single frame tells.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

_SIDE, _FRAMES, _DIGIT = 32, 24, 14
_SPEEDS = ("slow", "medium", "fast")


def clip(digit: NDArray[np.float64], random: np.random.Generator) -> tuple[NDArray[np.uint8], float]:
    """Return the frames of a digit `[8, 8]`, values 0 to 16, `[24, 32, 32, 3]`, and its mean speed in pixels per frame."""
    coarse = Image.fromarray(random.integers(0, 160, (4, 4, 3), dtype=np.uint8))
    ground = np.asarray(coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), dtype=np.float64)
    shape = Image.fromarray((digit / 16 * 255).astype(np.uint8)).resize((_DIGIT, _DIGIT), Image.Resampling.BICUBIC)
    color = random.uniform(150, 255, 3)
    room = _SIDE - _DIGIT
    place, angle = random.uniform(0, room, 2), random.uniform(0, 2 * np.pi)
    velocity = random.uniform(0.8, 1.8) * np.array([np.cos(angle), np.sin(angle)])
    frames, speeds = [], []
    for _ in range(_FRAMES):
        frame = ground.copy()
        top, left = place.round().astype(int)
        opacity = np.asarray(shape, dtype=np.float64)[..., None] / 255
        inside = frame[top : top + _DIGIT, left : left + _DIGIT]
        inside += opacity * (color - inside)
        frames.append(frame)
        velocity = velocity + random.normal(scale=0.05, size=2)
        speeds.append(float(np.linalg.norm(velocity)))
        place = place + velocity
        over = (place < 0) | (place > room)
        velocity[over] *= -1
        place = np.clip(place, 0, room)
    return np.stack(frames).clip(0, 255).astype(np.uint8), float(np.mean(speeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=1200)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--clips", type=int, default=1, help="clips of each test digit")
    arguments = parser.parse_args()
    digits, random = load_digits(), np.random.default_rng(0)
    order = random.permutation(len(digits.images))[: arguments.train + arguments.test]
    speeds: dict[str, float] = {}
    clips = [(row, "train", f"{row:04}") for row in order[: arguments.train]]
    for turn in range(arguments.clips):
        clips += [(row, "test", f"{row:04}" if turn == 0 else f"{row:04}-{turn}") for row in order[arguments.train :]]
    for row, part, name in clips:
        folder = arguments.out / part / str(digits.target[row]) / name
        folder.mkdir(parents=True, exist_ok=True)
        frames, speeds[str(folder.relative_to(arguments.out))] = clip(digits.images[row], random)
        for place, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"{place:02}.png")
    limits = np.quantile(list(speeds.values()), [1 / 3, 2 / 3])
    for part in ("train", "test"):
        with open(arguments.out / f"{part}.csv", "w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["path", "digit", "speed"])
            for path, speed in speeds.items():
                if path.startswith(part):
                    table.writerow([path, path.split("/")[1], _SPEEDS[int(np.searchsorted(limits, speed))]])
    print(f"{len(clips)} clips in {arguments.out}")


if __name__ == "__main__":
    main()
