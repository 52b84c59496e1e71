"""`sslkit propagate`: its result, its picture, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., Any]


@pytest.fixture
def data(tmp_path: Path, sslkit: Run) -> Path:
    """Return a folder with three clips of a bright square, their masks, and a checkpoint of two steps."""
    random = np.random.default_rng(0)
    for clip in range(3):
        ground = random.integers(0, 90, (32, 48, 3), dtype=np.uint8)
        for frame in range(5):
            picture, mask = ground.copy(), np.zeros((32, 48), dtype=np.uint8)
            place = slice(8, 24), slice(8 + 3 * frame, 24 + 3 * frame)
            picture[place], mask[place] = (250, 240, 60), 2
            for name, values in (("clips", picture), ("masks", mask)):
                folder = tmp_path / name / f"clip{clip}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(folder / f"{frame:02}.png")
    flags = ["--size", 32, "--batch-size", 2, "--steps", 2, "--encoder-option", "width=8", "--workers", 0]
    ran = sslkit("pretrain", "order_verification", "--data", tmp_path / "clips", *flags, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    return tmp_path


def flags(data: Path) -> list[Any]:
    return ["--ckpt", data / "run" / "model.safetensors", "--data", data / "clips", "--masks", data / "masks"]


def test_masks_are_carried_and_compared_with_copies_and_random_weights(data: Path, sslkit: Run) -> None:
    picture = data / "tracks.png"
    result = sslkit("propagate", *flags(data), "--out", picture, "--json").json
    assert result["protocol"] == "propagate/masks-v1"
    rows = {row["model"]: row for row in result["rows"]}
    assert list(rows) == ["checkpoint", "random weights", "raw pixels", "copies of the first mask"]
    for row in rows.values():
        both, region, boundary = row["metrics"]
        assert [both["name"], region["name"], boundary["name"]] == ["J&F", "J", "F"]
        assert both["value"] == pytest.approx((region["value"] + boundary["value"]) / 2)
        assert both["n"] == 3 and both["unit_of_n"] == "clips"
    # Frames 1 to 3 count: of a square 16 wide that moved 3, 6 and 9, so much is still where it was.
    copies = np.mean([(16 - moved) / (16 + moved) for moved in (3, 6, 9)])
    assert rows["copies of the first mask"]["metrics"][1]["value"] == pytest.approx(copies, abs=1e-6)
    assert rows["raw pixels"]["metrics"][1]["value"] > copies
    assert rows["random weights"]["comparisons"]["checkpoint"]["p_value"] <= 1
    with Image.open(picture) as image:
        assert image.width > 5 * 150
    again = sslkit("propagate", *flags(data), "--no-baselines", "--context", 2, "--layer", 3, "--json").json
    assert again["protocol"] is None and len(again["rows"]) == 1


def test_what_cannot_be_propagated_is_one_line(data: Path, sslkit: Run) -> None:
    def refused(*changes: Any) -> str:
        ran = sslkit("propagate", *flags(data), *changes)
        assert ran.code == 2, ran.err
        (line,) = (line for line in ran.err.splitlines() if line.startswith("error: "))
        return line

    assert "--masks: no clip in" in refused("--masks", data / "clips" / "clip0")
    assert "--data:" in refused("--data", data / "nowhere") and "is not a folder" in refused("--data", data / "nowhere")
    assert "--layer: the encoder has 4 layers that are maps (got 9)" in refused("--layer", 9)
    Image.new("L", (10, 10), 1).save(data / "masks" / "clip1" / "02.png")
    assert "02.png is 10×10 px, its frame 48×32 (masks are as large as frames)" in refused()
    Image.new("RGB", (48, 32)).save(data / "masks" / "clip1" / "02.png")
    assert "is an image of mode RGB" in refused()
    Image.new("L", (48, 32)).save(data / "masks" / "clip0" / "00.png")
    assert "00.png has no object" in refused()
    (data / "masks" / "clip0" / "00.png").unlink()
    assert "has no mask of the first frame, 00.png" in refused()
    Image.new("L", (48, 32)).save(data / "masks" / "clip0" / "77.png")
    assert "77.png is a mask of no frame" in refused()
    (data / "masks" / "clip0" / "77.png").unlink()
    (data / "masks" / "clip0" / "00.png").write_bytes(b"no image")
    assert "--masks: cannot read" in refused()
    assert "--out: tracks.jpg should end in .png" in refused("--out", "tracks.jpg")
