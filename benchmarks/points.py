"""Point clouds: what the tasks reach on ModelNet10, beside random weights and the share of points in each cell.

    tar -xzf modelnet10.tar.gz -C MODELNET
    python benchmarks/points.py --modelnet MODELNET --runs RUNS      # writes benchmarks/points.json

The set has voxels, 32 a side: a cloud is 2,048 points in voxels at the surface, each moved within its voxel. A run that is
there goes on or is measured again; `--models` chooses among rows.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from commands import logged, provenance, row_of, sslkit

MODELS = {
    "point_contrast": ["point_contrast", "--steps", 900],
    "point_contrast, pointnet2_micro": ["point_contrast", "--encoder", "pointnet2_micro", "--steps", 300],
    "depth_contrast": ["depth_contrast", "--steps", 900],
    "depth_contrast, points and voxels": ["depth_contrast", "--second-encoder", "voxel_micro", "--steps", 450],
    "point_mae": ["point_mae", "--steps", 900],
}
TUNED = ("point_mae", "depth_contrast")  # also fine-tuned, beside the same network from scratch
NAMES = ["bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet"]
POINTS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--modelnet", type=Path, required=True, help="folder with voxels.npz")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the clouds and the runs")
    parser.add_argument("--models", default=";".join(MODELS), help="names with semicolons between them")
    arguments = parser.parse_args()
    data = arguments.runs.resolve() / "modelnet10"
    if not data.exists():
        write_clouds(next(arguments.modelnet.rglob("voxels.npz")), data)
    file = Path(__file__).with_suffix(".json")
    records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in arguments.models.split(";"):
        out = arguments.runs.resolve() / name.replace(", ", "-").replace(" ", "-")
        task, *flags = MODELS[name]
        trained = sslkit("pretrain", task, "--data", data, *flags, "--health-every", 0, "--out", out, "--resume")
        checkpoint = ["--ckpt", out / "model.safetensors"]
        held_out = ["--data", data / "test", "--samples", 901, "--out", out / "test.png"]
        records[name] = {
            "flags": [task, *map(str, flags)],
            **provenance(),
            "seconds": trained["seconds"],
            "samples_per_second": trained["samples_per_second"],
            "last": {key: value for key, value in logged(out)[-1].items() if isinstance(value, float)},
            "knn": [row_of(row) for row in sslkit("knn", *checkpoint)["rows"]],
            "probe": [row_of(row) for row in sslkit("probe", *checkpoint)["rows"]],
            "held_out": sslkit("preview", task, *checkpoint, *held_out)["metrics"],
        }
        if name in TUNED:
            tuning = [*checkpoint, "--epochs", 6, "--scratch", "--out", out.with_name(f"{out.name}-tuned"), "--resume"]
            records[name]["finetune"] = [row_of(row) for row in sslkit("finetune", *tuning)["rows"]]
        file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def write_clouds(file: Path, data: Path) -> None:
    """Write a cloud for every grid of voxels that is not empty, in class folders of train/ and test/."""
    random, content = np.random.default_rng(0), np.load(file, allow_pickle=False)
    unfinished = data.with_suffix(".unfinished")
    for part in ("train", "test"):
        grids = np.unpackbits(content[f"voxels_{part}"], axis=-1).reshape(-1, 32, 32, 32).astype(bool)
        for number, (grid, label) in enumerate(zip(grids, content[f"labels_{part}"], strict=True)):
            around = np.pad(grid, 1)
            inside = np.ones_like(grid)
            for axis in range(3):
                for shift in (-1, 1):
                    inside &= np.roll(around, shift, axis)[1:-1, 1:-1, 1:-1]
            surface = np.argwhere(grid & ~inside)
            if len(surface):
                points = surface[random.integers(len(surface), size=POINTS)] + random.random((POINTS, 3))
                folder = unfinished / part / NAMES[label]
                folder.mkdir(parents=True, exist_ok=True)
                np.save(folder / f"{number:04}.npy", points.astype(np.float32))
    unfinished.rename(data)


if __name__ == "__main__":
    main()
