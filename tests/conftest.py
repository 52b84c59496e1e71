"""Real small files for everybody: digits from scikit-learn, an own cache, the command line in this process."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit.cli.app import main

# Tiny tensors gain nothing from threads, and two test processes share the cores.
torch.set_num_threads(1)

# A job in the background ignores Ctrl-C, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSLKIT_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def restored_state() -> Iterator[None]:
    """Leave torch's generator and the hook that `main` sets as they were."""
    hook, state = sys.excepthook, torch.get_rng_state()
    yield
    sys.excepthook = hook
    torch.set_rng_state(state)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with train/ (16 per class) and test/ (4 per class) of three digits, 16×16 gray PNG."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for digit in range(3):
        for place, row in enumerate(np.flatnonzero(data.target == digit)[:20]):
            file = folder / ("test" if place < 4 else "train") / f"digit {digit}" / f"{place:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((data.images[row] * 255 / 16).astype(np.uint8))
            image.resize((16, 16), Image.Resampling.BICUBIC).save(file)
    return folder


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, object]:
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def sslkit(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the command line in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = int(exit.code or 0)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def quick() -> list[str]:
    """Return flags of a run that takes a second."""
    return ["--encoder", "resnet_micro", "--encoder-option", "width=8", "--size", "16", "--batch-size", "16", "--workers", "0"]


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Return the checkpoint of a short rotation run on the digits."""
    from sslkit.engine.pretrain import pretrain
    from sslkit.specs.train import PretrainSpec

    out = tmp_path_factory.mktemp("runs") / "rotation"
    spec = PretrainSpec(
        task="rotation",
        data=str(digits),
        out=str(out),
        epochs=4,
        batch_size=16,
        size=16,
        encoder_option={"width": "8"},
        workers=0,
    )
    return Path(pretrain(spec).checkpoint)
