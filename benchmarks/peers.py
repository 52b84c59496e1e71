"""SimCLR, BYOL, Barlow Twins and VICReg here and in lightly: images per second, k-NN after equal minutes, peak memory.

    python benchmarks/peers.py --data DIR/train.csv --test DIR/test.csv --minutes 3 --runs RUNS

Runs of ours and of lightly's take turns. Both train the same encoder on the same images and cores, with heads of the same
widths and the same augmentations (blur off at 32 px); loss, head, optimizer and loop are each one's own. lightly trains as its
CIFAR-10 benchmark does, from images decoded in memory. Without lightly, from PyPI, ours alone are run. Needs Linux.
"""

import argparse
import copy
import csv
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sslkit.contract.encoder import Encoder
from sslkit.encoders.build import build_encoder
from sslkit.engine.checkpoint import read_model, save_model
from sslkit.tasks.load import load_task

METHODS = ("simclr", "byol", "barlow_twins", "vicreg")
BATCH, SIZE = 256, 32
Step = Callable[[Tensor, Tensor], Tensor]  # of two views


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="training list of benchmarks/subset.py")
    parser.add_argument("--test", type=Path, help="test list")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each run")
    parser.add_argument("--runs", type=Path, help="folder for the runs")
    parser.add_argument("--precision", default="auto", help="of ours; lightly trains in float32")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=1, help="turns of each method")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)  # a run of lightly's: our checkpoint, and where to write
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.methods, arguments.data, arguments.minutes, *map(Path, arguments.train))
        return
    if arguments.test is None or arguments.runs is None:
        parser.error("--test and --runs are missing")
    print(
        "| method | seed | by | images/s | steps | minutes | k-NN, weighted200 | peak memory |",
        "|---|---|---|---|---|---|---|---|",
        sep="\n",
    )
    for method in arguments.methods.split(","):
        for seed in range(arguments.seeds):
            for by in ("sslkit", "lightly")[: 2 if find_spec("lightly") else 1]:
                cells = run(by, method, seed, arguments)
                print("|", " | ".join([method, str(seed), by, *cells]), "|", flush=True)


def run(by: str, method: str, seed: int, arguments: argparse.Namespace) -> list[str]:
    """Train and evaluate, and return what the table says."""
    out = arguments.runs.resolve() / f"{method}-{seed}-{by}"
    ours = arguments.runs.resolve() / f"{method}-{seed}-sslkit" / "model.safetensors"
    shutil.rmtree(out, ignore_errors=True)
    if by == "sslkit":
        how = ["--minutes", arguments.minutes, "--batch-size", BATCH, "--seed", seed, "--precision", arguments.precision]
        how += ["--out", out]
        command = ["-m", "sslkit", "pretrain", method, "--data", arguments.data, *how]
    else:
        how = ["--minutes", arguments.minutes, "--methods", method, "--train", ours, out / "model.safetensors"]
        out.mkdir(parents=True)
        command = [__file__, "--data", arguments.data, *how]
    began = time.perf_counter()
    peak = peak_memory([sys.executable, *map(str, command)])
    took = (time.perf_counter() - began) / 60
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rate = statistics.median(line["samples_per_second"] for line in lines)
    where = ["--data", arguments.data, "--test", arguments.test, "--label", "label", "--protocol", "knn/weighted200-v1"]
    evaluation = subprocess.run(
        [sys.executable, "-m", "sslkit", "knn", "--ckpt", out / "model.safetensors", *where, "--no-baselines", "--json"],
        check=True,
        stdout=subprocess.PIPE,
    )
    (row,) = json.loads(evaluation.stdout)["rows"]
    top1 = row["metrics"][0]
    accuracy = f"{top1['value']:.1%} ({100 * top1['low']:.1f} to {100 * top1['high']:.1f})"
    return [f"{rate:.0f}", str(lines[-1]["step"] + 1), f"{took:.1f}", accuracy, f"{peak / 1e9:.2f} GB"]


def peak_memory(command: list[str]) -> int:
    """Run a command and return the most bytes that it and its children held at once, what they share counted once."""
    process, peak = subprocess.Popen(command, stdout=subprocess.DEVNULL), 0
    while process.poll() is None:
        peak = max(peak, sum(map(held, tree(process.pid))))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return peak


def tree(process: int) -> Iterator[int]:
    """Return a process and all its descendants."""
    yield process
    try:
        children = [
            int(child) for task in Path(f"/proc/{process}/task").iterdir() for child in (task / "children").read_text().split()
        ]
    except OSError:  # it has ended
        return
    for child in children:
        yield from tree(child)


