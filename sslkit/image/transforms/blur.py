"""Gaussian blur of a random subset of the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(image: Tensor, sigma: tuple[float, float] = (0.1, 2.0), probability: float = 0.5) -> Tensor:
    """Blur a fraction of the images `[B, C, H, W]`, each with a sigma (pixels) uniform in the range `sigma`.

    The number of blurred images is `probability * B`, rounded up or down at random so that the rate is right on average: with
    a number known on the host, only the selected images are computed and the device is not synchronized. Borders are
    reflected, as in torchvision; the kernel extends three of the largest sigmas to each side.
    """
    batch, _, height, width = image.shape
    count = int(probability * batch + torch.rand(()).item())
    if count == 0:
        return image
    selected = torch.randperm(batch, device=image.device)[:count]
    sigmas = sigma[0] + (sigma[1] - sigma[0]) * torch.rand(count, device=image.device, dtype=image.dtype)
    radius = min(max(1, round(3 * sigma[1])), height - 1, width - 1)
    blurred = image.clone()
    blurred[selected] = blur(image[selected], sigmas, radius)
    return blurred


def blur(image: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur images `[N, C, H, W]` with one sigma each `[N]` (pixels): columns first, then rows."""
    distance = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # [N, 2 * radius + 1]
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, 0, radius, radius), mode="reflect")
    image = _weighted_sum(kernel, [padded[:, :, i : i + height] for i in range(len(distance))])
    padded = F.pad(image, (radius, radius, 0, 0), mode="reflect")
    return _weighted_sum(kernel, [padded[:, :, :, i : i + width] for i in range(len(distance))])


def _weighted_sum(kernel: Tensor, shifted: list[Tensor]) -> Tensor:
    total = kernel[:, 0, None, None, None] * shifted[0]
    for i, image in enumerate(shifted[1:], start=1):
        total = torch.addcmul(total, kernel[:, i, None, None, None], image)
    return total
