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
    images, channels, height, width = image.shape
    distance = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # [N, 2 * radius + 1]
    # Every channel of every image is a group of one convolution: one pass instead of one per pixel of the kernel.
    groups = images * channels
    kernels = kernel.repeat_interleave(channels, dim=0).view(groups, 1, -1)
    planes = F.pad(image.reshape(1, groups, height, width), (0, 0, radius, radius), mode="reflect")
    planes = F.conv2d(planes, kernels[..., None], groups=groups)
    planes = F.pad(planes, (radius, radius, 0, 0), mode="reflect")
    return F.conv2d(planes, kernels[:, :, None], groups=groups).view(image.shape)
