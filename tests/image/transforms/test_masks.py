"""Masks have exactly the requested number of masked patches."""

import pytest
import torch

from sslkit.image.transforms import block_mask, grid_mask, patchify, random_crop, random_mask, rgb_to_lab, split_patches

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_masked", [1, 20, 48, 63])
def test_counts_are_exact(num_masked: int) -> None:
    for mask in (random_mask(50, 64, num_masked, CPU), block_mask(50, (8, 8), num_masked, CPU)):
        assert mask.shape == (50, 64) and mask.dtype == torch.bool
        assert (mask.sum(dim=1) == num_masked).all()
        visible, masked = split_patches(mask, num_masked)
        assert (mask.gather(1, masked)).all() and not mask.gather(1, visible).any()
        assert (visible.diff(dim=1) > 0).all() and (masked.diff(dim=1) > 0).all()


def test_random_masks_are_uniform() -> None:
    share = random_mask(5000, 16, 4, CPU).float().mean(dim=0)
    assert torch.allclose(share, torch.full((16,), 0.25), atol=0.03)


def test_blocks_are_contiguous() -> None:
    def neighbors(mask: torch.Tensor) -> float:
        """Return the share of pairs of adjacent patches that are both masked or both visible."""
        grid = mask.view(-1, 8, 8)
        down, across = grid[:, 1:] == grid[:, :-1], grid[:, :, 1:] == grid[:, :, :-1]
        return float(torch.cat([down.flatten(), across.flatten()]).float().mean())

    assert neighbors(block_mask(300, (8, 8), 32, CPU)) > 0.7 > 0.55 > neighbors(random_mask(300, 64, 32, CPU))


def test_a_grid_keeps_one_of_four() -> None:
    mask = grid_mask(2, (4, 6), CPU)[0].view(4, 6)
    assert (~mask).nonzero().tolist() == [[r, c] for r in (0, 2) for c in (0, 2, 4)]


def test_patches_are_in_their_places() -> None:
    image = torch.rand(2, 3, 8, 12)
    cut = patchify(image, 4)
    assert cut.shape == (2, 6, 48)
    assert torch.equal(cut[1, 4], image[1, :, 4:8, 4:8].permute(1, 2, 0).flatten())


def test_random_crops_are_parts_of_the_image() -> None:
    image = torch.arange(40 * 40.0).view(1, 1, 40, 40).expand(64, 3, -1, -1)
    crops = random_crop(image, 32)
    assert crops.shape == (64, 3, 32, 32)
    corner = crops[:, 0, 0, 0].round().long()
    top, left = corner // 40, corner % 40
    assert len(top.unique()) > 4 and len(left.unique()) > 4 and int(top.max()) <= 8
    for crop, row, column in zip(crops, top.tolist(), left.tolist(), strict=True):
        assert torch.allclose(crop, image[0, :, row : row + 32, column : column + 32], atol=1e-2)  # of 1,600
    for side in (32, 16):  # padded by reflection first, or enlarged
        assert random_crop(torch.rand(2, 3, side, side), 32).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.02, 0.02, 0.02), (1.40, 0, 0)),
    ],
)
def test_lab_of_known_colors(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    converted = rgb_to_lab(torch.tensor(rgb).float().view(1, 3, 1, 1)).flatten()
    assert torch.allclose(converted, torch.tensor(lab).float(), atol=0.05)
