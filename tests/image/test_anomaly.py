"""anomaly: memories of patches, planted defects, what is written, and what is refused."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit import load
from sslkit.image.patch_memory import PatchColors, PatchFeatures, PatchMemory, default_layers, thin_out

Run = Callable[..., Any]


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """Return the checkpoint in a folder of its own: results are written beside it."""
    return Path(shutil.copy(trained, tmp_path))


@pytest.fixture
def parts(digits: Path, tmp_path: Path) -> Path:
    """Return the digits as normal images, and copies with a bright square, with masks of it, as MVTec AD lays them out."""
    folder, random = tmp_path / "parts", np.random.default_rng(0)
    for kind in ("train/good", "test/good", "test/square", "ground_truth/square"):
        (folder / kind).mkdir(parents=True)
    for number, file in enumerate(sorted((digits / "train").rglob("*.png"))):
        shutil.copy(file, folder / "train" / "good" / f"{number:02}.png")
    for number, file in enumerate(sorted((digits / "test").rglob("*.png"))):
        shutil.copy(file, folder / "test" / "good" / f"{number:02}.png")
        pixels, mask = np.array(Image.open(file)), np.zeros((16, 16), dtype=np.uint8)
        top, left = random.integers(0, 11, 2)
        pixels[top : top + 5, left : left + 5], mask[top : top + 5, left : left + 5] = 255, 255
        Image.fromarray(pixels).save(folder / "test" / "square" / f"{number:02}.png")
        Image.fromarray(mask).save(folder / "ground_truth" / "square" / f"{number:02}.png")
    return folder


MASKS = ["--targets", "../../ground_truth/{folder}/{stem}.png"]
SMALL = ["--resolution", 32, "--memory", 300]


def test_every_patch_is_near_a_remembered_one() -> None:
    patches = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    chosen = [0]
    while len(chosen) < 9:
        distances = torch.cdist(patches, patches[chosen]).amin(dim=1)
        chosen.append(int(distances.argmax()))
    assert thin_out(patches, 9).tolist() == chosen
    assert thin_out(patches, 100).tolist() == list(range(60))


def test_scores_are_distances_to_the_nearest_patch(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslkit.image.patch_memory._CHUNK", 40)
    features = PatchFeatures(load(checkpoint), None, "checkpoint").eval()
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = features(images)
        memory = torch.randn(7, maps.shape[1], generator=torch.Generator().manual_seed(1))
        scores, distances = PatchMemory(features, memory)(images)
    for row in range(3):
        for top in range(0, maps.shape[2], 3):
            nearest = min(float((maps[row, :, top, 2] - patch).norm()) for patch in memory)
            assert float(distances[row, top, 2]) == pytest.approx(nearest, rel=1e-4)
        assert scores[row] == distances[row].max()


def test_layers_in_the_middle_have_equal_weight(checkpoint: Path) -> None:
    assert [default_layers(count) for count in (1, 2, 4, 12)] == [[1], [1, 2], [2, 3], [6, 9]]
    encoder = load(checkpoint)
    with torch.no_grad():
        maps = PatchFeatures(encoder, [1, 4], "checkpoint")(torch.rand(2, 3, 32, 32))
        outputs = encoder.layers(torch.rand(2, 3, 32, 32))
    assert maps.shape[1:] == (outputs[0].shape[1] + outputs[3].shape[1], *outputs[0].shape[2:])
    assert PatchColors(4)(torch.rand(2, 3, 32, 32)).shape == (2, 48, 4, 4)


def test_planted_squares_are_found(checkpoint: Path, parts: Path, sslkit: Run, tmp_path: Path) -> None:
    files = {flag: tmp_path / name for flag, name in (("--out", "a.png"), ("--scores", "a.csv"), ("--export", "a.pt2"))}
    words = ["anomaly", "--ckpt", checkpoint, "--data", parts, *MASKS, *SMALL, "--json"]
    result = sslkit(*words, *(word for pair in files.items() for word in pair)).json
    rows = {row["model"]: {metric["name"]: metric["value"] for metric in row["metrics"]} for row in result["rows"]}
    assert list(rows) == ["checkpoint", "random weights", "colors of patches"]
    assert rows["colors of patches"]["image AUROC"] > 0.95 and rows["colors of patches"]["pixel AUROC"] > 0.5
    assert rows["checkpoint"]["image AUROC"] > 0.7
    assert list(rows["checkpoint"]) == ["image AUROC", "pixel AUROC", "detected", "false alarms"]
    assert set(result["rows"][1]["comparisons"]) == {"checkpoint"} and result["settings"]["normal"] == "good"
    with files["--scores"].open(newline="") as stream:
        scores = list(csv.DictReader(stream))
    assert len(scores) == 24 and {row["anomalous"] for row in scores} <= {"yes", "no"}
    detected = [row["anomalous"] == "yes" for row in scores if "/square/" in row["path"]]
    assert np.mean(detected) == rows["checkpoint"]["detected"]
    with Image.open(files["--out"]) as picture:
        assert picture.width > 3 * 190
    extra = {"sslkit.json": ""}
    network = torch.export.load(files["--export"], extra_files=extra).module()
    description = json.loads(extra["sslkit.json"])
    assert description["size"] == 32 and description["threshold"] > 0
    program = files["--export"].read_bytes()
    assert str(tmp_path).encode() not in program and b"site-packages" not in program
    images = [
        np.array(Image.open(row["path"]).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)) for row in scores[:3]
    ]
    again, maps = network(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255)
    assert again.tolist() == pytest.approx([float(row["score"]) for row in scores[:3]], rel=0.05) and maps.dim() == 3
    assert sslkit(*words).json["rows"] == result["rows"]


def test_images_without_labels_get_scores(checkpoint: Path, parts: Path, sslkit: Run, tmp_path: Path) -> None:
    words = ["anomaly", "--ckpt", checkpoint, "--data", parts / "train" / "good", *SMALL, "--no-baselines", "--json"]
    (row,) = sslkit(*words, "--test", parts / "test" / "square").json["rows"]
    assert [metric["name"] for metric in row["metrics"]] == ["above the threshold"] and row["metrics"][0]["value"] > 0.5
    ran = sslkit(*words)
    assert ran.code == 2 and "--test: missing" in ran.err


def test_what_is_refused(checkpoint: Path, parts: Path, digits: Path, sslkit: Run, tmp_path: Path) -> None:
    words = ["anomaly", "--ckpt", checkpoint, *SMALL]
    ran = sslkit(*words, "--data", digits)
    assert ran.code == 2 and "--normal" in ran.err and "3 classes" in ran.err
    ran = sslkit(*words, "--data", parts, "--normal", "fine")
    assert ran.code == 2 and "has no class fine (it has good)" in ran.err
    ran = sslkit(*words, "--data", parts, "--layers", "2,9")
    assert ran.code == 2 and "has 4 layers (got 9)" in ran.err
    ran = sslkit(*words, "--data", parts, "--test", parts / "train")
    assert ran.code == 2 and "has the images that are remembered" in ran.err
    mask = parts / "ground_truth" / "square" / "04.png"
    kept, files = mask.read_bytes(), sorted((parts / "test").rglob("*.png"))
    mask.write_bytes(kept[:40])
    ran = sslkit(*words, "--data", parts, *MASKS, "--no-baselines")
    assert ran.code == 2 and "--targets: mask" in ran.err
    mask.write_bytes(kept)
    table = tmp_path / "some.csv"
    table.write_text("path,kind\n" + "".join(f"{file},{'good' if place else ''}\n" for place, file in enumerate(files)))
    ran = sslkit(*words, "--data", parts / "train" / "good", "--test", table, "--label", "kind")
    assert ran.code == 2 and ("has no class" in ran.err or "--label" in ran.err)
    wide = tmp_path / "wide"
    wide.mkdir()
    Image.new("L", (100, 30)).save(wide / "wide.png")
    Image.new("L", (100, 31)).save(wide / "other.png")
    ran = sslkit(*words, "--data", parts, "--test", wide)
    assert ran.code == 2 and "--test: images of" in ran.err and "longer than 2:1" in ran.err
    (parts / "ground_truth" / "square" / "03.png").unlink()
    ran = sslkit(*words, "--data", parts, *MASKS)
    assert ran.code == 2 and "square/03.png is anomalous, and has no mask" in ran.err
    for file in list((parts / "train" / "good").iterdir())[3:]:
        file.unlink()
    ran = sslkit(*words, "--data", parts)
    assert ran.code == 2 and "3 normal images (at least 5 are needed)" in ran.err
    assert not (tmp_path / "results.jsonl").exists()
