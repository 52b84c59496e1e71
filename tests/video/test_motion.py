"""Shifts of the camera, what moves against it, and tracks, on made clips."""

import pytest
import torch

from sslkit.video.motion import (
    camera_shifts,
    cut_squares,
    moving_pixels,
    normalized_correlation,
    otsu_threshold,
    shift_frames,
    track_patches,
)


def panning(count: int = 1, frames: int = 9, side: int = 48, speed: tuple[int, int] = (1, -1), square: int = 10) -> tuple:
    """Return clips of a textured ground that a camera pans over, in which a bright square moves, and the squares."""
    torch.manual_seed(0)
    ground = torch.nn.functional.interpolate(0.5 * torch.rand(count, 1, 30, 30), size=(120, 120), mode="bilinear")[:, 0]
    clip, masks = torch.empty(count, frames, side, side), torch.zeros(count, frames, side, side, dtype=torch.bool)
    for time in range(frames):
        top, left = 36 + speed[0] * time, 36 + speed[1] * time
        clip[:, time] = ground[:, top : top + side, left : left + side]
        y, x = 18, 3 + 4 * time
        clip[:, time, y : y + square, x : x + square] = 0.9
        masks[:, time, y : y + square, x : x + square] = True
    return clip, masks


def test_shifts_of_the_camera_are_those_of_the_ground() -> None:
    clip, _ = panning(square=4)
    shifts = camera_shifts(clip)[0]
    expected = torch.stack([-(torch.arange(9) - 4), torch.arange(9) - 4], dim=1)  # the ground moves against the camera
    assert (shifts - expected).abs().max() <= 1
    aligned, inside = shift_frames(clip, expected[None])
    assert torch.equal(aligned[0, 8][inside[0, 8]][:100], clip[0, 4][inside[0, 8]][:100])
    assert torch.equal(aligned[:, 4], clip[:, 4]) and inside[:, 4].all()


@pytest.mark.parametrize("speed", [(0, 0), (1, -1), (0, 2)])
def test_a_moving_square_on_a_panning_ground_is_recovered(speed: tuple[int, int]) -> None:
    clip, masks = panning(speed=speed)
    moving = moving_pixels(clip)[0]
    known = moving >= 0
    predicted, true = (moving == 1)[known], masks[0, 4][known]
    assert known.float().mean() > 0.6
    assert (predicted & true).sum() / (predicted | true).sum() > 0.8


def test_of_a_still_clip_nothing_moves() -> None:
    still = torch.rand(2, 1, 32, 32).expand(-1, 5, -1, -1)
    assert (moving_pixels(still) == 0).all()


def test_thresholds_separate_two_classes_best() -> None:
    torch.manual_seed(0)
    values = torch.cat([0.1 * torch.rand(3, 200), 0.6 + 0.2 * torch.rand(3, 50)], dim=1)
    for row, threshold in zip(values, otsu_threshold(values).tolist(), strict=True):
        assert 0.1 < threshold < 0.6

        def between(limit: float, row: torch.Tensor = row) -> float:
            low, high = row[row <= limit], row[row > limit]
            return len(low) * len(high) * float(low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0.0

        best = max(between(limit / 100) for limit in range(1, 80))
        assert between(threshold) > 0.99 * best


def test_normalized_correlation_against_loops() -> None:
    torch.manual_seed(0)
    search, template = torch.rand(2, 9, 9), torch.rand(2, 4, 4)
    scores = normalized_correlation(search, template)
    assert scores.shape == (2, 6, 6)
    for sample in range(2):
        for top in range(6):
            for left in range(6):
                square = search[sample, top : top + 4, left : left + 4]
                pair = torch.stack([square.flatten(), template[sample].flatten()])
                assert scores[sample, top, left].item() == pytest.approx(torch.corrcoef(pair)[0, 1].item(), abs=1e-4)


def test_a_square_is_tracked() -> None:
    clip, _ = panning(frames=8)
    top, left, correlation = track_patches(clip, torch.tensor([15]), torch.tensor([0]), side=16, reach=5)
    assert abs(int(top) - 15) <= 1 and abs(int(left) - 28) <= 1 and correlation.item() > 0.8
    noise = torch.rand(1, 8, 48, 48)
    assert track_patches(noise, torch.tensor([15]), torch.tensor([0]), side=16, reach=5)[2].item() < 0.4
    assert torch.equal(cut_squares(clip[:, 0], torch.tensor([3]), torch.tensor([5]), 4), clip[:, 0, 3:7, 5:9])
