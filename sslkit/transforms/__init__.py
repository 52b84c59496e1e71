"""Random image transforms, batched over samples on the device: float [0, 1] in and out.

Every function takes `[B, C, H, W]`, draws one set of values per sample from torch's default generator on the image's
device, and never synchronises with it.
"""

from sslkit.transforms.blur import gaussian_blur as gaussian_blur
from sslkit.transforms.color import color_jitter as color_jitter
from sslkit.transforms.color import grayscale as grayscale
from sslkit.transforms.color import lab_to_rgb as lab_to_rgb
from sslkit.transforms.color import rgb_to_lab as rgb_to_lab
from sslkit.transforms.color import solarize as solarize
from sslkit.transforms.edges import sobel as sobel
from sslkit.transforms.geometry import center_view as center_view
from sslkit.transforms.geometry import flip as flip
from sslkit.transforms.geometry import random_crop as random_crop
from sslkit.transforms.geometry import random_resized_crop as random_resized_crop
from sslkit.transforms.geometry import random_shrink as random_shrink
from sslkit.transforms.geometry import random_turn as random_turn
from sslkit.transforms.geometry import resized as resized
from sslkit.transforms.geometry import right_angles as right_angles
from sslkit.transforms.geometry import tiles as tiles
from sslkit.transforms.geometry import tiles_in_cells as tiles_in_cells
from sslkit.transforms.masks import as_pixels as as_pixels
from sslkit.transforms.masks import block_mask as block_mask
from sslkit.transforms.masks import grid_mask as grid_mask
from sslkit.transforms.masks import hidden_count as hidden_count
from sslkit.transforms.masks import hole_mask as hole_mask
from sslkit.transforms.masks import normalised_patches as normalised_patches
from sslkit.transforms.masks import patches as patches
from sslkit.transforms.masks import random_mask as random_mask
from sslkit.transforms.masks import split_patches as split_patches
from sslkit.transforms.masks import take_patches as take_patches
from sslkit.transforms.masks import with_hidden as with_hidden
from sslkit.transforms.masks import with_patches as with_patches
from sslkit.transforms.views import CropOptions as CropOptions
from sslkit.transforms.views import Crops as Crops
from sslkit.transforms.views import UnlikeViewOptions as UnlikeViewOptions
from sslkit.transforms.views import ViewOptions as ViewOptions
from sslkit.transforms.views import Views as Views
from sslkit.transforms.views import check_hue as check_hue
from sslkit.transforms.views import strong_view as strong_view

__all__ = [
    "CropOptions",
    "Crops",
    "UnlikeViewOptions",
    "ViewOptions",
    "Views",
    "as_pixels",
    "block_mask",
    "center_view",
    "check_hue",
    "color_jitter",
    "flip",
    "gaussian_blur",
    "grayscale",
    "grid_mask",
    "hidden_count",
    "hole_mask",
    "lab_to_rgb",
    "normalised_patches",
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
    "strong_view",
    "take_patches",
    "tiles",
    "tiles_in_cells",
    "with_hidden",
    "with_patches",
]
