"""Motion in clips, from pixels alone: shifts of the camera, what moves against it, and tracks of patches."""

import torch
import torch.nn.functional as F
from torch import Tensor

_SMOOTHING = 3  # pixels a side, over which differences are averaged
_PEAKS = 16  # peaks of the phase correlation whose shifts are tried
_LEVELS = 64  # of differences, among which a threshold is chosen
_SURE = 0.3  # of the threshold: what is closer to it is neither moving nor still
_LEAST = 0.02  # gray values: differences below are noise


def to_gray(clip: Tensor) -> Tensor:
    """Return the mean over channels of clips `[B, T, C, H, W]`, `[B, T, H, W]`."""
    return clip.mean(dim=2)


def camera_shifts(gray: Tensor, largest: float = 0.25) -> Tensor:
    """Return by how many pixels (down, right) each frame `[B, T, H, W]` is shifted against the middle one, int64 `[B, T, 2]`.

    Among no shift and the highest peaks of phase correlation (Kuglin & Hines, 1975), that with the smallest median difference
    to the middle frame: the highest peak alone may be that of an object with sharp edges. Shifts are at most `largest`, as a
    fraction of a side.
    """
    height, width = gray.shape[2:]
    middle = gray[:, gray.shape[1] // 2, None]
    spectra = torch.fft.rfft2(gray - gray.mean(dim=(2, 3), keepdim=True))
    cross = spectra * spectra[:, gray.shape[1] // 2, None].conj()
    correlation = torch.fft.irfft2(cross / cross.abs().clamp(min=1e-6), s=(height, width))
    down, right = (torch.fft.fftfreq(side, 1 / side, device=gray.device) for side in (height, width))
    allowed = (down[:, None].abs() <= largest * height) & (right.abs() <= largest * width)
    place = correlation.masked_fill(~allowed, -torch.inf).flatten(2).topk(_PEAKS, dim=2).indices
    peaks = torch.stack([down[place // width], right[place % width]], dim=3).round().long()  # [B, T, K, 2]
    best = torch.zeros_like(peaks[:, :, 0])
    lowest = (gray - middle).abs().flatten(2).median(dim=2).values
    for shifts in peaks.unbind(2):
        aligned, inside = shift_frames(gray, shifts)
        median = (aligned - middle).abs().where(inside, torch.nan).flatten(2).nanmedian(dim=2).values
        better = median < lowest
        best, lowest = shifts.where(better[..., None], best), median.where(better, lowest)
    return best


def shift_frames(gray: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Return frames `[B, T, H, W]` moved back by their shifts `[B, T, 2]`, and where these have pixels, bool."""
    height, width = gray.shape[2:]
    row = torch.arange(height, device=gray.device) + shifts[..., :1]  # [B, T, H]
    column = torch.arange(width, device=gray.device) + shifts[..., 1:]
    inside = ((row >= 0) & (row < height))[..., None] & ((column >= 0) & (column < width))[:, :, None]
    place = row.clamp(0, height - 1)[..., None] * width + column.clamp(0, width - 1)[:, :, None]
    return gray.flatten(2).gather(2, place.flatten(2)).view_as(gray), inside


def moving_pixels(gray: Tensor) -> Tensor:
    """Return what moves in the middle frame of clips `[B, T, H, W]`: 1 moving, 0 still, -1 unknown, int64 `[B, H, W]`.

    Frames are aligned to the middle one; what differs from the median over time moves. The threshold is Otsu's (1979), and
    pixels near it are unknown, as are those that the camera saw in fewer than half of the frames.
    """
    middle = gray.shape[1] // 2
    aligned, inside = shift_frames(gray, camera_shifts(gray))
    # Where a frame has no pixel, the middle frame's stands in.
    background = torch.where(inside, aligned, gray[:, middle, None]).median(dim=1).values
    difference = (gray[:, middle] - background).abs()
    difference = F.avg_pool2d(difference[:, None], _SMOOTHING, stride=1, padding=_SMOOTHING // 2, count_include_pad=False)[:, 0]
    threshold = otsu_threshold(difference.flatten(1)).clamp(min=_LEAST)[:, None, None]
    moving = torch.full_like(difference, -1, dtype=torch.int64)
    moving = moving.where(difference >= (1 - _SURE) * threshold, 0)
    moving = moving.where(difference <= (1 + _SURE) * threshold, 1)
    return moving.where(inside.float().mean(dim=1) >= 0.5, -1)


def otsu_threshold(values: Tensor) -> Tensor:
    """Return the threshold `[B]` that separates values `[B, N]`, 0 or more, best into two classes (Otsu, 1979)."""
    top = values.amax(dim=1, keepdim=True).clamp(min=1e-6)
    level = (values / top * (_LEVELS - 1)).round().long()
    counts = torch.zeros(len(values), _LEVELS, device=values.device).scatter_add_(1, level, torch.ones_like(values))
    share = counts / counts.sum(dim=1, keepdim=True)
    number = torch.arange(_LEVELS, device=values.device)
    below, mean_below = share.cumsum(dim=1), (share * number).cumsum(dim=1)
    mean = mean_below[:, -1:]
    between = (mean * below - mean_below).square() / (below * (1 - below)).clamp(min=1e-6)
    return (between.argmax(dim=1) + 0.5) / (_LEVELS - 1) * top[:, 0]


def track_patches(gray: Tensor, top: Tensor, left: Tensor, side: int, reach: int) -> tuple[Tensor, Tensor, Tensor]:
    """Follow a square of `side` pixels of each first frame through `[B, T, H, W]`, by up to `reach` pixels per frame.

    Starts at pixels `top` and `left` `[B]`. Returns where it ends, and the mean over frames of the normalized
    cross-correlation of the patch with that of the frame before.
    """
    correlations = []
    for time in range(1, gray.shape[1]):
        template = cut_squares(gray[:, time - 1], top, left, side)
        row = (top[:, None] + torch.arange(-reach, side + reach, device=gray.device)).clamp(0, gray.shape[2] - 1)
        column = (left[:, None] + torch.arange(-reach, side + reach, device=gray.device)).clamp(0, gray.shape[3] - 1)
        sample = torch.arange(len(gray), device=gray.device)[:, None, None]
        search = gray[:, time][sample, row[:, :, None], column[:, None]]
        scores = normalized_correlation(search, template)  # [B, 2 * reach + 1, 2 * reach + 1]
        best, place = scores.flatten(1).max(dim=1)
        correlations.append(best)
        top = (top + place // scores.shape[2] - reach).clamp(0, gray.shape[2] - side)
        left = (left + place % scores.shape[2] - reach).clamp(0, gray.shape[3] - side)
    return top, left, torch.stack(correlations).mean(dim=0)


def normalized_correlation(search: Tensor, template: Tensor) -> Tensor:
    """Return the normalized cross-correlation, -1 to 1, of `[B, s, s]` with every square of `[B, S, S]`, `[B, n, n]`."""
    count, side = len(template), template.shape[-1]
    template = template - template.mean(dim=(1, 2), keepdim=True)
    search = search - search.mean(dim=(1, 2), keepdim=True)  # so that squares of it are small
    product = F.conv2d(search[None], template[:, None], groups=count)[0]
    mean, square = (F.avg_pool2d(values[:, None], side, stride=1)[:, 0] for values in (search, search.square()))
    deviation = (square - mean.square()).clamp(min=1e-8).sqrt()
    scale = template.square().mean(dim=(1, 2), keepdim=True).clamp(min=1e-8).sqrt()
    return product / (side**2 * deviation * scale)


def cut_squares(gray: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Return a square of `side` pixels of each `[B, H, W]`, at pixels `[B]`, `[B, side, side]`."""
    offset, sample = torch.arange(side, device=gray.device), torch.arange(len(gray), device=gray.device)[:, None, None]
    return gray[sample, (top[:, None] + offset)[:, :, None], (left[:, None] + offset)[:, None]]
