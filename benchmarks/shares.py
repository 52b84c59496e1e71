"""Where the time of a step goes in tasks on sound, video and points: `python benchmarks/shares.py --moving M --fsdd F ...`.

Thirty steps of each task by `pretrain --profile 30`, on real data at the task's own settings. Writes benchmarks/shares.json and
prints its table.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from commands import provenance

TASKS = {
    "fsdd": ["cola", "cpc_audio", "wav2vec2", "hubert", "wavlm", "audio_mae", "best_rq"],
    "moving": [
        "order_verification",
        "odd_one_out",
        "time_contrastive",
        "video_colorization",
        "egomotion",
        "tracked_patches",
        "motion_segmentation",
        "videomae --frames 8",
    ],
    "av_digits": ["av_correspondence", "ambient_sound"],
    "points": ["point_contrast", "depth_contrast", "point_mae"],
}
_STAGES = ("waiting for data", "transform", "forward", "backward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in TASKS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, help="data; without it its tasks are left out")
    arguments = parser.parse_args()
    file = Path(__file__).with_suffix(".json")
    records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name, tasks in TASKS.items():
        if (data := getattr(arguments, name)) is not None:
            for task in tasks:
                records[task] = {"data": name, **provenance(), **profile(task.split(), data)}
                file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    print("| task | samples a second | reading | transform | forward | backward |\n|---|---|---|---|---|---|")
    for task, record in records.items():
        shares = " | ".join(f"{record[stage]}%" for stage in _STAGES)
        print(f"| `{task}` | {record['samples_per_second']:,.0f} | {shares} |")


def profile(words: list[str], data: Path) -> dict[str, Any]:
    """Return samples per second and the share of each stage in percent, of thirty steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sslkit", "pretrain", *words, "--data", str(data), "--out", f"{folder}/run"]
        flags = ["--steps", "45", "--profile", "30", "--health-every", "0"]
        printed = subprocess.run([*command, *flags], check=True, stderr=subprocess.PIPE, text=True).stderr
    rate = re.search(r"profile of 30 steps: .* ms each, ([\d,]+) ", printed)
    assert rate is not None, printed
    shares = {}
    for stage in _STAGES:
        line = re.search(rf"^ +{stage} +[\d,.]+ ms +(\d+)%", printed, flags=re.MULTILINE)
        shares[stage] = int(line.group(1)) if line else 0
    return {"samples_per_second": int(rate.group(1).replace(",", "")), **shares}


if __name__ == "__main__":
    main()
