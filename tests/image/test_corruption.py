"""The fifteen corruptions: what each does to pixels, that severities grow, and that nothing depends on the batch."""

import colorsys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from sslkit.image.corruption import CORRUPTIONS, FAMILIES, SEVERITIES, corrupt, filters
from sslkit.image.corruption.level import Draws, Level
from sslkit.image.corruption.weather import plasma

# Of these the paper's settings do not only grow.
NOT_MONOTONE = {"glass_blur", "frost", "elastic", "motion_blur", "snow", "fog"}


def pictures(count: int, side: int, channels: int = 3) -> torch.Tensor:
    """Return smooth pictures with some detail, in steps of 1/255."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 6, 6, generator=random)
    images = torch.nn.functional.interpolate(coarse, size=side, mode="bicubic") + 0.1 * torch.rand(
        count, channels, side, side, generator=random
    )
    return (255 * images.clamp(0, 1)).round() / 255


def draws(count: int = 1) -> Draws:
    return Draws(0, "test", 1, list(range(count)), torch.device("cpu"))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (32, 1), (50, 4), (112, 3)])
def test_every_corruption_returns_images_as_files_have_them(name: str, side: int, channels: int) -> None:
    images = pictures(3, side, channels)
    kept = images.clone()
    for severity in SEVERITIES[::2] if side > 100 else SEVERITIES:
        changed = corrupt(images, name, severity, [4, 9, 2])
        assert changed.shape == images.shape and changed.dtype == torch.float32
        assert torch.equal(changed, (255 * changed).round() / 255) and changed.min() >= 0 and changed.max() <= 1
        assert not torch.equal(changed, images)
    assert torch.equal(images, kept)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_changed_alike_whatever_is_beside_it(name: str) -> None:
    images = pictures(4, 32)
    together = corrupt(images, name, 3, [0, 1, 2, 3])
    assert torch.equal(corrupt(images[2:3], name, 3, [2]), together[2:3])
    assert torch.equal(corrupt(images, name, 3, [0, 1, 2, 3]), together)
    other_rows, other_seed = corrupt(images, name, 3, [4, 5, 6, 7]), corrupt(images, name, 3, [0, 1, 2, 3], seed=1)
    is_random = name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg")
    assert torch.equal(other_rows, together) != is_random and torch.equal(other_seed, together) != is_random


@pytest.mark.parametrize("side", [32, 112])
@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - NOT_MONOTONE))
def test_severities_grow(name: str, side: int) -> None:
    images = pictures(4, side)
    changes = [float((corrupt(images, name, severity, [0, 1, 2, 3]) - images).square().mean()) for severity in SEVERITIES]
    assert changes == sorted(changes)


def test_noise_has_its_size() -> None:
    gray = torch.full((4, 3, 64, 64), 0.5)
    noisy = corrupt(gray, "gaussian_noise", 3, [0, 1, 2, 3])
    assert float(noisy.std()) == pytest.approx(0.08, rel=0.02) and float(noisy.mean()) == pytest.approx(0.5, abs=0.002)
    shots = corrupt(gray, "shot_noise", 3, [0, 1, 2, 3])  # 100 photons for white: variance mean / 100
    assert float(shots.std()) == pytest.approx((0.5 / 100) ** 0.5, rel=0.03)
    impulses = corrupt(gray, "impulse_noise", 5, [0, 1, 2, 3])
    assert float((impulses == 0).float().mean()) == pytest.approx(0.035, rel=0.1)
    assert float((impulses == 1).float().mean()) == pytest.approx(0.035, rel=0.1)


def test_brightness_raises_the_value_of_colors() -> None:
    images = pictures(1, 32)
    images[0, :, 0, 0] = 0  # black has no hue: it gets gray
    bright = corrupt(images, "brightness", 3, [0])[0]
    for row, column in ((0, 0), (5, 7), (31, 31), (16, 2)):
        hue, saturation, value = colorsys.rgb_to_hsv(*images[0, :, row, column].tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.15))
        assert bright[:, row, column].tolist() == pytest.approx(expected, abs=0.5 / 255 + 1e-6)


def test_pixelate_and_jpeg_are_those_of_pillow() -> None:
    images = pictures(1, 32)
    picture = Image.fromarray((255 * images[0]).round().byte().permute(1, 2, 0).numpy())
    small = picture.resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    pixelated = corrupt(images, "pixelate", 5, [0])[0].permute(1, 2, 0).numpy()
    assert np.abs(255 * pixelated - np.asarray(small)).max() <= 1.01  # Pillow rounds twice
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=40)
    compressed = corrupt(images, "jpeg", 5, [0])[0].permute(1, 2, 0).numpy()
    assert np.array_equal((255 * compressed).round(), np.asarray(Image.open(stream)))


def test_glass_copies_pixels_from_nearby_in_the_published_order() -> None:
    images = torch.arange(32 * 32).view(1, 1, 32, 32) / 1024  # each value tells its place
    level = Level(1, 32)  # a blur of 0.05 pixels, one round over a distance of one
    changed = (1024 * CORRUPTIONS["glass_blur"](images, level, draws())).round().long()[0, 0]
    expected = torch.arange(32 * 32).view(32, 32)
    down, across = draws().integers(-1, 1, 2, 32, 32)[0]
    for row in range(31, 1, -1):
        for column in range(31, 1, -1):
            expected[row, column] = expected[row + down[row, column], column + across[row, column]]
    assert torch.equal(changed, expected)
    assert not torch.equal(changed, torch.arange(32 * 32).view(32, 32))


def test_blurs_keep_flat_images_and_their_mean() -> None:
    flat = torch.full((2, 3, 40, 40), 0.4)
    for name in FAMILIES["blur"]:
        assert torch.allclose(corrupt(flat, name, 5, [0, 1]), torch.tensor(102 / 255), atol=1e-6)
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1
    kernel = CORRUPTIONS["defocus_blur"](point, Level(5, 32), draws())
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-5) and torch.allclose(kernel, kernel.transpose(2, 3), atol=1e-7)
    streak = filters.streak(point, torch.tensor([0.0]), 6, 2.0)
    assert float(streak.sum()) == pytest.approx(1, abs=1e-5) and float(streak[..., 20, :].sum()) == pytest.approx(1, abs=1e-4)
    assert float(streak[..., 20, 21:].sum()) < 1e-5  # a pixel is the mean of those on its right


def test_filters_are_what_they_are_called() -> None:
    fields = torch.rand(2, 2, 24, 24, generator=torch.Generator().manual_seed(0))
    smooth = filters.blur_fields(fields, 3.0)
    expected = np.stack(
        [[gaussian_filter(plane, 3.0, mode="reflect", truncate=8) for plane in image] for image in fields.numpy()]
    )
    assert np.allclose(smooth.numpy(), expected, atol=1e-3)
    assert torch.allclose(filters.sample(fields, filters.grid(fields)), fields, atol=1e-5)
    kernel = torch.rand(3, 5)
    loop = torch.nn.functional.conv2d(fields[:, :1], kernel[None, None])
    assert torch.allclose(filters.convolve(fields, kernel)[:, :1, 1:-1, 2:-2], loop, atol=1e-5)


def test_fog_is_rough_at_every_scale() -> None:
    clouds, smoother = (plasma(48, decay, draws(3)) for decay in (1.5, 3.0))
    assert clouds.shape == (3, 48, 48) and clouds.min() >= 0 and clouds.max() <= 1
    assert float(clouds.diff(dim=1).abs().mean()) > 2 * float(smoother.diff(dim=1).abs().mean())


def test_lengths_and_settings_go_with_the_side() -> None:
    assert Level(2, 64).choose((1, 2, 3, 4, 5), (6, 7, 8, 9, 10)) == 2 and Level(2, 64).pixels(3) == 6
    assert Level(5, 112).choose((1, 2, 3, 4, 5), (6, 7, 8, 9, 10)) == 10 and Level(5, 112).pixels(8) == 4
