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
from sslkit.transforms.geometry import random_resized_crop as random_resized_crop
from sslkit.transforms.geometry import right_angles as right_angles

__all__ = [
    "center_view",
    "color_jitter",
    "flip",
    "gaussian_blur",
    "grayscale",
    "random_resized_crop",
    "rgb_to_lab",
    "right_angles",
    "solarize",
]
