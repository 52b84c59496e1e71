"""robustness: corrupted images, other test sets, conflicting cues, and what is refused."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit.evaluation.statistics import Answers
from sslkit.image.corruption import CORRUPTIONS, corrupt
from sslkit.image.robustness_shape import _compare, low_pass, shuffle_parts, texture_of

Run = Callable[..., Any]


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """Return the checkpoint in a folder of its own: results are written beside it."""
    return Path(shutil.copy(trained, tmp_path))


@pytest.fixture
def words(checkpoint: Path, digits: Path) -> list[Any]:
    return ["robustness", "--ckpt", checkpoint, "--data", digits, "--json"]


def test_corrupted_digits(words: list[Any], sslkit: Run, tmp_path: Path) -> None:
    out = tmp_path / "corrupted.png"
    chosen = ["--samples", 10, "--corruption", "fog", "--corruption", "impulse_noise", "--severity", 1, "--severity", 5]
    result = sslkit(*words, *chosen, "--out", out).json
    rows = {row["model"]: row for row in result["rows"]}
    assert list(rows) == ["checkpoint", "random weights", "raw pixels, 16 px"] and result["protocol"] is None
    for row in rows.values():
        metrics = {metric["name"]: metric["value"] for metric in row["metrics"]}
        assert list(row["by_class"]) == ["impulse_noise", "fog"]  # in the paper's order
        assert metrics["corrupted"] == pytest.approx(np.mean(list(row["by_class"].values())))
        assert metrics["noise"] == row["by_class"]["impulse_noise"] and metrics["weather"] == row["by_class"]["fog"]
        assert row["metrics"][0]["n"] == 10 and "blur" not in metrics
    assert rows["raw pixels, 16 px"]["metrics"][1]["value"] > 0.8  # clean
    assert rows["raw pixels, 16 px"]["metrics"][0]["value"] < rows["raw pixels, 16 px"]["metrics"][1]["value"]
    assert set(rows["random weights"]["comparisons"]) == {"checkpoint"}
    assert any(note.startswith("The checkpoint changes most by") for note in result["notes"])
    with Image.open(out) as picture:
        assert picture.size == (3 * 102 + 6, 2 * 117 + 21)
    assert sslkit(*words, *chosen).json["rows"] == result["rows"]


def test_corrupted_files_give_what_is_measured_on_the_fly(words: list[Any], digits: Path, sslkit: Run, tmp_path: Path) -> None:
    """The same corrupted images as files, classified by the same probe, are right as often."""
    files = sorted((digits / "test").rglob("*.png"))[:50]
    clean, corrupted = tmp_path / "clean", tmp_path / "corrupted"
    for row, file in enumerate(files):
        pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        changed = (255 * corrupt(pixels, "contrast", 4, [row])[0]).round().byte().permute(1, 2, 0).numpy()
        for folder in (clean, corrupted):
            (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, clean / file.parent.name / file.name)
        Image.fromarray(changed).save(corrupted / file.parent.name / file.name)
    chosen = ["--corruption", "contrast", "--severity", 4, "--test", clean, "--size", 16]
    measured = sslkit(*words, *chosen).json["rows"]
    shifted = sslkit(*words, "--protocol", "robustness/shift-v1", "--shifted", corrupted, "--test", clean, "--size", 16)
    for row, other in zip(measured, shifted.json["rows"], strict=True):
        assert row["metrics"][0]["value"] == pytest.approx(other["metrics"][0]["value"], abs=0.021)
        assert row["metrics"][1]["value"] == other["metrics"][1]["value"]


def test_a_test_set_with_some_classes(words: list[Any], digits: Path, sslkit: Run, tmp_path: Path) -> None:
    some = tmp_path / "some"
    for name in ("digit 0", "digit 2"):
        shutil.copytree(digits / "test" / name, some / name)
    result = sslkit(*words, "--protocol", "robustness/shift-v1", "--shifted", some).json
    assert result["protocol"] == "robustness/shift-v1"
    for row in result["rows"]:
        metrics = {metric["name"]: metric["value"] for metric in row["metrics"]}
        # The same images as those of these classes in the test part.
        assert metrics["top-1"] == metrics["on the test part"] >= metrics["among all classes"]
    assert f"{some} has 2 of 3 classes: top-1 is among these." in result["notes"]
    clean, test = result["data"]["tests"]
    assert clean["n"] == len(list((digits / "test").rglob("*.png"))) and test["n"] == len(list(some.rglob("*.png")))


def test_conflicting_cues_of_digits(words: list[Any], sslkit: Run, tmp_path: Path) -> None:
    out = tmp_path / "conflicts.png"
    result = sslkit(*words, "--protocol", "robustness/shape-v1", "--samples", 9, "--cutoff", 4, "--out", out).json
    for row in result["rows"]:
        metrics = {metric["name"]: metric for metric in row["metrics"]}
        assert list(metrics) == ["shape bias", "shape or texture", "shape alone", "texture alone"]
        assert metrics["shape bias"]["n"] == round(9 * metrics["shape or texture"]["value"])
        assert metrics["shape alone"]["n"] == 9
    assert not result["findings"]  # more shape bias is not better
    with Image.open(out) as picture:
        assert picture.size == (6 * 136 + 8, 3 * 152 + 8)


def test_pictures_of_a_table(words: list[Any], digits: Path, sslkit: Run, tmp_path: Path) -> None:
    """Of pictures that are wholly of one class, that class decides."""
    table = tmp_path / "conflicts.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "shape", "texture"])
        for name in ("digit 0", "digit 1"):
            for file in sorted((digits / "test" / name).glob("*.png")):
                writer.writerow([file, name, "digit 2"])
        writer.writerow([next((digits / "test" / "digit 2").glob("*.png")), "digit 2", "digit 2"])
    result = sslkit(*words, "--protocol", "robustness/conflicts-v1", "--conflicts", table).json
    assert result["rows"][2]["metrics"][0]["value"] == 1.0 and result["data"]["tests"][0]["n"] == 8
    assert "1 pictures with shape and texture of one class are left out." in result["notes"]


def test_shape_and_texture_are_what_they_are_called() -> None:
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wave = torch.cos(2 * torch.pi * 8 * (torch.arange(64) + 0.5) / 64).expand(1, 1, 64, 64)
    assert float((low_pass(wave, 8) / wave)[..., 16:48, 16:48].mean()) == pytest.approx(0.5, abs=0.01)
    orders = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    shuffled = shuffle_parts(images, orders)
    for image, order, expected in zip(shuffled, orders, images, strict=True):
        for place, source in enumerate(order.tolist()):
            (row, column), (top, left) = divmod(place, 4), divmod(source, 4)
            part = expected[:, 16 * top : 16 * top + 16, 16 * left : 16 * left + 16]
            assert torch.equal(image[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16], part)
    assert torch.equal(shuffle_parts(images, torch.arange(16).expand(3, 16)), images)
    assert float(texture_of(images, orders, 8).mean().abs()) < 0.01


def test_what_is_refused(words: list[Any], digits: Path, sslkit: Run, tmp_path: Path) -> None:
    ran = sslkit(*words, "--corruption", "fogg")
    assert ran.code == 2 and "fogg is no corruption, did you mean fog?" in ran.err
    ran = sslkit(*words, "--shifted", digits)
    assert ran.code == 2 and "use --protocol robustness/shift-v1" in ran.err
    ran = sslkit(*words, "--protocol", "robustness/conflicts-v1")
    assert ran.code == 2 and "--conflicts: missing" in ran.err
    ran = sslkit(*words, "--protocol", "robustness/shape-v1", "--severity", 2)
    assert ran.code == 2 and "use --protocol robustness/corruptions-v1" in ran.err
    other = tmp_path / "other" / "eleven"
    other.mkdir(parents=True)
    shutil.copy(next((digits / "test").rglob("*.png")), other)
    ran = sslkit(*words, "--protocol", "robustness/shift-v1", "--shifted", tmp_path / "other")
    assert ran.code == 2 and "--shifted" in ran.err
    ran = sslkit(*words, "--protocol", "robustness/shape-v1", "--samples", 1)
    assert ran.code == 2 and "--samples: 1 test images are all of one class" in ran.err
    ran = sslkit(*words, "--protocol", "robustness/shift-v1", "--shifted", digits, "--test", digits, "--test", digits / "test")
    assert ran.code == 2 and "--test: 2 test parts" in ran.err
    broken, table = tmp_path / "broken.png", tmp_path / "broken.csv"
    files = sorted((digits / "test").rglob("*.png"))
    broken.write_bytes(files[0].read_bytes()[:60])
    table.write_text(
        f"path,shape,texture\n{broken},digit 0,digit 1\n{next((digits / 'test').rglob('*.png'))},digit 0,digit 1\n"
    )
    ran = sslkit(*words, "--protocol", "robustness/conflicts-v1", "--conflicts", table)
    assert ran.code == 2 and "--conflicts" in ran.err and "broken.png" in ran.err
    assert not (tmp_path / "results.jsonl").exists()


def test_models_without_a_picture_in_common_are_not_compared() -> None:
    first, second = (Answers(np.array(rows), torch.ones(len(rows), dtype=torch.float64)) for rows in ([1, 2], [3]))
    assert _compare(first, second) is None and _compare(first, first) is not None


def test_the_fifteen_are_those_of_the_paper() -> None:
    assert len(CORRUPTIONS) == 15
