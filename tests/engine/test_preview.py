"""`sslkit preview`: a picture before training, and one of what a checkpoint says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslkit import registry
from sslkit.engine.run_folder import SPEC
from sslkit.image.examples import example_tokenizer

Run = Callable[..., Any]
FAST = ("rotation", "jigsaw", "simclr", "mae", "swav", "vae")  # one of each kind of picture
ON_IMAGES = [
    e.name if e.name in FAST else pytest.param(e.name, marks=pytest.mark.slow)
    for e in registry.entries(registry.TASKS)
    if e.package == "sslkit" and e.modality == "image"
]


@pytest.mark.parametrize("task", ON_IMAGES)
def test_every_task_has_previews(task: str, sslkit: Run, digits: Path, trained: Path, tmp_path: Path) -> None:
    arguments = {
        "clusterfit": ["--teacher", trained],
        "distill": ["--teacher", trained, "--target", "features"],
    }.get(task, [])
    if task in ("beit", "cae"):
        arguments = ["--tokenizer", example_tokenizer(tmp_path)]
    np.save(tmp_path / "colors.npy", np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3), dtype=np.uint8))
    images = tmp_path / "colors.npy" if task == "colorization" else digits  # which are gray
    data = ["--data", images, "--size", 16 if "--teacher" in arguments else 32, "--workers", 0]  # the teacher saw 16
    before = sslkit("preview", task, *data, *arguments, "--out", tmp_path / "before.png", "--rows", 3, "--json").json
    assert before == {"path": str(tmp_path / "before.png"), "task": task, "trained": False, "metrics": {}}
    out = tmp_path / "run"
    assert sslkit("pretrain", task, *data, *arguments, "--batch-size", 16, "--steps", 2, "--out", out).code == 0
    after = sslkit("preview", "--ckpt", out / "model.safetensors", "--out", tmp_path / "after.png", "--rows", 3, "--json").json
    assert after["trained"] and after["task"] == task
    assert all(np.isfinite(value) for value in after["metrics"].values())
    for name in ("before.png", "after.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.height > 3 * 60 and len(picture.getcolors(10**6) or []) > 20


def test_the_same_seed_draws_the_same_picture(sslkit: Run, digits: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert sslkit("preview", "jigsaw", "--data", digits, "--out", tmp_path / f"{name}.png", "--workers", 0).code == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert sslkit("preview", "jigsaw", "--data", digits, "--out", tmp_path / "3.png", "--seed", 3, "--workers", 0).code == 0
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "3.png").read_bytes()


def test_previews_change_nothing_in_the_run(sslkit: Run, trained: Path, tmp_path: Path) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in trained.parent.rglob("*") if path.is_file()}

    before = content()
    assert sslkit("preview", "rotation", "--ckpt", trained, "--out", tmp_path / "p.png").code == 0
    assert content() == before


def test_bad_input(sslkit: Run, digits: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "model.safetensors").write_bytes(trained.read_bytes())
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g h " * 2000)
    for words, message in [
        ([], "which task? (sslkit preview TASK --data DIR, or --ckpt FILE)"),
        (["jigsaw"], "--data: missing"),
        (["jigsaw", "--data", digits, "--out", "p.jpg"], "--out: p.jpg should end in .png"),
        (["jigsaw", "--data", digits, "--out", "no/p.png"], "--out: cannot write no/p.png (no does not exist)"),
        (["jigsaw", "--data", digits, "--permutations", "1"], "--permutations: should be a whole number"),
        (["jigsaw", "--data", digits, "--size", "8"], "--size: images of 8 px give tiles of 2 px"),
        (["--ckpt", moved / "model.safetensors"], "moved holds no run (spec.json is missing)"),
        (["simclr", "--ckpt", trained], "was trained by rotation, not simclr"),
        (["rotation", "--ckpt", trained, "--size", "32"], "--size: the run in"),
        (["rotation", "--ckpt", trained, "--crop-scale", "0.3"], "--crop-scale: the run in"),
        (["skipgram", "--data", text], "skipgram has no preview"),
        (["clusterfit", "--data", digits], "--teacher is missing"),
    ]:
        ran = sslkit("preview", *words)
        assert ran.code == 2 and message in ran.err, (words, ran.err)
    assert not list(tmp_path.glob("*.png"))


def test_options_of_another_version_are_named(sslkit: Run, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.parent, run)
    spec = json.loads((run / SPEC).read_text())
    spec["options"]["turns"] = 4
    (run / SPEC).write_text(json.dumps(spec))
    ran = sslkit("preview", "rotation", "--ckpt", run / "model.safetensors", "--out", tmp_path / "out.png")
    assert ran.code == 2 and "has --turns 4, which rotation does not take (another version of sslkit" in ran.err