def held(process: int) -> int:
    """Return the proportional share of memory of a process, in bytes."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def train(method: str, data: Path, minutes: float, like: Path, out: Path) -> None:
    """Train the encoder of our checkpoint with lightly and write it as ours is."""
    checkpoint = read_model(like)
    torch.manual_seed(json.loads((like.parent / "spec.json").read_text())["seed"])
    encoder = build_encoder(checkpoint.recipe)
    options = load_task(method).Options()
    modules, step = recipe(method, encoder, options.hidden, options.width)
    images = Images(data, transform(method, options.crop_scale))
    loader = DataLoader(images, BATCH, shuffle=True, drop_last=True, num_workers=os.cpu_count() or 1, persistent_workers=True)
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.06 * BATCH / 128, momentum=0.9, weight_decay=5e-4)
    with open(out.parent / "metrics.jsonl", "w") as log:
        batches = endless(loader)
        next(batches)  # workers have started: what is counted are steps, as in ours
        began = last = time.perf_counter()
        for number, views in enumerate(batches):
            gone = (time.perf_counter() - began) / (60 * minutes)
            if gone >= 1:
                break
            optimizer.param_groups[0]["lr"] = 0.06 * BATCH / 128 * (1 + math.cos(math.pi * gone)) / 2
            loss = step(*views)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            now = time.perf_counter()
            log.write(json.dumps({"step": number, "loss": loss.item(), "samples_per_second": BATCH / (now - last)}) + "\n")
            last = now
    save_model(out, {"encoder": encoder}, checkpoint.metadata)


def recipe(method: str, encoder: Encoder, hidden: int, width: int) -> tuple[nn.Module, Step]:
    """Return what is optimized, and a step's loss, as in lightly's examples."""
    from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss
    from lightly.models.modules import heads
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    if method == "byol":
        projector = heads.BYOLProjectionHead(encoder.width, hidden, width)
        predictor = heads.BYOLPredictionHead(width, hidden, width)
        teacher, teacher_projector = copy.deepcopy(encoder), copy.deepcopy(projector)
        deactivate_requires_grad(teacher)
        deactivate_requires_grad(teacher_projector)
        cosine = NegativeCosineSimilarity()

        def byol(first: Tensor, second: Tensor) -> Tensor:
            update_momentum(encoder, teacher, 0.99)
            update_momentum(projector, teacher_projector, 0.99)
            predictions = [predictor(projector(encoder(view))) for view in (first, second)]
            with torch.no_grad():
                targets = [teacher_projector(teacher(view)) for view in (first, second)]
            loss: Tensor = (cosine(predictions[0], targets[1]) + cosine(predictions[1], targets[0])) / 2
            return loss

        return nn.ModuleList([encoder, projector, predictor]), byol

    head: nn.Module = {
        "simclr": heads.SimCLRProjectionHead,
        "barlow_twins": heads.BarlowTwinsProjectionHead,
        "vicreg": heads.VICRegProjectionHead,
    }[method](encoder.width, hidden, width)
    loss_of = {"simclr": NTXentLoss, "barlow_twins": BarlowTwinsLoss, "vicreg": VICRegLoss}[method]()

    def siamese(first: Tensor, second: Tensor) -> Tensor:
        loss: Tensor = loss_of(head(encoder(first)), head(encoder(second)))
        return loss

    return nn.ModuleList([encoder, head]), siamese


def transform(method: str, crop_scale: float) -> Callable[[Image.Image], list[Tensor]]:
    """Return lightly's augmentation, as strong as ours; encoders normalize their input themselves."""
    from lightly.transforms import BYOLTransform, SimCLRTransform
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

    settings: dict[str, Any] = {
        "input_size": SIZE,
        "min_scale": crop_scale,
        "cj_strength": 0.5,
        "gaussian_blur": 0.0,
        "normalize": None,
    }
    settings |= {"cj_bright": 0.8, "cj_contrast": 0.8, "cj_sat": 0.8, "cj_hue": 0.2}
    if method == "simclr":
        return SimCLRTransform(**settings)
    second = BYOLView2Transform(**settings, solarization_prob=0.2)
    return BYOLTransform(BYOLView1Transform(**settings), second)


class Images(Dataset[list[Tensor]]):
    """Hold the decoded images of a list."""

    def __init__(self, data: Path, views: Callable[[Image.Image], list[Tensor]]) -> None:
        with open(data, encoding="utf-8") as lines:
            paths = [data.parent / line["path"] for line in csv.DictReader(lines)]
        self.images, self.views = [Image.open(path).convert("RGB") for path in paths], views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.views(self.images[index])


def endless(loader: DataLoader[list[Tensor]]) -> Iterator[list[Tensor]]:
    """Return batches, epoch after epoch."""
    while True:
        yield from loader


if __name__ == "__main__":
    main()
