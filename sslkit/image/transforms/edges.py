"""Edge filters."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.image.transforms.color import grayscale


def sobel(image: Tensor) -> Tensor:
    """Return the horizontal and vertical Sobel gradient of the luma of images `[B, C, H, W]`: `[B, 2, H, W]`, in about ±1."""
    gray = F.pad(grayscale(image, probability=1.0)[:, :1], (1, 1, 1, 1), mode="replicate")
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=image.device, dtype=image.dtype) / 4
    return F.conv2d(gray, torch.stack([kernel, kernel.T])[:, None])
