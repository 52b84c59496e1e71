"""Canvases and crops: training reaches every pixel in true proportions, evaluations see what PIL would show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

from sslkit.contract.source import ReadSeed
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.image.decode import CanvasFormat, fit
from sslkit.image.source import ImageSource, choose_canvas
from sslkit.image.transforms import center_view, random_crop, random_resized_crop, random_rotation
from sslkit.specs.data import DataSpec

SHAPES = [(500, 375), (375, 500), (2000, 500), (300, 900)]  # width and height


def coordinates(width: int, height: int) -> Image.Image:
    """Return an image whose red says how far right a pixel lies, and whose green how far down."""
    across, down = (np.linspace(0, 255, side).round().astype(np.uint8) for side in (width, height))
    return Image.fromarray(
        np.stack([*np.broadcast_arrays(across[None], down[:, None]), np.zeros((height, width), np.uint8)], -1)
    )


def canvas_batch(image: Image.Image, form: CanvasFormat, count: int) -> tuple[Tensor, Tensor]:
    """Return canvases of an image, of a long one with parts drawn, and its aspect."""
    places = np.random.default_rng(0).random(count)
    decoded = [fit(image, form, float(place)) for place in places]
    canvas = torch.tensor(np.stack([sample.canvas for sample in decoded])).permute(0, 3, 1, 2).float() / 255
    return canvas, torch.tensor([sample.aspect for sample in decoded])


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_crops_reach_every_pixel_with_the_boxes_of_torchvision(width: int, height: int) -> None:
    canvas, aspect = canvas_batch(coordinates(width, height), CanvasFormat(64, "whole"), 2000)
    torch.manual_seed(0)
    crops = random_resized_crop(canvas, 32, aspect=aspect)
    assert crops[:, :2].amin(dim=(0, 2, 3)).max() < 0.02 and crops[:, :2].amax(dim=(0, 2, 3)).min() > 0.98
    box_width = (crops[:, 0, 16, 24] - crops[:, 0, 16, 8]) * 2 * width
    box_height = (crops[:, 1, 24, 16] - crops[:, 1, 8, 16]) * 2 * height
    ours = torch.stack([box_width * box_height / (width * height), box_width / box_height], dim=1)
    get_params = torchvision.transforms.RandomResizedCrop.get_params
    boxes = [get_params(torch.empty(1, height, width), [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    theirs = torch.tensor([(down * across / (width * height), across / down) for _, _, down, across in boxes])
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    assert torch.allclose(ours.quantile(quantiles, dim=0), theirs.quantile(quantiles, dim=0), atol=0.05)


def test_where_no_box_fits_the_crop_is_that_of_torchvision() -> None:
    canvas, aspect = canvas_batch(coordinates(1600, 100), CanvasFormat(64, "whole"), 50)
    crops = random_resized_crop(canvas, 32, scale=(1.0, 1.0), aspect=aspect)
    _, _, down, across = torchvision.transforms.RandomResizedCrop.get_params(
        torch.empty(1, 100, 1600), [1.0, 1.0], [3 / 4, 4 / 3]
    )
    assert (down, across) == (100, 133)
    assert torch.allclose((crops[:, 0, 16, 24] - crops[:, 0, 16, 8]) * 2 * 1600, torch.tensor(133.0), atol=15)
    assert torch.allclose((crops[:, 1, 24, 16] - crops[:, 1, 8, 16]) * 2, torch.tensor(1.0), atol=0.05)


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_other_crops_keep_proportions_too(width: int, height: int) -> None:
    canvas, aspect = canvas_batch(coordinates(width, height), CanvasFormat(64, "whole"), 20)
    for view in (center_view(canvas, 48, aspect), random_crop(canvas, 48, aspect=aspect)):
        scale = (view[:, 0, 24, 32] - view[:, 0, 24, 16]) * width, (view[:, 1, 32, 24] - view[:, 1, 16, 24]) * height
        assert torch.allclose(scale[0] / scale[1], torch.tensor(1.0), atol=0.12)
    torch.manual_seed(0)
    turned = center_view(random_rotation(canvas, 45, aspect), 48, aspect)
    right = torch.stack([turned[:, 0, 24, 30] - turned[:, 0, 24, 18], turned[:, 1, 24, 30] - turned[:, 1, 24, 18]], dim=1)
    down = torch.stack([turned[:, 0, 30, 24] - turned[:, 0, 18, 24], turned[:, 1, 30, 24] - turned[:, 1, 18, 24]], dim=1)
    right, down = (vector * torch.tensor([width, height]) for vector in (right, down))
    cosine = torch.nn.functional.cosine_similarity(right, down, dim=1)
    assert cosine.abs().max() < 0.15  # a right angle stays one
    assert torch.allclose(right.norm(dim=1) / down.norm(dim=1), torch.tensor(1.0), atol=0.15)


def test_the_center_is_what_pil_shows(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (90, 120, 3), dtype=np.uint8)) for _ in range(3)]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    index = ImageSource.read_index(str(tmp_path), DataSpec())
    source = ImageSource.for_evaluation(index, DataSpec(cache="off"), build_encoder(recipe_for("resnet_micro", 64)), 64)
    arrays, _ = source.read(np.arange(3))
    view = source.view(source.prepare({name: torch.from_numpy(array) for name, array in arrays.items()}), "image")
    side = round(64 * 8 / 7)
    for image, picture in zip(images, view, strict=True):
        resized = image.resize((side, side), Image.Resampling.BILINEAR, box=(15, 0, 105, 90))
        margin = (side - 64) // 2
        expected = np.asarray(resized.crop((margin, margin, margin + 64, margin + 64)))
        assert torch.equal((picture * 255).round().byte().permute(1, 2, 0), torch.tensor(expected))


def test_a_part_of_a_long_image_is_drawn_in_every_epoch(tmp_path: Path) -> None:
    coordinates(200, 40).save(tmp_path / "long.png")
    coordinates(40, 40).save(tmp_path / "square.png")
    spec = DataSpec(data=str(tmp_path), size=32, canvas=32, cache="on", workers="auto")
    source = ImageSource.open(spec)
    rows = np.arange(2)
    reads = [source.read(rows, ReadSeed(0, epoch))[0] for epoch in (0, 1, 0)]
    long, square = (reads[0]["canvas"][row] for row in (0, 1))
    assert np.array_equal(long, reads[2]["canvas"][0]) and not np.array_equal(long, reads[1]["canvas"][0])
    assert np.array_equal(square, reads[1]["canvas"][1])
    assert reads[0]["aspect"].tolist() == [5, 1]
    assert np.array_equal(source.read(rows)[0]["canvas"][0], source.read(rows)[0]["canvas"][0])  # without a draw: the middle
    assert "1 images longer than 2:1 are decoded anew" in source.workers("auto")[1]


def test_the_side_of_a_canvas() -> None:
    def sides(size: int, width: int, height: int) -> tuple[int, int]:
        sizes = np.array([[width, height]])
        return choose_canvas(size, sizes, "whole")[0], choose_canvas(size, sizes, "center")[0]

    assert sides(224, 500, 375) == (304, 256)
    assert sides(224, 4000, 3000) == (304, 256)
    assert sides(32, 32, 32) == (32, 32)  # small images are kept whole
    assert sides(32, 64, 48) == (64, 48)
    assert sides(96, 96, 96) == (96, 96)
    assert sides(96, 100, 80) == (100, 80)


def test_a_task_for_the_key_of_before_is_told_the_new_one(tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    task = tmp_path / "old.py"
    task.write_text(
        "from sslkit import PretextTask\n"
        "class Old(PretextTask):\n"
        "    'Take the key of before.'\n"
        "    def transform(self, batch):\n"
        "        return {'image': batch['image']}\n"
        "    def loss(self, output, batch):\n"
        "        return output.square().mean()\n"
    )
    ran = sslkit("check", task)
    assert ran.code == 1 and "outputs have samples first: KeyError: 'image: a batch has canvas, aspect' (old.py:5)" in ran.out
