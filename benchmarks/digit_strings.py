"""Write recordings of five spoken digits each, and when each is spoken: `python benchmarks/digit_strings.py OUT --fsdd FSDD`.

OUT/train.csv and OUT/test.csv list recordings made of the Free Spoken Digit Dataset, those of test by speakers who are not in
train; OUT/digits.csv has path, start, end and label, with pauses of up to a fifth of a second without a label.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import soundfile

_RATE, _DIGITS = 8000, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--fsdd", type=Path, required=True, help="folder with recordings/")
    parser.add_argument("--test-speakers", default="theo", help="names with commas between them")
    arguments = parser.parse_args()
    recordings: dict[str, list[Path]] = {}
    for file in sorted(arguments.fsdd.rglob("*.wav")):
        recordings.setdefault(file.stem.split("_")[1], []).append(file)
    random, tables = np.random.default_rng(0), {"train": [["path"]], "test": [["path"]]}
    intervals: list[list[object]] = [["path", "start", "end", "label"]]
    for speaker, files in recordings.items():
        part = "test" if speaker in arguments.test_speakers.split(",") else "train"
        order = random.permutation(len(files))
        for number in range(len(files) // _DIGITS):
            parts, seconds, name = [], 0.0, f"{speaker}/{number:03}.wav"
            for row in order[number * _DIGITS : (number + 1) * _DIGITS]:
                wave, _ = soundfile.read(files[row], dtype="float32")
                pause = random.normal(scale=3e-4, size=int(random.integers(_RATE // 5))).astype(np.float32)
                start, end = seconds + len(pause) / _RATE, seconds + (len(pause) + len(wave)) / _RATE
                intervals.append([name, f"{start:.4f}", f"{end:.4f}", files[row].stem[0]])
                parts, seconds = [*parts, pause, wave], end
            (arguments.out / speaker).mkdir(parents=True, exist_ok=True)
            soundfile.write(arguments.out / name, np.concatenate(parts), _RATE)
            tables[part].append([name])
    for name, rows in {**tables, "digits": intervals}.items():
        with open(arguments.out / f"{name}.csv", "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(rows)
    print(f"{len(tables['train']) - 1} recordings to train on and {len(tables['test']) - 1} to test on in {arguments.out}")


if __name__ == "__main__":
    main()
