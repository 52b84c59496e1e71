"""Crops of clips, tubelets and masks over them."""

import pytest
import torch

from sslkit.video.transforms import crop_clip, crop_frames, cut_tubelets, join_tubelets, tubelet_mask


def test_tubelets_are_cut_in_the_order_of_time_rows_and_columns_and_joined_again() -> None:
    clip = torch.rand(2, 4, 3, 6, 9)
    tubelets = cut_tubelets(clip, 2, 3)
    assert tubelets.shape == (2, 2 * 2 * 3, 2 * 3 * 3 * 3)
    number = 0
    for time in range(2):
        for row in range(2):
            for column in range(3):
                block = clip[:, 2 * time : 2 * time + 2, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
                assert torch.equal(tubelets[:, number], block.permute(0, 1, 3, 4, 2).flatten(1))
                number += 1
    assert torch.equal(join_tubelets(tubelets, clip.shape, 2, 3), clip)


@pytest.mark.parametrize(("kind", "hidden"), [("tube", 4 * 14), ("random", 58), ("frame", 16 * 3)])
def test_masks_hide_as_much_of_every_clip(kind: str, hidden: int) -> None:
    torch.manual_seed(0)
    mask, count = tubelet_mask(64, (4, 4, 4), kind, 0.9, torch.device("cpu"))
    assert mask.shape == (64, 64) and count == hidden and (mask.sum(dim=1) == hidden).all()
    by_time = mask.view(64, 4, 16)
    if kind == "tube":
        assert torch.equal(by_time, by_time[:, :1].expand(-1, 4, -1))
    if kind == "frame":
        assert ((by_time.sum(dim=2) == 0) | (by_time.sum(dim=2) == 16)).all()
    assert len(mask.unique(dim=0)) > 1


def test_something_stays_visible_and_something_is_hidden() -> None:
    for ratio in (0.001, 0.999):
        for kind in ("tube", "random", "frame"):
            mask, _ = tubelet_mask(3, (2, 2, 2), kind, ratio, torch.device("cpu"))
            assert mask.any(dim=1).all() and (~mask).any(dim=1).all()


def test_frames_of_a_clip_are_cropped_alike_or_each_elsewhere() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 32).expand(32, 3, 32, 32)[:, None].expand(-1, 6, -1, -1, -1)
    aspect = torch.ones(32)
    same = crop_clip(ramp, 16, 0.5, aspect)
    assert same.shape == (32, 6, 3, 16, 16) and torch.allclose(same, same[:, :1].expand_as(same), atol=1e-6)
    assert not torch.allclose(same[0], same[1])
    moved = crop_frames(ramp, 16, 0.5, aspect, shift=0.1)
    means, width = moved.mean(dim=(2, 3, 4)), (moved[..., -1] - moved[..., 0]).mean(dim=(2, 3))
    assert means.std(dim=1).mean() > 0.01  # they lie elsewhere
    assert torch.allclose(width, width[:, :1].expand_as(width), atol=1e-4)  # and are as large
    still = crop_frames(ramp, 16, 0.5, aspect, shift=0.0)
    assert torch.allclose(still, still[:, :1].expand_as(still), atol=1e-6)
