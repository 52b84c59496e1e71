"""Masks and boxes lie on the canvas where the image's own pixels lie, and follow its crops."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit.contract.errors import SslkitError
from sslkit.contract.source import ReadSeed
from sslkit.image.source import ImageSource
from sslkit.image.transforms import crop, crop_boxes, crop_mask, random_box
from sslkit.specs.data import DataSpec

Run = Callable[..., Any]
SHAPES = [(60, 40), (40, 60), (40, 40), (160, 40)]  # width and height; the last is cut
MASKS, VOC = "../masks/{stem}.png", "../boxes/{stem}.xml"


def scenes(folder: Path) -> Path:
    """Write images with one bright rectangle each, its mask (class 7), and its box in both formats."""
    random = np.random.default_rng(0)
    coco: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "thing"}]}
    for name in ("images", "masks", "boxes"):
        (folder / name).mkdir(parents=True)
    for number, (width, height) in enumerate(SHAPES * 2):
        left, top = int(random.integers(0, width // 2)), int(random.integers(0, height // 2))
        right, bottom = left + width // 3, top + height // 3
        picture = np.zeros((height, width, 3), np.uint8)
        picture[top:bottom, left:right] = 255
        Image.fromarray(picture).save(folder / "images" / f"{number}.png")
        Image.fromarray(7 * (picture[..., 0] // 255)).save(folder / "masks" / f"{number}.png")
        corners = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
        box = "".join(f"<{name}>{value}</{name}>" for name, value in corners.items())
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        (folder / "boxes" / f"{number}.xml").write_text(
            f"<annotation>{size}<object><name>thing</name><bndbox>{box}</bndbox></object></annotation>"
        )
        coco["images"].append({"id": 10 + number, "file_name": f"{number}.png", "width": width, "height": height})
        corner_and_size = [left, top, right - left, bottom - top]
        coco["annotations"].append({"image_id": 10 + number, "category_id": 3, "bbox": corner_and_size})
    (folder / "coco.json").write_text(json.dumps(coco))
    return folder


def read(
    folder: Path, targets: str, draw: ReadSeed | None = None, evaluate: bool = False, cache: str = "off"
) -> dict[str, Any]:
    spec = DataSpec(data=str(folder / "images"), size=32, canvas=32, targets=targets, cache=cache, workers=0)
    source = ImageSource.open(spec)
    if evaluate:
        source = ImageSource._at(source.index, spec, 32, None, "center", with_targets=True)
    arrays, broken = source.read(np.arange(8), draw)
    assert not broken, broken
    return source.prepare({name: torch.from_numpy(array) for name, array in arrays.items()})  # type: ignore[return-value]


def bright(canvas: torch.Tensor) -> torch.Tensor:
    return canvas[:, 0] > 0.5


def corners_of(picture: torch.Tensor) -> torch.Tensor:
    """Return left, top, right and bottom of what is bright, in pixels."""
    rows, columns = torch.nonzero(picture, as_tuple=True)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("stored", ["off", "on"])
def test_masks_lie_where_the_pixels_lie(evaluate: bool, stored: str, tmp_path: Path) -> None:
    folder = scenes(tmp_path)
    for draw in (None, None if evaluate else ReadSeed(0, 3), None):  # filled, with parts drawn, and from the cache
        batch = read(folder, MASKS, draw, evaluate, stored)
        assert set(batch["mask"].unique().tolist()) == {0, 7} and batch["mask"].dtype == torch.uint8
        different = (bright(batch["canvas"]) != (batch["mask"] == 7)).float().mean(dim=(1, 2))
        assert different.max() < 0.05  # borders, where pixels of the image are mixed


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("kind", [VOC, "coco"])
def test_boxes_lie_where_the_pixels_lie(kind: str, evaluate: bool, tmp_path: Path) -> None:
    folder = scenes(tmp_path)
    for draw in (None, None if evaluate else ReadSeed(0, 3)):
        batch = read(folder, str(folder / "coco.json") if kind == "coco" else kind, draw, evaluate)
        assert batch["box"].shape == (8, 1, 4) and batch["box_label"].shape == (8, 1)
        for image, box, label in zip(bright(batch["canvas"]), batch["box"][:, 0], batch["box_label"][:, 0], strict=True):
            if label < 0:
                assert image.float().mean() < 0.02
                continue
            assert torch.allclose(box * 32, corners_of(image), atol=1.01)


def test_targets_follow_random_crops(tmp_path: Path) -> None:
    folder = scenes(tmp_path)
    masks, boxes = read(folder, MASKS), read(folder, VOC)
    torch.manual_seed(0)
    for _ in range(5):
        box = random_box(masks["canvas"], (0.3, 1.0), flipped=0.5, aspect=masks["aspect"])
        image = bright(crop(masks["canvas"], box, 64))
        mask = crop_mask(masks["mask"], box, 64)
        assert ((mask == 7) != image).float().mean(dim=(1, 2)).max() < 0.06
        corners, labels = crop_boxes(boxes["box"], boxes["box_label"], box)
        for picture, corner, label in zip(image, corners[:, 0], labels[:, 0], strict=True):
            if label < 0 or not picture.any():
                assert picture.float().mean() < 0.05
                continue
            assert torch.allclose(corner * 64, corners_of(picture), atol=3)


def test_a_changed_mask_is_read_anew(tmp_path: Path) -> None:
    folder = scenes(tmp_path)
    read(folder, MASKS, cache="on")
    for file in (folder / "masks").glob("*.png"):
        Image.fromarray(np.asarray(Image.open(file)) // 7).save(file)
    assert set(read(folder, MASKS, cache="on")["mask"].unique().tolist()) == {0, 1}


TASK = """
from torch import nn
from sslkit import ImageTask

