"""rbm, conv_rbm and sparse_coding beside principal components of equal width, on digits and on CIFAR-10.

    python -m sslkit demo --images-only --out DIGITS
    tar -xzf cifar10.tar.gz -C CIFAR && python benchmarks/subset.py CIFAR
    python benchmarks/classics.py --digits DIGITS/images --cifar CIFAR --runs RUNS      # writes benchmarks/classics.json

Digits are scikit-learn's, once as they are and once as the demo paints them, in random colors, sizes and places. All features
get the same classifier, that of probe/logreg-v1; principal components are of the training images' pixels. A run that is there
goes on; `--models` chooses among rows.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import provenance, sslkit
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import Tensor

from sslkit.evaluation.metrics import is_correct
from sslkit.evaluation.probe import Probe, fit_over_c
from sslkit.evaluation.session import TrainingView
from sslkit.evaluation.solvers import cross_entropy
from sslkit.evaluation.statistics import Answers, compare_answers, interval_of_mean

MODELS: dict[str, tuple[str, int, list[Any]]] = {
    "rbm, digits": ("digits", 16, ["rbm", "--epochs", 40]),
    "rbm, plain digits": ("plain", 16, ["rbm", "--channels", 1, "--epochs", 40]),
    "rbm, cifar10": ("cifar", 32, ["rbm", "--visible", "gaussian", "--epochs", 40, "--lr", 0.002]),
    "conv_rbm, plain digits": (
        "plain",
        16,
        ["conv_rbm", "--channels", 1, "--encoder-option", "kernel=5", "--encoder-option", "bases=64", "--epochs", 20],
    ),
    "conv_rbm, cifar10": ("cifar", 32, ["conv_rbm", "--encoder-option", "bases=64", "--epochs", 5]),
    "sparse_coding, digits": ("digits", 16, ["sparse_coding", "--epochs", 20]),
    "sparse_coding, plain digits": ("plain", 16, ["sparse_coding", "--channels", 1, "--epochs", 20]),
    "sparse_coding, cifar10": ("cifar", 32, ["sparse_coding", "--epochs", 10]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--digits", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--cifar", type=Path, required=True, help="folder with train.csv and test.csv")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--models", default=";".join(MODELS), help="names, with semicolons")
    arguments = parser.parse_args()
    digits, cifar, runs = (path.resolve() for path in (arguments.digits, arguments.cifar, arguments.runs))
    data = {
        "digits": (digits / "train", digits / "test", []),
        "cifar": (cifar / "train.csv", cifar / "test.csv", ["--label", "label"]),
    }
    plain = write_plain(runs / "plain")
    data["plain"] = plain / "train", plain / "test", []
    file = Path(__file__).with_suffix(".json")
    for name in arguments.models.split(";"):
        result = measure(name, *data[MODELS[name][0]], runs / name.replace(", ", "-"))
        records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        records[name] = result
        file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def measure(name: str, train: Path, test: Path, labels: list[str], out: Path) -> dict[str, Any]:
    """Train a model, or go on; classify by its features and by principal components of equal width."""
    _, size, flags = MODELS[name]
    sslkit("pretrain", *flags, "--data", train, "--size", size, "--out", out, "--resume")
    parts = []
    for number, part in enumerate((train, test)):
        file = out.with_name(f"{out.name}-{number}.npz")
        sslkit("embed", "--ckpt", out / "model.safetensors", "--data", part, *labels, "--out", file)
        parts.append(np.load(file))
    root = train if train.is_dir() else train.parent
    pixels = [read_pixels(root if part is parts[0] else test if test.is_dir() else root, part["paths"], size) for part in parts]
    features = [part["features"].astype(np.float32) for part in parts]
    width = min(features[0].shape[1], pixels[0].shape[1])
    components = PCA(width, random_state=0).fit(pixels[0])
    inputs = {
        flags[0]: features,
        "principal components": [components.transform(values).astype(np.float32) for values in pixels],
    }
    classes = tuple(sorted(set(parts[0]["labels"])))
    targets = [torch.tensor([classes.index(label) for label in part["labels"]]) for part in parts]
    answers = {model: classify(values, targets, classes) for model, values in inputs.items()}
    rows = []
    for model, answer in answers.items():
        low, high, _ = interval_of_mean(answer.correct)
        comparison = compare_answers(answers[flags[0]], answer)
        row = {
            "model": model,
            "width": inputs[model][0].shape[1],
            "value": float(answer.correct.mean()),
            "low": low,
            "high": high,
        }
        rows.append(
            row | {"task_is_better_by": [getattr(comparison, part) for part in ("difference", "low", "high", "p_value")]}
        )
    return {**provenance(), "test_samples": len(targets[1]), "rows": rows}


def write_plain(folder: Path) -> Path:
    """Write scikit-learn's digits as gray images of 16 px, the last third to test on."""
    digits = load_digits()
    split = len(digits.images) * 2 // 3
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = folder / ("train" if number < split else "test") / str(label) / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
        image.resize((16, 16), Image.Resampling.BICUBIC).save(file)
    return folder


def read_pixels(root: Path, paths: NDArray[Any], size: int) -> NDArray[np.float32]:
    """Return pixels `[N, 3 * size * size]` from 0 to 1, or of one channel for gray images."""
    images = []
    for path in paths:
        with Image.open(root / str(path)) as image:
            images.append(
                np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC), np.float32).ravel() / 255
            )
    pixels = np.stack(images)
    channels = pixels.reshape(len(pixels), -1, 3)
    return channels[:, :, 0].copy() if (channels == channels[:, :, :1]).all() else pixels


def classify(values: list[NDArray[np.float32]], targets: list[Tensor], classes: tuple[str, ...]) -> Answers:
    """Return which test samples logistic regression gets right."""
    train, test = (torch.from_numpy(each) for each in values)
    nothing = np.zeros(len(train), dtype=np.int64)
    view = TrainingView({"last": train}, targets[0], np.arange(len(train)), nothing, classes)
    classifier = fit_over_c(view, 0, Probe.protocols[0].settings, cross_entropy)
    return Answers(np.arange(len(test)), is_correct(classifier.scores({"last": test}), targets[1]))


if __name__ == "__main__":
    main()
