"""Beyond images: does each task learn what it should, in five minutes? Prints Markdown tables.

    tar -xzf fsdd.tar.gz -C DIR; tar -xzf emoji.tar.gz -C DIR
    python benchmarks/modalities.py sound,video,pairs --data DIR --runs RUNS

Each trains with its task's own defaults.
"""

import argparse
import csv
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from commands import sslkit

Runs = Path


def sound(data: Path, runs: Runs, minutes: float) -> None:
    """Digits and speakers of the Free Spoken Digit Dataset; recordings 0 to 4 of each are held out."""
    recordings = data / "fsdd" / "recordings"
    parts: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    for file in sorted(recordings.glob("*.wav")):
        digit, speaker, number = file.stem.split("_")
        parts["test" if int(number) < 5 else "train"].append((str(file), digit, speaker))
    train, test = (table(runs / f"fsdd-{name}.csv", ("path", "digit", "speaker"), rows) for name, rows in parts.items())
    run = sslkit("pretrain", "cola", "--data", train, "--minutes", minutes, "--out", runs / "cola")
    print(f"\ncola: {len(parts['train']):,} recordings, {run['steps']:,} steps, {run['samples_per_second']:.0f} recordings/s\n")
    print("| what | by | cola | random weights | mean spectrum |\n|---|---|---|---|---|")
    for label in ("digit", "speaker"):
        for command in ("knn", "probe"):
            result = sslkit(command, "--ckpt", run["checkpoint"], "--data", train, "--test", test, "--label", label)
            print(f"| {label} | {command} | {' | '.join(accuracy(row) for row in result['rows'])} |", flush=True)


def video(data: Path, runs: Runs, minutes: float) -> None:
    """Digits that move over backgrounds; clips, digits and backgrounds of test were never seen."""
    clips = runs / "moving"
    if not clips.exists():
        subprocess.run([sys.executable, Path(__file__).with_name("moving_digits.py"), clips], check=True)
    run = sslkit("pretrain", "order_verification", "--data", clips, "--minutes", minutes, "--out", runs / "order")
    arguments = ["preview", "order_verification", "--ckpt", run["checkpoint"], "--samples", 2000]
    print(f"\norder_verification: {run['steps']:,} steps, {run['samples_per_second']:.0f} clips/s\n")
    print("| clips | triples told right (chance: 50%) |\n|---|---|")
    for part in ("train", "test"):
        result = sslkit(*arguments, "--data", clips / part, "--out", runs / f"order-{part}.png")
        print(f"| {part} | {result['metrics']['accuracy']:.1%} |", flush=True)
    print("\n| what | by | order_verification | random weights | raw pixels |\n|---|---|---|---|---|")
    for command in ("knn", "probe"):
        result = sslkit(command, "--ckpt", run["checkpoint"], "--data", clips)
        print(f"| digit of a clip | {command} | {' | '.join(accuracy(row) for row in result['rows'])} |", flush=True)


def pairs(data: Path, runs: Runs, minutes: float) -> None:
    """Emoji and their names: the other vendor's drawings held out, and a fifth of the names held out."""
    folder = data / "emoji"
    with open(folder / "captions.csv", newline="", encoding="utf-8") as stream:
        rows = [{**row, "path": str(folder / row["path"])} for row in csv.DictReader(stream)]
    vendor = rows[0]["vendor"]
    names = sorted({row["caption"] for row in rows})
    held_out = set(random.Random(0).sample(names, len(names) // 5))
    splits = {
        "the other vendor": lambda row: row["vendor"] != vendor,
        "a fifth of the captions": lambda row: row["caption"] in held_out,
    }
    print("\n| held out | tower | way | recall at 1 | at 5 | at 10 | chance |\n|---|---|---|---|---|---|---|")
    for number, (split, is_test) in enumerate(splits.items()):
        parts = [[row for row in rows if is_test(row) is in_test] for in_test in (False, True)]
        train, test = (
            table(runs / f"emoji-{number}-{name}.csv", tuple(rows[0]), [tuple(row.values()) for row in part])
            for name, part in zip(("train", "test"), parts, strict=True)
        )
        for tower in ("transformer", "cbow"):
            options = ["--text-tower", tower, "--minutes", minutes, "--out", runs / f"clip-{number}-{tower}"]
            run = sslkit("pretrain", "clip", "--data", train, *options)
            results = sslkit("zeroshot", "--ckpt", run["checkpoint"], "--data", test)["rows"]
            for row, by_chance in zip(results[::2], results[1::2], strict=True):
                recalls = [f"{metric['value']:.1%}" for metric in row["metrics"]]
                chances = ", ".join(f"{metric['value']:.1%}" for metric in by_chance["metrics"])
                direction = row["test"].rpartition(", ")[2]
                print(f"| {split} | {tower} | {direction} | {' | '.join(recalls)} | {chances} |", flush=True)
            if tower == "transformer":
                classes = sslkit("zeroshot", "--ckpt", run["checkpoint"], "--data", test, "--label", "category")
                print(f"<!-- categories by name: {accuracy(classes['rows'][0])} of 8 -->", flush=True)


def table(path: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Path:
    """Write a .csv and return its path."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


def accuracy(row: dict[str, Any]) -> str:
    """Return a row's accuracy with its interval."""
    top1 = row["metrics"][0]
    return f"{top1['value']:.1%} ({100 * top1['low']:.1f} to {100 * top1['high']:.1f})"


PARTS = {"sound": sound, "video": video, "pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5)
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts.split(","):
        PARTS[part](arguments.data, arguments.runs, arguments.minutes)


if __name__ == "__main__":
    main()
