"""Each transform against the same formula sample by sample, and against torchvision where the definition is the same."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from torch import Tensor

from sslkit.image import transforms
from sslkit.image.transforms import CropBox, color, geometry
from sslkit.image.transforms import blur as blur_module


def pictures(batch: int = 6, channels: int = 3, side: int = 16) -> Tensor:
    return torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(0))


ALL = {
    "crop": lambda x: transforms.random_resized_crop(x, 12),
    "flip": transforms.flip,
    "jitter": lambda x: transforms.color_jitter(x, saturation=0.8 * (x.shape[1] in (1, 3)), hue=0.2 * (x.shape[1] in (1, 3))),
    "gray": transforms.grayscale,
    "blur": transforms.gaussian_blur,
    "solarize": transforms.solarize,
    "rotations": lambda x: transforms.right_angle_rotations(x).flatten(0, 1),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_range_shape_and_repetition(name: str, channels: int) -> None:
    image = pictures(channels=channels)
    torch.manual_seed(1)
    result = ALL[name](image)
    torch.manual_seed(1)
    assert torch.equal(result, ALL[name](image))
    assert result.shape[1] == channels and result.min() >= 0 and result.max() <= 1
    assert torch.equal(image, pictures(channels=channels))  # the input is left alone
    torch.manual_seed(2)
    unchanging = name == "rotations" or (name == "gray" and channels == 1)
    assert unchanging or not torch.equal(result, ALL[name](image))


def test_crop_of_everything_is_the_image() -> None:
    image = pictures()
    whole = geometry.crop(image, CropBox(*(torch.full((6,), value) for value in (0.0, 0.0, 1.0, 1.0))), size=16)
    assert torch.allclose(whole, image, atol=1e-6)


def test_crop_against_sampling_pixel_by_pixel() -> None:
    image = pictures(2, 1, 8)
    top, left, down, across = torch.tensor([[0.1, 0.2], [0.3, 0.0], [0.5, 0.7], [0.6, 1.0]])
    cropped = geometry.crop(image, CropBox(top, left, down, across), size=5, shrinks=False)

    def at(picture: Tensor, y: float, x: float) -> float:
        y, x = min(max(y, 0), 7), min(max(x, 0), 7)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, 7), min(x0 + 1, 7)
        upper = picture[y0, x0] * (x0 + 1 - x) + picture[y0, x1] * (x - x0)
        lower = picture[y1, x0] * (x0 + 1 - x) + picture[y1, x1] * (x - x0)
        return float(upper * (y0 + 1 - y) + lower * (y - y0))

    for b in range(2):
        for i in range(5):
            for j in range(5):
                y = (float(top[b]) + float(down[b]) * (i + 0.5) / 5) * 8 - 0.5
                x = (float(left[b]) + float(across[b]) * (j + 0.5) / 5) * 8 - 0.5
                assert float(cropped[b, 0, i, j]) == pytest.approx(at(image[b, 0], y, x), abs=1e-5)


def test_crop_on_whole_pixels_equals_torchvision() -> None:
    image = pictures(1, 3, 16)
    ours = geometry.crop(image, CropBox(*(torch.tensor([value]) for value in (0.25, 0.5, 0.5, 0.25))), size=8, shrinks=False)[0]
    theirs = TF.resized_crop(image[0], 4, 8, 8, 4, [8, 8], antialias=False)
    # Inside; at the box's left and right edge torchvision repeats the border, ours looks at the neighbors.
    assert torch.allclose(ours[:, :, 1:-1], theirs[:, :, 1:-1], atol=1e-5)


@pytest.mark.parametrize(("side", "size"), [(16, 24), (16, 16), (24, 16), (40, 12)])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_equals_four_taps_through_an_affine_map(side: int, size: int, channels: int) -> None:
    image = pictures(12, channels, side)
    torch.manual_seed(0)
    box = transforms.random_box(image, (0.2, 1.0), flipped=0.5, aspect=torch.ones(12))
    assert torch.allclose(transforms.crop(image, box, size), four_taps(image, box, size, side > size), atol=1e-4)
    assert torch.allclose(transforms.crop(image, box, size, shrinks=False), four_taps(image, box, size, False), atol=1e-4)


def four_taps(image: Tensor, box: CropBox, size: int, shrinks: bool) -> Tensor:
    """Crop one image after the other by `grid_sample`, up to four times."""
    crops, side = [], image.shape[-1]
    for b, picture in enumerate(image):
        top, left, down, across = (float(value[b]) for value in (box.top, box.left, box.down, box.across))
        signed = -across if bool(box.mirrored is not None and box.mirrored[b]) else across
        x, y = (part / size * min(max(part * side / size - 1, 0), 1) / 2 * shrinks for part in (across, down))
        total = torch.zeros(1, len(picture), size, size)
        for i, j in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            theta = torch.tensor([[[signed, 0, 2 * left + across - 1 + i * x], [0, down, 2 * top + down - 1 + j * y]]])
            grid = F.affine_grid(theta, [1, len(picture), size, size], align_corners=False)
            total += F.grid_sample(picture[None], grid, padding_mode="border", align_corners=False) / 4
        crops.append(total)
    return torch.cat(crops)


def test_crop_areas_and_ratios_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    # A ramp tells where a crop came from: the span of values across is the width of the box.
    ramp = torch.linspace(0.5 / 64, 1 - 0.5 / 64, 64)
    image = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64)]).expand(4000, 2, 64, 64)
    cropped = transforms.random_resized_crop(image, 16)
    across = (cropped[:, 0, 8, -1] - cropped[:, 0, 8, 0]) * 16 / 15
    down = (cropped[:, 1, -1, 8] - cropped[:, 1, 0, 8]) * 16 / 15
    import torchvision

    boxes = [torchvision.transforms.RandomResizedCrop.get_params(image[0], [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = torch.tensor([(height * width / 4096, width / height) for _, _, height, width in boxes])
    ours = torch.stack([across * down, across / down], dim=1)
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    assert torch.allclose(ours.quantile(quantiles, dim=0), theirs.quantile(quantiles, dim=0), atol=0.04)


def test_flip_and_rotations_are_exact() -> None:
    image = pictures()
    assert torch.equal(transforms.flip(image, 1.0), image.flip(-1))
    assert torch.equal(transforms.flip(image, 0.0), image)
    torch.manual_seed(0)
    cropped = transforms.random_resized_crop(image, 8)
    torch.manual_seed(0)
    assert torch.allclose(transforms.random_resized_crop(image, 8, flipped=1.0), cropped.flip(-1), atol=1e-5)
    ramp = torch.linspace(0, 1, 16).expand(400, 1, 16, 16)
    mirrored = transforms.random_resized_crop(ramp, 8, flipped=0.5)
    assert float((mirrored[..., 0] > mirrored[..., -1]).float().mean()) == pytest.approx(0.5, abs=0.08)
    rotated = transforms.right_angle_rotations(image)
    for b in range(len(image)):
        for turns in range(4):
            assert torch.equal(rotated[b, turns], torch.rot90(image[b], turns, (1, 2)))


def test_jitter_against_the_formula_sample_by_sample() -> None:
    image = pictures()
    torch.manual_seed(3)
    ours = transforms.color_jitter(image, 0.8, 0.8, 0.8, 0.2, probability=0.6)
    torch.manual_seed(3)
    uniform = torch.rand(6, 6)
    for b in range(6):
        expected = image[b].double()
        if uniform[b, 4] < 0.6:
            bright, contrast, saturation = (0.2 + 1.6 * float(uniform[b, i]) for i in range(3))
            expected = expected * bright
            gray = 0.299 * expected[0] + 0.587 * expected[1] + 0.114 * expected[2]
            expected = saturation * expected + (1 - saturation) * gray
            angle = 2 * math.pi * 0.2 * (2 * float(uniform[b, 3]) - 1)
            axis = torch.ones(3, dtype=torch.double) / math.sqrt(3)
            for i in range(16):
                for j in range(16):
                    v = expected[:, i, j].clone()
                    along = axis * (axis @ v) * (1 - math.cos(angle))
                    expected[:, i, j] = v * math.cos(angle) + torch.linalg.cross(axis, v) * math.sin(angle) + along
            mean = (0.299 * expected[0] + 0.587 * expected[1] + 0.114 * expected[2]).mean()
            expected = contrast * expected + (1 - contrast) * mean
        assert torch.allclose(ours[b].double(), expected.clamp(0, 1), atol=1e-5)


def test_gray_after_jitter_equals_grayscale() -> None:
    image = 0.3 + 0.2 * pictures()  # nothing is clamped
    torch.manual_seed(5)
    colored = transforms.color_jitter(image, 0.2, 0.2, 0.2, 0.1)
    torch.manual_seed(5)
    gray = transforms.color_jitter(image, 0.2, 0.2, 0.2, 0.1, gray=1.0)
    assert torch.allclose(gray, transforms.grayscale(colored, 1.0), atol=1e-5)


@pytest.mark.parametrize(("name", "column"), [("brightness", 0), ("contrast", 1), ("saturation", 2)])
def test_single_adjustments_equal_torchvision(name: str, column: int) -> None:
    image = 0.3 + 0.2 * pictures()  # nothing is clamped
    strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, name: 0.4}
    torch.manual_seed(4)
    ours = transforms.color_jitter(image, **strengths, probability=1.0)
    torch.manual_seed(4)
    factors = 0.6 + 0.8 * torch.rand(6, 6)[:, column]
    for b in range(6):
        theirs = getattr(TF, f"adjust_{name}")(image[b], float(factors[b]))
        assert torch.allclose(ours[b], theirs, atol=2e-3 if name != "brightness" else 1e-5)


def test_hue_keeps_gray_and_is_periodic() -> None:
    gray = torch.full((1, 3), 0.4)
    ones = torch.ones(1)
    turn = color.color_matrix(ones, ones, torch.tensor([0.17]))
    assert torch.allclose(turn[0] @ gray[0], gray[0], atol=1e-6)
    third = color.color_matrix(ones, ones, torch.tensor([1 / 3]))[0]
    assert torch.allclose(third @ third @ third, torch.eye(3), atol=1e-5)
    assert torch.allclose(third @ torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0]), atol=1e-6)


def test_jitter_refuses_hue_of_five_channels() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels"):
        transforms.color_jitter(pictures(channels=5))


def test_grayscale_and_solarize_equal_torchvision() -> None:
    image = pictures()
    assert torch.allclose(transforms.grayscale(image, 1.0), TF.rgb_to_grayscale(image, 3), atol=2e-3)
    assert torch.equal(transforms.solarize(image, 0.5, 1.0), TF.solarize(image, 0.5))


def test_blur_equals_torchvision() -> None:
    image = pictures(3, 3, 16)
    sigma = torch.tensor([0.5, 1.0, 1.7])
    ours = blur_module.blur(image, sigma, radius=4)
    for b in range(3):
        assert torch.allclose(ours[b], TF.gaussian_blur(image[b], [9, 9], [float(sigma[b])] * 2), atol=1e-5)


@pytest.mark.parametrize("side", [5, 16, 33])
def test_blur_equals_shifted_copies(side: int) -> None:
    image, sigma = pictures(4, 2, side), torch.tensor([0.1, 0.7, 1.5, 2.0])
    radius = min(6, side - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    expected = image
    for _ in range(2):  # columns, then rows, both as columns
        padded = F.pad(expected, (0, 0, radius, radius), mode="reflect")
        shifted = [kernel[:, i, None, None, None] * padded[:, :, i : i + side] for i in range(2 * radius + 1)]
        expected = torch.stack(shifted).sum(dim=0).transpose(2, 3)
    assert torch.allclose(blur_module.blur(image, sigma, radius), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["flip", "gray", "blur", "solarize"])
def test_rates(name: str) -> None:
    image = pictures(1, 3, 8).expand(2000, 3, 8, 8)
    torch.manual_seed(0)
    changed = (ALL[name](image) != image).flatten(1).any(dim=1).float().mean()
    assert float(changed) == pytest.approx({"flip": 0.5, "gray": 0.2, "blur": 0.5, "solarize": 0.2}[name], abs=0.04)


def test_blur_rate_holds_on_average_for_small_batches() -> None:
    torch.manual_seed(0)
    image = pictures(3, 1, 8)
    changed = [float((transforms.gaussian_blur(image, probability=0.5) != image).flatten(1).any(1).sum()) for _ in range(400)]
    assert sum(changed) / 1200 == pytest.approx(0.5, abs=0.04)


def test_center_view() -> None:
    image = pictures(2, 3, 32)
    assert torch.equal(transforms.center_view(image, 32), image)
    assert torch.equal(transforms.center_view(image, 28), image[..., 2:30, 2:30])
    assert transforms.center_view(image, 64).shape == (2, 3, 64, 64)
    assert transforms.center_view(image, 8).shape == (2, 3, 8, 8)
