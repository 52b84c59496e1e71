"""Random image transforms, batched over samples on the device: float [0, 1] in and out.

Every function takes `[B, C, H, W]`, samples one set of parameters per image from torch's default generator on the image's
device, and never synchronizes host and device.
"""

from sslkit.image.transforms.blur import gaussian_blur
from sslkit.image.transforms.color import color_jitter, grayscale, lab_to_rgb, rgb_to_lab, solarize
from sslkit.image.transforms.edges import sobel
from sslkit.image.transforms.geometry import (
    CropBox,
    center_view,
    crop,
    crop_boxes,
    crop_mask,
    cut_tiles,
    cut_tiles_in_cells,
    flip,
    random_box,
    random_crop,
    random_downscale,
    random_resized_crop,
    random_rotation,
    resize,
    right_angle_rotations,
)
from sslkit.image.transforms.masks import (
    block_mask,
    denormalize_patches,
    gray_out_patches,
    grid_mask,
    hole_mask,
    masked_patch_count,
    normalize_patches,
    patchify,
    preview_masked,
    random_mask,
    replace_patches,
    split_patches,
    take_patches,
)
from sslkit.image.transforms.randaugment import erase, rand_augment

__all__ = [
    "CropBox",
    "block_mask",
    "center_view",
    "color_jitter",
    "crop",
    "crop_boxes",
    "crop_mask",
    "cut_tiles",
    "cut_tiles_in_cells",
    "denormalize_patches",
    "erase",
    "flip",
    "gaussian_blur",
    "gray_out_patches",
    "grayscale",
    "grid_mask",
    "hole_mask",
    "lab_to_rgb",
    "masked_patch_count",
    "normalize_patches",
    "patchify",
    "preview_masked",
    "rand_augment",
    "random_box",
    "random_crop",
    "random_downscale",
    "random_mask",
    "random_resized_crop",
    "random_rotation",
    "replace_patches",
    "resize",
    "rgb_to_lab",
    "right_angle_rotations",
    "sobel",
    "solarize",
    "split_patches",
    "take_patches",
]
