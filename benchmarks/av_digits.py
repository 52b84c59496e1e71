"""Write videos of digits that move and are spoken: `python benchmarks/av_digits.py OUT --fsdd FSDD`.

OUT/train and OUT/test hold DIGIT/VIDEO.mp4, in each of which a digit of scikit-learn's moves while a speaker of the Free Spoken
Digit Dataset says it, again and again. Digits, backgrounds, recordings and speakers of test are not in train.
"""

import argparse
from pathlib import Path

import numpy as np
import soundfile
from moving_digits import clip
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from sslkit.audio_video.writing import write_video

_TEST_SPEAKERS = ("nicolas", "theo")
_RATE, _FRAMES, _PER_SECOND = 8000, 24, 12


def speech(recordings: list[Path], random: np.random.Generator) -> NDArray[np.float32]:
    """Return two seconds of recordings that follow each other, with pauses of up to a tenth of a second."""
    parts: list[NDArray[np.float32]] = []
    while sum(map(len, parts)) < _FRAMES * _RATE // _PER_SECOND:
        wave, _ = soundfile.read(recordings[random.integers(len(recordings))], dtype="float32")
        pause = random.normal(scale=1e-3, size=int(random.integers(_RATE // 10)))
        parts += [0.3 * wave / np.abs(wave).max(), pause.astype(np.float32)]
    return np.concatenate(parts)[: _FRAMES * _RATE // _PER_SECOND]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--fsdd", type=Path, required=True, help="folder with recordings/")
    parser.add_argument("--train", type=int, default=1200)
    parser.add_argument("--test", type=int, default=597)
    arguments = parser.parse_args()
    recordings: dict[tuple[str, str], list[Path]] = {}
    for file in sorted(arguments.fsdd.rglob("*.wav")):
        digit, speaker, _ = file.stem.split("_")
        recordings.setdefault((digit, speaker), []).append(file)
    digits, random = load_digits(), np.random.default_rng(0)
    speakers = {"test": _TEST_SPEAKERS, "train": sorted({name for _, name in recordings} - set(_TEST_SPEAKERS))}
    for number, row in enumerate(random.permutation(len(digits.images))[: arguments.train + arguments.test]):
        part, digit = "train" if number < arguments.train else "test", str(digits.target[row])
        speaker = speakers[part][random.integers(len(speakers[part]))]
        file = arguments.out / part / digit / f"{row:04}_{speaker}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        frames, _ = clip(digits.images[row], random)
        write_video(file, frames, _PER_SECOND, speech(recordings[digit, speaker], random), _RATE)
    print(f"{number + 1} videos in {arguments.out}")


if __name__ == "__main__":
    main()