class Masked(ImageTask):
    "Tell how much of an image its mask covers."
    needs = ("mask",)
    def build_head(self):
        return nn.Linear(self.encoder.width, 1)
    def transform(self, batch):
        assert set(batch) == {"canvas", "aspect", "mask"}
        return {"image": self.center_crop(batch), "target": (batch["mask"] > 0).float().mean(dim=(1, 2))}
    def loss(self, output, batch):
        return (output[:, 0] - batch["target"]).square().mean()
"""


def test_a_task_that_needs_masks_gets_them(tmp_path: Path, sslkit: Run, quick: list[str]) -> None:
    folder, task = scenes(tmp_path / "data"), tmp_path / "masked.py"
    task.write_text(TASK)
    flags = ["--data", folder / "images", *quick, "--batch-size", 4, "--steps", 2]
    ran = sslkit("pretrain", task, *flags, "--targets", MASKS, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    ran = sslkit("pretrain", task, *flags, "--out", tmp_path / "none")
    assert ran.code == 2 and "--targets: masked needs mask (say where masks or boxes are)" in ran.err
    ran = sslkit("pretrain", "rotation", *flags, "--targets", MASKS, "--out", tmp_path / "none")
    assert ran.code == 2 and "--targets: rotation uses no mask (leave it out)" in ran.err
    task.write_text(TASK.replace('"mask",', '"box",').replace('"mask"}', '"box"}').replace('batch["mask"] > 0', 'batch["box"]'))
    ran = sslkit("pretrain", task, *flags, "--targets", folder / "coco.json", "--out", tmp_path / "boxes")
    assert ran.code == 0, ran.err
    assert str(tmp_path) not in (tmp_path / "boxes" / "model.safetensors").read_bytes().decode(errors="ignore")
    assert str(folder / "coco.json") in (tmp_path / "boxes" / "spec.json").read_text()
    (folder / "images").rename(folder / "a")  # class folders, and a checkpoint whose run knew boxes
    (tmp_path / "labeled").mkdir()
    (folder / "a").rename(tmp_path / "labeled" / "a")
    shutil.copytree(tmp_path / "labeled" / "a", tmp_path / "labeled" / "b")
    model = tmp_path / "boxes" / "model.safetensors"
    ran = sslkit(
        "finetune", "--ckpt", model, "--data", tmp_path / "labeled", "--steps", 1, "--batch-size", 4, "--out", tmp_path / "f"
    )
    assert ran.code == 0, ran.err


def _write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


@pytest.mark.parametrize(
    ("targets", "change", "message"),
    [
        ("masks", None, "masks names the same file for all images .such as ../masks/{stem}.png"),
        ("../mask/{stem}.png", None, "no mask or annotation exists for any image of .* .the first would be .*/mask/0.png"),
        (VOC, _write("boxes/3.xml", "<annotation>"), "3.xml is not a PASCAL VOC annotation"),
        (VOC, _write("boxes/3.xml", "<!DOCTYPE x [<!ENTITY a 'b'>]><annotation/>"), "3.xml declares entities"),
        (
            VOC,
            _write("boxes/3.xml", "<annotation><size><width>0</width></size></annotation>"),
            "is not a PASCAL VOC annotation",
        ),
        (VOC, lambda folder: (folder / "boxes" / "3.xml").unlink(), "cannot read .*3.xml: No such file"),
        ("coco.json", _write("coco.json", "{}"), "is not a COCO file: KeyError 'categories'"),
        ("coco.json", _write("coco.json", "["), "is not a COCO file"),
        ("coco.json", _write("coco.json", "[" * 100_000), "is not a COCO file: RecursionError"),
        ("coco.json", lambda folder: (folder / "coco.json").unlink(), "cannot read .*coco.json"),
    ],
)
def test_targets_that_cannot_be_read_are_one_line(
    targets: str, change: Callable[[Path], None] | None, message: str, tmp_path: Path
) -> None:
    folder = scenes(tmp_path)
    if change is not None:
        change(folder)
    with pytest.raises(SslkitError, match=f"--targets: .*{message}"):
        read(folder, str(folder / targets) if targets.endswith(".json") else targets)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"bbox": [0, 0, -1, 5]}, "a box of class 'thing'"),
        ({"bbox": [0, 0, 5]}, "ValueError"),
        ({"bbox": [0, 0, "x", 5]}, "ValueError"),
        ({"category_id": 9}, "KeyError 9"),
        ({"image_id": 9}, "KeyError 9"),
        ({"bbox": [0, 0, 1e300, 5]}, "a box of class"),
        ({"bbox": [0, 0, float("nan"), 5]}, "a box of class"),
    ],
)
def test_boxes_that_are_none(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = scenes(tmp_path)
    coco = json.loads((folder / "coco.json").read_text())
    coco["annotations"][2] |= entry
    (folder / "coco.json").write_text(json.dumps(coco))
    with pytest.raises(SslkitError, match=f"is not a COCO file: .*{message}"):
        read(folder, str(folder / "coco.json"))


def test_masks_that_do_not_fit_are_broken_samples(tmp_path: Path) -> None:
    folder = scenes(tmp_path)
    Image.new("L", (40, 60)).save(folder / "masks" / "0.png")
    Image.new("RGB", (40, 60)).save(folder / "masks" / "1.png")
    (folder / "masks" / "2.png").write_bytes(b"no image")
    (folder / "masks" / "3.png").unlink()
    spec = DataSpec(data=str(folder / "images"), size=32, targets=MASKS, cache="off")
    _, broken = ImageSource.open(spec).read(np.arange(8))
    assert list(broken) == [0, 1, 2, 3]
    for row, reason in enumerate(("has other proportions", "has RGB pixels, not", "UnidentifiedImageError", "no mask ")):
        assert reason in broken[row]


def test_arrays_have_no_targets(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((4, 32, 32), np.uint8))
    with pytest.raises(SslkitError, match=r"--targets: .* has no files beside which targets lie"):
        ImageSource.open(DataSpec(data=str(tmp_path / "images.npy"), targets=MASKS))


def test_coco_names_that_fit_several_images_and_boxes_without_area(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = scenes(tmp_path)
    for name in ("a", "b"):
        (folder / "images" / name).mkdir()
        Image.new("RGB", (40, 40)).save(folder / "images" / name / "1.png")
    coco = {
        "images": [
            {"id": 1, "file_name": "a/1.png", "width": 40, "height": 40},
            {"id": 2, "file_name": "x/7.png", "width": 160, "height": 40},
        ],
        "annotations": [{"image_id": n, "category_id": 1, "bbox": [60 * n - 60, 0, w, 9]} for n, w in ((1, 9), (1, 0), (2, 9))],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "coco.json").write_text(json.dumps(coco))
    source = ImageSource.open(DataSpec(data=str(folder / "images"), size=32, targets=str(folder / "coco.json"), cache="off"))
    arrays, _ = source.read(np.arange(source.info.samples))
    marked = [source.name(row) for row in range(source.info.samples) if arrays["box_label"][row, 0] == 0]
    assert marked == ["7.png", "a/1.png"]
    assert "1 boxes of" in capsys.readouterr().err


def test_masks_below_the_data_are_no_samples(tmp_path: Path) -> None:
    scenes(tmp_path / "scenes")
    for name in ("boxes", "coco.json"):
        (tmp_path / "scenes" / name).rename(tmp_path / name)
    spec = DataSpec(data=str(tmp_path / "scenes"), size=32, targets=MASKS, cache="off")
    source = ImageSource.open(spec)
    assert source.info.samples == 8 and source.index.classes == () and source.find_labels().classes == ("images",)
    _, broken = source.read(np.arange(8))
    assert not broken
    without = ImageSource.open(spec.updated({"targets": None}))
    assert without.info.samples == 16
