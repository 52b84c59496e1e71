"""Where brightness changes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.image.transforms.color import grayscale


def sobel(image: Tensor) -> Tensor:
    """Return how fast the gray of each image `[B, C, H, W]` rises to the right and down, `[B, 2, H, W]`, in about ±1."""
    gray = F.pad(grayscale(image, probability=1.0)[:, :1], (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=image.device, dtype=image.dtype) / 4
    return F.conv2d(gray, torch.stack([across, across.T])[:, None])
