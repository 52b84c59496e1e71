"""RandAugment's operations against torchvision's, and random erasing."""

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from sslkit.image.transforms import erase, rand_augment
from sslkit.image.transforms.randaugment import autocontrast, equalize, posterize, smooth, transform_affine


@pytest.fixture
def bytes_of_images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 20, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_equalize_is_torchvisions(bytes_of_images: torch.Tensor) -> None:
    bytes_of_images[0, 0] = 7  # constant
    bytes_of_images[1] //= 16
    assert torch.equal((equalize(bytes_of_images / 255) * 255).round(), reference.equalize(bytes_of_images).float())


def test_autocontrast_is_torchvisions(bytes_of_images: torch.Tensor) -> None:
    image = bytes_of_images / 1020 + 0.3
    image[0, 0] = 0.5
    assert torch.allclose(autocontrast(image), reference.autocontrast(image), atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_posterize_is_torchvisions(bytes_of_images: torch.Tensor, strength: float) -> None:
    expected = reference.posterize(bytes_of_images, 8 - round(4 * strength)).float()
    assert torch.equal((posterize(bytes_of_images / 255, strength) * 255).round(), expected)


def test_smooth_is_what_torchvision_sharpens_away_from(bytes_of_images: torch.Tensor) -> None:
    image = bytes_of_images / 255
    assert torch.allclose(smooth(image), reference.adjust_sharpness(image, 0.0), atol=1e-6)


def test_affine_maps_turn_and_move_as_torchvisions() -> None:
    image, zero, unit = torch.rand(1, 3, 24, 24), torch.zeros(1), torch.ones(1)
    angle = torch.tensor([math.radians(20)])
    turned = transform_affine(image, ((angle.cos(), -angle.sin(), zero), (angle.sin(), angle.cos(), zero)))
    assert torch.allclose(turned, reference.rotate(image, 20, interpolation=InterpolationMode.BILINEAR), atol=1e-5)
    moved = transform_affine(image, ((unit, zero, 5 * unit), (zero, unit, zero)))
    assert torch.allclose(moved[..., :-5], image[..., 5:], atol=1e-5) and moved[..., -5:].max() < 1e-5


@pytest.mark.parametrize("batch", [1, 5, 40])
def test_each_image_is_changed_by_itself_and_stays_in_range(batch: int) -> None:
    image = torch.rand(1, 3, 16, 16).repeat(batch, 1, 1, 1)
    torch.manual_seed(0)
    changed = rand_augment(image, 9)
    assert changed.shape == image.shape and changed.min() >= 0 and changed.max() <= 1
    assert batch < 5 or len({tuple(sample.flatten().tolist()) for sample in changed}) > 2
    torch.manual_seed(0)
    assert torch.equal(rand_augment(image, 9), changed)


def test_every_operation_is_as_likely_and_order_is_kept() -> None:
    marks = torch.arange(28.0).view(28, 1, 1, 1) / 28
    torch.manual_seed(0)
    same = torch.stack([(rand_augment(marks.expand(28, 3, 8, 8), 0, operations=1)[:, 0, 4, 4] - marks.flatten()).abs() < 0.02
                        for _ in range(60)])  # at magnitude 0 most operations keep a constant image  # fmt: skip
    assert same.float().mean() > 0.9


def test_erasing_covers_the_stated_area() -> None:
    torch.manual_seed(0)
    erased = erase(torch.ones(2000, 1, 32, 32), 0.5)[:, 0] == 0
    share = erased.float().mean(dim=(1, 2))
    assert (share > 0).float().mean() == pytest.approx(0.5, abs=0.04)
    assert share[share > 0].mean() == pytest.approx(0.175, abs=0.02) and share.max() < 0.36
    assert torch.equal(erase(erased[:, None].float(), 0.0), erased[:, None].float())
