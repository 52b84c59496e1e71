"""segment: overlaps against loops, the classifier against scikit-learn, and what the command reads, writes and refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sslkit import SslkitError
from sslkit.evaluation.positions import fit_positions
from sslkit.image.segment import ColorAndPosition
from sslkit.image.segmentation import Overlaps, class_places, class_shares, predict_mask

Run = Callable[..., Any]
MASKS = "../masks/{stem}.png"


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """Return the checkpoint in a folder of its own: results are written beside it."""
    return Path(shutil.copy(trained, tmp_path))


def test_overlaps_against_loops() -> None:
    random = np.random.default_rng(0)
    pairs = [(random.integers(0, 3, (7, 9)), random.integers(-1, 4, (7, 9))) for _ in range(5)]
    pairs = [(predicted, np.where(true == 3, 0, true)) for predicted, true in pairs]  # class 3 is never true, nor predicted
    overlaps = Overlaps.of(iter(pairs), 4)
    for place in range(3):
        both = either = 0
        for predicted, true in pairs:
            for answer, truth in zip(predicted.flatten(), true.flatten(), strict=True):
                if truth >= 0:
                    both += answer == truth == place
                    either += place in (answer, truth)
        assert overlaps.iou()[place] == pytest.approx(both / either)
    assert np.isnan(overlaps.iou()[3])
    mean, accuracy = overlaps.metrics()
    assert mean.value == pytest.approx(np.nanmean(overlaps.iou())) and mean.low < mean.value < mean.high
    right = sum(int((answer == truth).sum()) for answer, truth in pairs)
    assert accuracy.value == pytest.approx(right / sum(int((true >= 0).sum()) for _, true in pairs))
    comparison = overlaps.compare(overlaps)
    assert comparison.difference == 0 and comparison.p_value == 1


def test_intervals_resample_images_not_pixels() -> None:
    half = [(np.zeros((50, 50), int), np.full((50, 50), row % 2)) for row in range(10)]
    low, high = Overlaps.of(iter(half), 2).metrics()[1].value, Overlaps.of(iter(half), 2).metrics()[0].high
    assert low == 0.5 and high is not None and high > 0.3  # with pixels as units it would be next to the value, 0.25


def test_masks_become_places_of_classes() -> None:
    mask = np.array([[3, 7], [255, 3]], dtype=np.uint8)
    assert class_places(mask, [3, 7], 255, "m.png").tolist() == [[0, 1], [-1, 0]]
    with pytest.raises(SslkitError, match=r"mask m.png has 7, which no mask of the training part has \(name void pixels"):
        class_places(mask, [3], 255, "m.png")
    shares = class_shares(np.array([[0, 0, 1, -1], [0, 1, -1, -1]]), 2, (1, 2))
    assert shares[:, 0].tolist() == [[0.75, 0.0], [0.25, 0.25]]


def test_scores_are_enlarged_before_the_largest_is_taken() -> None:
    scores = torch.tensor([[[0.0, 3.0]], [[1.0, 0.0]]])
    assert predict_mask(scores, (2, 8)).tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]] * 2


def test_the_linear_classifier_is_that_of_scikit_learn() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(600, 8), torch.randint(3, (600,))
    features[torch.arange(600), labels] += 1.5
    rows, names = np.arange(600) // 20, [str(label) for label in labels.tolist()]
    settings = {"c": [0.1], "iterations": 200, "held_out": 0.2}
    fitted = fit_positions({"last": features}, names, rows, ("0", "1", "2"), torch.device("cpu"), 0, settings, "last")["last"]
    scaler = StandardScaler().fit(features)
    reference = LogisticRegression(C=0.1, max_iter=2000, tol=1e-8).fit(scaler.transform(features), labels)
    other = torch.randn(2000, 8)
    agrees = fitted.scores({"last": other}).argmax(dim=1).numpy() == reference.predict(scaler.transform(other))
    assert agrees.mean() >= 0.999


def test_color_and_position() -> None:
    image = torch.rand(2, 3, 8, 12)
    maps = ColorAndPosition(3, (2, 3)).feature_map(image)
    assert maps.shape == (2, 5, 2, 3) and torch.allclose(maps[0, :3, 1, 2], image[0, :, 4:, 8:].mean(dim=(1, 2)))
    assert maps[1, 3:, 1, 2].tolist() == [1.0, 1.0] and maps[1, 3:, 0, 1].tolist() == [0.0, 0.5]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write oblong images of a bright square on dark noise, with larger masks, where it is 1 and the upper edge void."""
    folder, random = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for kind in ("images", "masks"):
            (folder / part / kind).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 90, (48, 64, 3), dtype=np.uint8)
            mask = np.zeros((96, 128), dtype=np.uint8)
            top, left = random.integers(0, 24), random.integers(0, 40)
            pixels[top : top + 24, left : left + 24] += 160
            mask[2 * top : 2 * top + 48, 2 * left : 2 * left + 48] = 1
            mask[:2] = 255
            Image.fromarray(pixels).save(folder / part / "images" / f"{number}.png")
            Image.fromarray(mask).save(folder / part / "masks" / f"{number}.png")
    return folder


