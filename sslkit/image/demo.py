"""`sslkit demo`: everything once, on the handwritten digits that ship with scikit-learn."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sslkit.console import say
from sslkit.contract.errors import SslkitError
from sslkit.specs.evaluation import KnnSpec, ProbeSpec
from sslkit.specs.train import DemoSpec, PretrainSpec
from sslkit.specs.use import ExportSpec

if TYPE_CHECKING:
    from torch import Tensor

_SIDE = 16  # twice that of the digits: small enough for thirty epochs in a minute or so


@dataclass(frozen=True)
class DemoResult:
    """The result of `sslkit demo`; accuracies are shares of 1, None with `--images-only`."""

    images: str
    run: str | None = None
    checkpoint: str | None = None
    knn: float | None = None
    probe: float | None = None
    random_knn: float | None = None
    random_probe: float | None = None
    export: str | None = None


def demo(spec: DemoSpec) -> DemoResult:
    """Write digits as images, pretrain rotation on them, evaluate beside random weights, export."""
    images = Path(spec.out, "images")
    write_digits(images, spec.seed)
    if spec.images_only:
        return DemoResult(str(images))
    # Only now: the rest needs torch.
    from sslkit.engine.pretrain import pretrain
    from sslkit.evaluation.knn import knn
    from sslkit.evaluation.probe import probe
    from sslkit.exporting.export import export

    settings = {"task": "rotation", "data": str(images), "out": str(Path(spec.out, "run")), "size": _SIDE, "seed": spec.seed}
    run = pretrain(PretrainSpec.model_validate({**settings, "epochs": 30, "batch_size": 64}))
    neighbors, linear = knn(KnnSpec(ckpt=run.checkpoint)), probe(ProbeSpec(ckpt=run.checkpoint))
    return DemoResult(
        images=str(images),
        run=run.run,
        checkpoint=run.checkpoint,
        knn=neighbors.headline.value,
        probe=linear.headline.value,
        random_knn=neighbors.rows[1].headline.value,
        random_probe=linear.rows[1].headline.value,
        export=export(ExportSpec(ckpt=run.checkpoint, to="pt2")).path,
    )


def write_digits(folder: Path, seed: int) -> None:
    """Write scikit-learn's digits as `folder/train/DIGIT/*.png` and, a fifth of them, `folder/test/DIGIT/*.png`."""
    from sklearn.datasets import load_digits

    if folder.exists() and any(folder.iterdir()):
        raise SslkitError(f"{folder} is there already", "choose another folder", flag="out")
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.images))
    try:
        for place, row in enumerate(order):
            part = "test" if place < len(order) // 5 else "train"
            file = folder / part / str(digits.target[row]) / f"{row:04}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((digits.images[row] * 255 / 16).astype(np.uint8))
            image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(file)
    except OSError as error:
        raise SslkitError(f"cannot write to {folder}: {error.strerror}", flag="out") from error
    say(f"{len(order)} images of digits in {folder}")


def some_digits(count: int, channels: int, size: int) -> "Tensor":
    """Return a few digits as images `[count, channels, size, size]` in [0, 1]."""
    import torch
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images[:count] / 16).float()[:, None]
    return torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear").repeat(1, channels, 1, 1)
