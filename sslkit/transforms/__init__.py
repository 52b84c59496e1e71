"""Random image transforms, batched over samples on the device: float [0, 1] in and out.

Every function takes `[B, C, H, W]`, draws one set of values per sample from torch's default generator on the image's
device, and never synchronises with it.
"""

from sslkit.transforms.blur import gaussian_blur as gaussian_blur
from sslkit.transforms.color import color_jitter as color_jitter
from sslkit.transforms.color import grayscale as grayscale
from sslkit.transforms.color import rgb_to_lab as rgb_to_lab
from sslkit.transforms.color import solarize as solarize
from sslkit.transforms.geometry import center_view as center_view
from sslkit.transforms.geometry import flip as flip
from sslkit.transforms.geometry import random_crop as random_crop
from sslkit.transforms.geometry import random_resized_crop as random_resized_crop
from sslkit.transforms.geometry import right_angles as right_angles
from sslkit.transforms.masks import block_mask as block_mask
from sslkit.transforms.masks import grid_mask as grid_mask
from sslkit.transforms.masks import patches as patches
from sslkit.transforms.masks import random_mask as random_mask
from sslkit.transforms.masks import split_patches as split_patches

__all__ = [
    "block_mask",
    "center_view",
    "color_jitter",
    "flip",
    "gaussian_blur",
    "grayscale",
    "grid_mask",
    "patches",
    "random_crop",
    "random_mask",
    "random_resized_crop",
    "rgb_to_lab",
    "right_angles",
    "solarize",
    "split_patches",
]
