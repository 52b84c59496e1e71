"""Video: what the tasks reach on moving digits, and how well their features carry masks through the clips of DAVIS.

    tar -xzf davis.tar.gz -C DAVIS
    python benchmarks/video.py --davis DAVIS --runs RUNS      # writes benchmarks/video.json

Moving digits (moving_digits.py) have two labels: the digit, which frames show, and the speed, which no single frame does. Test
clips have other digits and backgrounds. Of DAVIS every second clip is trained on, without its masks; those of the others are
propagated. A run that is there goes on or is measured again; `--models` chooses among rows.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from commands import logged, provenance, row_of, sslkit

MOVING = {
    "order_verification": ["order_verification", "--steps", 700],
    "odd_one_out": ["odd_one_out", "--steps", 450],
    "time_contrastive": ["time_contrastive", "--steps", 400],
    "videomae": ["videomae", "--steps", 1500, "--frames", 8],
    "egomotion": ["egomotion", "--steps", 900],
    "tracked_patches": ["tracked_patches", "--steps", 600],
    "motion_segmentation": ["motion_segmentation", "--steps", 700],
}
TRACKING = {
    "video_colorization": ["video_colorization", "--steps", 500],
    "time_contrastive": ["time_contrastive", "--steps", 250],
}
TUNING = ["--epochs", 12, "--batch-size", 32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--davis", type=Path, required=True, help="folder with clips/ and masks/")
    parser.add_argument("--runs", type=Path, required=True, help="folder for clips and runs")
    parser.add_argument(
        "--models", default="all", help="names such as moving:videomae or davis:video_colorization, with commas"
    )
    arguments = parser.parse_args()
    names = [f"moving:{name}" for name in MOVING] + [f"davis:{name}" for name in TRACKING]
    runs = arguments.runs.resolve()
    moving = runs / "moving"
    if not moving.exists():
        words = [sys.executable, Path(__file__).with_name("moving_digits.py"), moving, "--test", "597", "--clips", "3"]
        subprocess.run(words, check=True)
    masks = next(path for path in arguments.davis.resolve().rglob("masks") if (path.parent / "clips").is_dir())
    parts = split_clips(masks.parent / "clips", runs / "davis")
    file = Path(__file__).with_suffix(".json")
    records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in names if arguments.models == "all" else arguments.models.split(","):
        kind, _, model = name.partition(":")
        out = runs / name.replace(":", "-")
        records[name] = on_moving_digits(model, moving, out) if kind == "moving" else on_davis(model, parts, masks, out)
        file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def on_moving_digits(model: str, moving: Path, out: Path) -> dict[str, Any]:
    """Return what a task reaches by k-NN and a linear probe, and how well it answers its own question on test clips."""
    task, *flags = MOVING[model]
    record = train([task, "--data", moving / "train.csv", *flags], out)
    checkpoint = ["--ckpt", out / "model.safetensors"]
    held_out = ["--data", moving / "test.csv", "--samples", 1000, "--out", out / "test.png"]
    record["held_out"] = sslkit("preview", task, *checkpoint, *held_out)["metrics"]
    for label in ("digit", "speed"):
        labeled = ["--data", moving / "train.csv", "--test", moving / "test.csv", "--label", label]
        for verb in ("knn", "probe"):
            record[f"{label}, {verb}"] = [row_of(row) for row in sslkit(verb, *checkpoint, *labeled)["rows"]]
        if task == "videomae":
            tuning = [
                *checkpoint,
                *labeled,
                *TUNING,
                "--scratch",
                "--out",
                out.with_name(f"{out.name}-{label}"),
                "--resume",
            ]
            record[f"{label}, finetune"] = [row_of(row) for row in sslkit("finetune", *tuning)["rows"]]
    return record


def on_davis(model: str, parts: tuple[Path, Path], masks: Path, out: Path) -> dict[str, Any]:
    """Return J&F, J and F of a task trained on one half of the clips, for masks of the other half."""
    task, *flags = TRACKING[model]
    record = train([task, "--data", parts[0], "--size", 64, "--batch-size", 10, *flags], out)
    held_out = ["--data", parts[1], "--samples", 10, "--out", out / "test.png"]
    record["held_out"] = sslkit("preview", task, "--ckpt", out / "model.safetensors", *held_out)["metrics"]
    tracks = ["--data", parts[1], "--masks", masks, "--out", out / "tracks.png"]
    for layer in ("last", "3"):
        result = sslkit("propagate", "--ckpt", out / "model.safetensors", *tracks, "--layer", layer)
        record[f"propagate, layer {layer}"] = [
            row_of(row) | {metric["name"]: metric["value"] for metric in row["metrics"]} for row in result["rows"]
        ]
    return record


def train(words: list[Any], out: Path) -> dict[str, Any]:
    """Train a task, or go on, and return what the run was and how fast."""
    sslkit("pretrain", *words, "--health-every", 0, "--out", out, "--resume")
    last = logged(out)[-1]  # a run that was finished before says nothing about its speed
    return {
        "flags": [str(word) for word in words if not isinstance(word, Path)],
        **provenance(),
        "seconds": last["seconds"],
        "samples_per_second": last["samples_per_second"],
        "last": {key: value for key, value in last.items() if isinstance(value, float)},
    }


def split_clips(clips: Path, place: Path) -> tuple[Path, Path]:
    """Return two folders of links to every other clip, by name."""
    parts = place / "train", place / "test"
    for number, clip in enumerate(sorted(clips.iterdir())):
        link = parts[number % 2] / clip.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(clip, target_is_directory=True)
    return parts


if __name__ == "__main__":
    main()
