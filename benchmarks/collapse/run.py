"""Let things go wrong, and see whether the health metrics name it: `python benchmarks/collapse/run.py DIR OUT`.

DIR holds train.csv and test.csv of `benchmarks/subset.py`. Every failure runs beside the healthy run it was made from,
for the same number of steps; k-NN of both on the same test images proves the harm. Prints a Markdown table.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sslkit import SslkitError
from sslkit.engine.pretrain import pretrain
from sslkit.evaluation.knn import knn
from sslkit.specs.evaluation import KnnSpec
from sslkit.specs.train import PretrainSpec

HERE = Path(__file__).parent
STEPS, BATCH = 200, 128
RUNS: list[tuple[str, str | None, str, dict[str, Any]]] = [  # name, the healthy run it is compared with, task, changes
    ("byol", None, str(HERE / "byol.py"), {"steps": 600}),
    ("dino", None, str(HERE / "dino.py"), {}),
    ("simclr", None, "simclr", {}),
    ("vicreg", None, str(HERE / "vicreg.py"), {}),
    ("rotation", None, "rotation", {"batch_size": 64}),
    ("moco", None, "moco", {}),
    ("mae", None, "mae", {}),
    ("split_brain", None, "split_brain", {}),
    (
        "byol, no predictor, no stop-gradient",
        "byol",
        str(HERE / "byol.py"),
        {"steps": 600, "options": {"predictor": False, "stop_gradient": False}},
    ),
    ("dino, no centering", "dino", str(HERE / "dino.py"), {"options": {"centering": False}}),
    ("simclr, temperature 100", "simclr", "simclr", {"options": {"temperature": 100}}),
    ("simclr, learning rate × 100", "simclr", "simclr", {"lr": 12.0}),
    ("simclr, constant images", "simclr", "simclr", {"data": "constant"}),
    ("vicreg, variance weight 0", "vicreg", str(HERE / "vicreg.py"), {"options": {"variance_weight": 0}}),
    ("mae, learning rate × 100", "mae", "mae", {"lr": 0.1}),
    ("rotation, learning rate × 100", "rotation", "rotation", {"batch_size": 64, "lr": 6.0}),
]


def main(data: Path, out: Path, only: list[str]) -> None:
    """Run them all, or those whose names begin with one of `only`, and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    constant = out / "constant.npy"
    np.save(constant, np.full((10_000, 32, 32, 3), 127, np.uint8))
    print("| run | named at step | what it says | k-NN top-1 | healthy | p |\n|---|---|---|---|---|---|", flush=True)
    for name, healthy, task, changes in RUNS:
        if only and not name.startswith(tuple(only)):
            continue
        folder = out / name.replace(" ", "-").replace(",", "")
        settings: dict[str, Any] = {"steps": STEPS, "batch_size": BATCH, **changes}
        images = str(constant) if settings.pop("data", "") == "constant" else str(data / "train.csv")
        failure = "diverged"
        try:
            if not (folder / "model.safetensors").exists():
                pretrain(PretrainSpec(task=task, data=images, out=str(folder), **settings))
        except SslkitError as error:
            failure = str(error)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        alarms = [(line["step"] + 1, alarm) for line in lines for alarm in line.get("alarms", [])]
        row = [name, "", "nothing", "", "", ""]
        if alarms:
            row[1:3] = [str(alarms[0][0]), "; ".join(alarm for _, alarm in alarms)]
        if (folder / "model.safetensors").exists():
            against = [] if healthy is None else [str(out / healthy)]
            spec = KnnSpec(
                ckpt=str(folder / "model.safetensors"),
                data=str(data / "train.csv"),
                test=[str(data / "test.csv")],
                label="label",
                protocol="knn/weighted200-v1",
                baselines=False,
                against=against,
            )
            rows = knn(spec).rows
            row[3] = rows[0].headline.text()
            if healthy is not None:
                row[4:] = [rows[1].headline.text(), f"{rows[1].comparisons['checkpoint'].p_value:.1g}"]
        else:
            row[2] = failure
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
