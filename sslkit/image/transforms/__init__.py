"""Random image transforms, batched over samples on the device: float [0, 1] in and out.

Every function takes `[B, C, H, W]`, draws one set of values per sample from torch's default generator on the image's
device, and never synchronizes with it.
"""

from sslkit.image.transforms.blur import gaussian_blur
from sslkit.image.transforms.color import color_jitter, grayscale, lab_to_rgb, rgb_to_lab, solarize
from sslkit.image.transforms.edges import sobel
from sslkit.image.transforms.geometry import (
    center_view,
    flip,
    random_crop,
    random_resized_crop,
    random_shrink,
    random_turn,
    resized,
    right_angles,
    tiles,
    tiles_in_cells,
)
from sslkit.image.transforms.masks import (
    as_pixels,
    block_mask,
    grid_mask,
    hidden_count,
    hole_mask,
    normalize_patches,
    patches,
    random_mask,
    split_patches,
    take_patches,
    with_hidden,
    with_patches,
)

__all__ = [
    "as_pixels",
    "block_mask",
    "center_view",
    "color_jitter",
    "flip",
    "gaussian_blur",
    "grayscale",
    "grid_mask",
    "hidden_count",
    "hole_mask",
    "lab_to_rgb",
    "normalize_patches",
    "patches",
    "random_crop",
    "random_mask",
    "random_resized_crop",
    "random_shrink",
    "random_turn",
    "resized",
    "rgb_to_lab",
    "right_angles",
    "sobel",
    "solarize",
    "split_patches",
    "take_patches",
    "tiles",
    "tiles_in_cells",
    "with_hidden",
    "with_patches",
]