@pytest.mark.parametrize("protocol", ["segment/linear-v1", "segment/knn-v1"])
def test_squares_are_segmented(protocol: str, checkpoint: Path, scenes: Path, sslkit: Run, tmp_path: Path) -> None:
    words = ["segment", "--ckpt", checkpoint, "--data", scenes, "--targets", MASKS, "--protocol", protocol]
    result = sslkit(*words, "--out", tmp_path / "scenes.png", "--json").json
    rows = {row["model"]: row for row in result["rows"]}
    assert list(rows) == ["checkpoint", "random weights", "color and position", "most frequent class"]
    assert result["protocol"] == protocol and result["settings"]["ignore"] == 255
    value = {name: row["metrics"][0]["value"] for name, row in rows.items()}
    assert value["checkpoint"] > 0.7 > 0.5 > value["most frequent class"]
    assert set(rows["checkpoint"]["by_class"]) == {"0", "1"} and rows["most frequent class"]["by_class"]["1"] == 0
    assert rows["most frequent class"]["comparisons"]["checkpoint"]["high"] < 0
    with Image.open(tmp_path / "scenes.png") as picture:
        assert picture.size[1] > 6 * 190
    assert sslkit(*words, "--json").json["rows"] == result["rows"]


def test_a_part_is_held_out_and_classes_have_names(checkpoint: Path, scenes: Path, sslkit: Run, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ground\nsquare\n")
    words = ["--targets", MASKS, "--resolution", 64, "--names", tmp_path / "names.txt", "--no-baselines", "--json"]
    result = sslkit("segment", "--ckpt", checkpoint, "--data", scenes / "train", *words).json
    assert result["rows"][0]["metrics"][0]["n"] == 2 and set(result["rows"][0]["by_class"]) == {"ground", "square"}
    assert result["protocol"] is None and len(result["rows"]) == 1


def test_the_encoder_is_trained_on_masks(checkpoint: Path, scenes: Path, sslkit: Run) -> None:
    words = ["--targets", MASKS, "--resolution", 64, "--protocol", "segment/finetuned-v1", "--epochs", 12, "--batch-size", 4]
    result = sslkit("segment", "--ckpt", checkpoint, "--data", scenes, *words, "--lr", "2e-3", "--json").json
    rows = {row["model"]: row["metrics"][0]["value"] for row in result["rows"]}
    assert rows["checkpoint"] > 0.8 and result["settings"]["epochs"] == 12


def test_what_is_refused_in_one_line(checkpoint: Path, scenes: Path, sslkit: Run, tmp_path: Path) -> None:
    words = ["segment", "--ckpt", checkpoint, "--data", scenes, "--resolution", 32]
    for more, message in (
        ([], "--targets: missing (masks beside images, such as --targets ../masks/{stem}.png)"),
        (["--targets", "../none/{stem}.png"], "no mask or annotation exists"),
        (["--targets", MASKS, "--layer", 9], "has 4 layers (got 9)"),
        (["--targets", MASKS, "--neighbors", 3], "--neighbors: segment/linear-v1 has no such setting"),
        (["--targets", MASKS, "--names", tmp_path / "names.txt"], "--names"),
    ):
        (tmp_path / "names.txt").write_text("ground\n")
        ran = sslkit(*words, *more)
        assert ran.code == 2 and message in ran.err, (more, ran.err)
    for file in ("images", "masks"):
        (tmp_path / "odd" / file).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (32, 32)).save(tmp_path / "odd" / file / f"{number}.png")
    ran = sslkit("segment", "--ckpt", checkpoint, "--data", tmp_path / "odd" / "images", "--targets", MASKS)
    assert ran.code == 2 and "has RGB pixels, not one number of a class each" in ran.err
    for file in (tmp_path / "odd" / "masks").iterdir():
        Image.new("L", (32, 32), 5).save(file)
    ran = sslkit("segment", "--ckpt", checkpoint, "--data", tmp_path / "odd" / "images", "--targets", MASKS)
    assert ran.code == 2 and "have one class only" in ran.err
