"""Several encoders in one checkpoint: `--part` chooses one, on every command that takes a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sslkit as public
from sslkit.engine.checkpoint import read_model
from sslkit.engine.pretrain import pretrain
from sslkit.evaluation.models import weights_hash
from sslkit.specs.train import PretrainSpec

Run = Callable[..., Any]

TOWERS = """
from torch import nn
from sslkit import PretextTask
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for

class Towers(PretextTask):
    "Train two encoders of images beside each other, and keep one of recordings."

    def build_head(self):
        return nn.Linear(2 * self.encoder.width, 1)

    def setup(self):
        self.second = build_encoder(self.encoder.recipe)
        self.sound = build_encoder(recipe_for("audio_micro", 500, 1, {"width": "8", "mels": "32", "sample_rate": "8000"}))
        self.sound.requires_grad_(False)

    def transform(self, batch):
        return {"image": batch["canvas"], "target": batch["canvas"].mean(dim=(1, 2, 3))}

    def predict(self, batch):
        return self.head(torch.cat([self.encoder(batch["image"]), self.second(batch["image"])], dim=1))

    def loss(self, output, batch):
        return (output[:, 0] - batch["target"]).square().mean()

    def exports(self):
        return {"encoder": self.encoder, "second": self.second, "audio": self.sound}
"""


@pytest.fixture(scope="module")
def towers(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a task with three encoders."""
    folder = tmp_path_factory.mktemp("towers")
    (folder / "towers.py").write_text(TOWERS.replace("from torch", "import torch\nfrom torch", 1))
    spec = PretrainSpec(
        task=str(folder / "towers.py"),
        data=str(digits),
        out=str(folder / "run"),
        encoder="resnet_micro",
        encoder_option={"width": "8"},
        batch_size=16,
        steps=3,
        size=16,
        workers=0,
    )
    return Path(pretrain(spec).checkpoint)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return recordings of two classes, high and low."""
    soundfile = pytest.importorskip("soundfile", reason="the extra audio is not installed")
    folder, random = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    for number in range(12):
        file = folder / ("high" if number % 2 else "low") / f"{number}.wav"
        file.parent.mkdir(exist_ok=True)
        tone = np.sin(2 * np.pi * (1500 if number % 2 else 300) * np.arange(8000) / 8000)
        soundfile.write(file, 0.3 * tone + random.normal(scale=0.05, size=8000), 8000)
    return folder


def test_the_checkpoint_describes_its_parts(towers: Path) -> None:
    parts = read_model(towers).metadata["parts"]
    assert {name: (part["modality"], part["samples"], part["size"]) for name, part in parts.items()} == {
        "second": ("image", "image", 16),
        "audio": ("audio", "audio", 500),
    }
    second = public.load(towers, part="second")
    state = load_file(towers)
    assert all(torch.equal(value, state[f"second.{name}"]) for name, value in second.state_dict().items())


def test_each_part_is_evaluated_with_its_own_weights(towers: Path, sslkit: Run) -> None:
    main, second = (sslkit("knn", "--ckpt", towers, *part, "--json").json for part in ((), ("--part", "second")))
    assert main["weights"] == weights_hash(public.load(towers)) != second["weights"]
    assert second["weights"] == weights_hash(public.load(towers, part="second"))
    assert second["settings"]["part"] == "second" and "part" not in main["settings"]
    assert second["protocol"] == main["protocol"] == "knn/weighted-v1"


def test_a_part_of_another_modality_reads_that(towers: Path, recordings: Path, sslkit: Run) -> None:
    ran = sslkit("knn", "--ckpt", towers, "--part", "audio", "--data", recordings, "--k", 3, "--json").json
    assert ran["weights"] == weights_hash(public.load(towers, part="audio"))
    missing = sslkit("knn", "--ckpt", towers, "--part", "audio")
    assert missing.code == 2 and "--data: missing: audio encodes audio data, unlike the run (name the data)" in missing.err
    wrong = sslkit("knn", "--ckpt", towers, "--part", "audio", "--data", recordings, "--size", 16)
    assert wrong.code == 2 and "--size" in wrong.err and "audio" in wrong.err


@pytest.mark.parametrize("verb", ["probe", "retrieval", "evaluate", "embed", "map", "search", "export", "finetune"])
def test_every_command_with_a_checkpoint_takes_a_part(towers: Path, tmp_path: Path, sslkit: Run, verb: str) -> None:
    flags: dict[str, list[Any]] = {
        "evaluate": ["--protocol", "retrieval"],
        "embed": ["--out", tmp_path / "features.npz"],
        "map": ["--method", "pca", "--out", tmp_path / "map.png"],
        "search": ["--k", 2, "--out", tmp_path / "near.png"],
        "finetune": ["--steps", 2, "--batch-size", 16, "--no-scratch", "--out", tmp_path / "run", "--workers", 0],
    }
    ran = sslkit(verb, "--ckpt", towers, "--part", "second", *flags.get(verb, []), "--json")
    assert ran.code == 0, ran.err
    hashed = weights_hash(public.load(towers, part="second"))
    if verb == "export":
        assert Path(ran.json["path"]).name == "run-second.pt2" and hashed in Path(ran.json["card"]).read_text()
        assert "second: resnet_micro" in Path(ran.json["card"]).read_text()
    elif verb == "finetune":
        (checkpoint,) = tmp_path.rglob("model.safetensors")
        assert read_model(checkpoint).metadata["pretrained_by"]["weights"] == hashed
    else:
        assert hashed in ran.out or verb == "search"


def test_an_unknown_part_is_one_line(towers: Path, trained: Path, sslkit: Run) -> None:
    ran = sslkit("knn", "--ckpt", towers, "--part", "third")
    assert ran.code == 2 and f"--part: {towers} has no encoder 'third' (its parts: encoder, second, audio)" in ran.err
    ran = sslkit("knn", "--ckpt", trained, "--part", "text")
    assert ran.code == 2 and "has no encoder 'text' (its parts: encoder)" in ran.err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda metadata: metadata.update(parts=[1]), "parts"),
        (lambda metadata: metadata["parts"].update(second="x"), "recipe of second"),
        (lambda metadata: metadata["parts"]["second"].update(size=10**12), "size of second"),
        (lambda metadata: metadata["parts"]["second"].pop("modality"), "modality of second"),
    ],
)
def test_altered_parts_are_noticed(towers: Path, tmp_path: Path, sslkit: Run, change: Any, complaint: str) -> None:
    metadata = read_model(towers).metadata
    change(metadata)
    save_file(load_file(towers), tmp_path / "model.safetensors", {"sslkit": json.dumps(metadata)})
    ran = sslkit("knn", "--ckpt", tmp_path / "model.safetensors", "--part", "second")
    assert ran.code == 2 and complaint in ran.err and "the file was altered" in ran.err


def test_help_shows_the_data_options_of_the_part(towers: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run) -> None:
    from sslkit.cli.arguments import checkpoint_modality

    for part, modality in (("second", "image"), ("audio", "audio"), ("third", None)):
        monkeypatch.setattr("sys.argv", ["sslkit", "knn", "--ckpt", str(towers), "--part", part, "--help"])
        assert checkpoint_modality() == modality
