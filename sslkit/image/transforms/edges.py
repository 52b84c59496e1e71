"""Edge filters."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.image.transforms.color import grayscale


def sobel(image: Tensor) -> Tensor:
    """Return the horizontal and vertical Sobel gradient of the luma of images `[B, C, H, W]`: `[B, 2, H, W]`, in about ±1."""
    gray = F.pad(grayscale(image, probability=1.0)[:, :1], (1, 1, 1, 1), mode="replicate")
    across, down = gray[..., 2:] - gray[..., :-2], gray[..., 2:, :] - gray[..., :-2, :]
    across = (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 4
    down = (down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]) / 4
    return torch.cat([across, down], dim=1)
