"""Videos with sound: what the tasks reach on digits that move and are spoken.

    python benchmarks/audio_video.py --fsdd FSDD --runs RUNS      # writes benchmarks/audio_video.json

Of the videos (av_digits.py) only the digit is seen and heard alike; digits, recordings and speakers of test are not in train.
The digit is asked of frames, and of the sound with `--part sound`, where the task exports an encoder of it. A run that is there
goes on or is measured again; `--models` chooses among rows.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from commands import logged, provenance, row_of, sslkit

MODELS = {
    "av_correspondence": ["av_correspondence", "--steps", 900],
    "av_correspondence, pairs": ["av_correspondence", "--steps", 900, "--objective", "correspondence"],
    "ambient_sound": ["ambient_sound", "--steps", 900],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fsdd", type=Path, required=True, help="folder with recordings/")
    parser.add_argument("--runs", type=Path, required=True, help="folder for videos and runs")
    parser.add_argument("--models", default=";".join(MODELS), help="names, with semicolons")
    arguments = parser.parse_args()
    videos = arguments.runs.resolve() / "av_digits"
    if not videos.exists():
        script = Path(__file__).with_name("av_digits.py")
        subprocess.run([sys.executable, script, videos, "--fsdd", arguments.fsdd], check=True)
    file = Path(__file__).with_suffix(".json")
    records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in arguments.models.split(";"):
        records[name] = measure(name, videos, arguments.runs.resolve() / name.replace(", ", "-"))
        file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def measure(name: str, videos: Path, out: Path) -> dict[str, Any]:
    """Train a task, or go on; return how well it answers its question on test videos, and what its features know of digits."""
    task, *flags = MODELS[name]
    sslkit("pretrain", task, "--data", videos / "train", "--seconds", 0.5, *flags, "--out", out, "--resume")
    last = logged(out)[-1]  # a run that was finished before says nothing about its speed
    record = {
        "flags": [str(flag) for flag in flags],
        **provenance(),
        "seconds": last["seconds"],
        "samples_per_second": last["samples_per_second"],
        "last": {key: value for key, value in last.items() if isinstance(value, float)},
    }
    checkpoint = ["--ckpt", out / "model.safetensors"]
    held_out = ["--data", videos / "test", "--samples", 597, "--out", out / "test.png"]
    record["held_out"] = sslkit("preview", task, *checkpoint, *held_out)["metrics"]
    labeled = ["--data", videos / "train", "--test", videos / "test"]
    for part in ("encoder", "sound") if task == "av_correspondence" else ("encoder",):
        for verb in ("knn", "probe"):
            record[f"{part}, {verb}"] = [row_of(row) for row in sslkit(verb, *checkpoint, *labeled, "--part", part)["rows"]]
    return record


if __name__ == "__main__":
    main()
