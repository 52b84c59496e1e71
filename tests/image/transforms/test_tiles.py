"""Tiles, holes, small rotations and downscaled images."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from scipy import ndimage

from sslkit.image.transforms import cut_tiles, hole_mask, random_downscale, random_rotation, resize, sobel
from sslkit.image.views import strong_view
from tests.canvases import canvases

CPU = torch.device("cpu")


def test_tiles_are_cut_pixel_by_pixel() -> None:
    image = torch.rand(2, 3, 12, 10)
    top, left = torch.tensor([[0, 5], [8, 3]]), torch.tensor([[6, 0], [2, 1]])
    cut = cut_tiles(image, top, left, 4)
    assert cut.shape == (2, 2, 3, 4, 4)
    for sample in range(2):
        for view in range(2):
            y, x = int(top[sample, view]), int(left[sample, view])
            assert torch.equal(cut[sample, view], image[sample, :, y : y + 4, x : x + 4])


def test_tiles_are_brought_to_a_size() -> None:
    small, large = torch.rand(2, 9, 3, 9, 9), torch.rand(2, 9, 3, 20, 20)
    grown = resize(small, 16)
    assert grown.shape == (2, 9, 3, 16, 16) and resize(large, 20) is large
    assert torch.allclose(grown[1, 4], F.interpolate(small[1, 4:5], size=16, mode="bilinear")[0])
    assert resize(small[0], 16).shape == (9, 3, 16, 16)


@pytest.mark.parametrize("kind", ["center", "block", "region"])
@pytest.mark.parametrize(("size", "share"), [(32, 0.25), (64, 0.25), (32, 0.4)])
def test_holes_have_the_requested_area(kind: str, size: int, share: float) -> None:
    torch.manual_seed(0)
    hidden = hole_mask(50, size, kind, share, CPU)
    assert hidden.shape == (50, size, size) and hidden.dtype == torch.bool
    area = hidden.float().mean(dim=(1, 2))
    # A square in the middle, and boxes, have whole rows.
    assert area.min() >= share - 1e-6 and area.max() <= share + 4.5 / size


def test_holes_are_connected_as_they_should() -> None:
    torch.manual_seed(0)
    pieces = {
        kind: [ndimage.label(mask.numpy())[1] for mask in hole_mask(100, 64, kind, 0.25, CPU)]
        for kind in ("center", "block", "region")
    }
    assert set(pieces["center"]) == {1} and set(pieces["region"]) == {1}
    assert max(pieces["block"]) <= 4
    middle = hole_mask(1, 32, "center", 0.25, CPU)[0]
    assert middle[8:24, 8:24].all() and int(middle.sum()) == 256


def test_silhouettes_differ() -> None:
    hidden = hole_mask(400, 32, "region", 0.25, CPU).flatten(1).float()
    assert len(hidden.unique(dim=0)) == 400
    assert float(hidden.mean(dim=0).min()) > 0.02  # every position is masked sometimes


def test_rotations_against_torchvision() -> None:
    image = F.interpolate(torch.rand(4, 3, 6, 6), size=33, mode="bicubic").clamp(0, 1)
    torch.manual_seed(0)
    rotated = random_rotation(image, 20)
    torch.manual_seed(0)
    angles = 20 * (2 * torch.rand(4) - 1)
    for original, ours, angle in zip(image, rotated, angles.tolist(), strict=True):
        theirs = TF.rotate(original, angle, interpolation=TF.InterpolationMode.BILINEAR)
        middle = slice(10, 23)  # the corners are filled differently
        assert torch.allclose(ours[:, middle, middle], theirs[:, middle, middle], atol=1e-3)


def test_downscaling_uses_three_filters_equally() -> None:
    image = torch.rand(1, 3, 24, 24).expand(90, -1, -1, -1)
    small = random_downscale(image, 8)
    assert small.shape == (90, 3, 8, 8) and small.min() >= 0 and small.max() <= 1
    kinds, counts = small.unique(dim=0, return_counts=True)
    assert len(kinds) == 3 and counts.tolist() == [30, 30, 30]
    area = F.interpolate(image[:1], size=8, mode="area")
    assert (small - area).abs().amax(dim=(1, 2, 3)).lt(1e-6).sum() == 30


def test_downscaling_keeps_the_order() -> None:
    image = torch.arange(30.0).view(30, 1, 1, 1).expand(30, 1, 12, 12) / 30
    assert torch.allclose(random_downscale(image, 6)[:, 0, 0, 0], torch.arange(30.0) / 30, atol=1e-4)


def test_sobel_detects_edges_and_their_direction() -> None:
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 3, 8, 8) / 8
    across, down = sobel(ramp)[0]
    assert torch.allclose(across[:, 1:-1], torch.full((8, 6), 0.25)) and torch.allclose(down, torch.zeros(8, 8), atol=1e-6)
    assert torch.allclose(sobel(ramp.transpose(2, 3))[0, 1], across.T, atol=1e-6)


def test_strong_views_have_the_requested_rates() -> None:
    image = torch.rand(400, 3, 8, 8)
    torch.manual_seed(0)
    view = strong_view(canvases(image), 8, gray=0.3, blur=0.0)
    gray = (view.std(dim=1).amax(dim=(1, 2)) < 1e-5).float().mean()
    assert view.shape == image.shape and math.isclose(float(gray), 0.3, abs_tol=0.07)
