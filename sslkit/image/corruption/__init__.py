"""The fifteen corruptions of Hendrycks & Dietterich (2019), made from any images at five severities.

Settings are those of the paper's sets: of CIFAR-10-C up to 96 px, of ImageNet-C above; lengths grow with the side. The pictures
are drawn alike, but are not the published ones, which other libraries made.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.image.corruption import blur, digital, noise, weather
from sslkit.image.corruption.level import Draws, Level

Corruption = Callable[[Tensor, Level, Draws], Tensor]  # images [B, C, S, S] in [0, 1] -> the same, perhaps out of range

FAMILIES: dict[str, dict[str, Corruption]] = {
    "noise": {
        "gaussian_noise": noise.gaussian_noise,
        "shot_noise": noise.shot_noise,
        "impulse_noise": noise.impulse_noise,
    },
    "blur": {
        "defocus_blur": blur.defocus_blur,
        "glass_blur": blur.glass_blur,
        "motion_blur": blur.motion_blur,
        "zoom_blur": blur.zoom_blur,
    },
    "weather": {"snow": weather.snow, "frost": weather.frost, "fog": weather.fog, "brightness": weather.brightness},
    "digital": {
        "contrast": digital.contrast,
        "elastic": digital.elastic,
        "pixelate": digital.pixelate,
        "jpeg": digital.jpeg,
    },
}
CORRUPTIONS = {name: corruption for family in FAMILIES.values() for name, corruption in family.items()}
SEVERITIES = (1, 2, 3, 4, 5)


def choose_corruptions(chosen: list[str]) -> list[str]:
    """Return the corruptions of `--corruption`, default all, in the paper's order; raises SslkitError for an unknown one."""
    for name in chosen:
        if name not in CORRUPTIONS:
            raise SslkitError(f"{name} is no corruption, {did_you_mean(name, list(CORRUPTIONS))}", flag="corruption")
    return [name for name in CORRUPTIONS if name in chosen or not chosen]


@torch.no_grad()
def corrupt(images: Tensor, name: str, severity: int, rows: list[int], seed: int = 0) -> Tensor:
    """Return corrupted images, `[B, C, S, S]` in [0, 1], in steps of 1/255 as a file has them.

    What is random depends on the seed, the corruption, its severity and the row of each image alone: not on the device, and
    not on the other images.
    """
    draws = Draws(seed, name, severity, rows, images.device)
    changed = CORRUPTIONS[name](images.float(), Level(severity, images.shape[-1]), draws)
    return (255 * changed.clamp(0, 1)).round() / 255
