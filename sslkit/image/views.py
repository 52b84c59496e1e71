"""Random views of images: single crops, and the augmented views of contrastive, clustering and joint-embedding tasks."""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.options import Pixels, TaskOptions
from sslkit.contract.task import Batch, DataInfo
from sslkit.image.transforms.blur import gaussian_blur
from sslkit.image.transforms.color import color_jitter, solarize
from sslkit.image.transforms.geometry import random_resized_crop
from sslkit.pictures import side_by_side

Share = Annotated[float, Field(ge=0, le=1)]


CropScale = Annotated[float, Field(gt=0, le=1, description="Smallest area of a random crop, as a fraction of the image.")]


Strength = Annotated[float, Field(ge=0, le=2)]


_MIN_SMALL_SCALE = 0.05  # area of small crops, as a fraction of the image


_SMALL_SIZE = 96 / 224  # relative to the size of large crops, as in SwAV and DINO


class CropOptions(TaskOptions):
    """Option of tasks that crop images at random; a task overrides the default with `crop_scale: CropScale = 0.2`."""

    crop_scale: CropScale = 0.5


class ViewOptions(CropOptions):
    """Options of augmented views: crop, flip, color jitter, gray, blur (Chen et al., 2020, appendix A)."""

    crop_scale: CropScale = 0.2
    color_strength: Strength | Literal["auto"] = Field(
        default="auto", description="Strength of the color jitter, relative to 0.8/0.8/0.8/0.2; auto: 0.5 up to 64 px, else 1."
    )
    gray: Share = Field(default=0.2, description="Probability that a view is converted to gray.")
    blur: Share | Literal["auto"] = Field(
        default="auto", description="Probability of Gaussian blur; auto: 0 up to 64 px, else 0.5."
    )


class UnlikeViewOptions(ViewOptions):
    """Options of two views that differ in blur and solarization (Grill et al., 2020, appendix B)."""

    color_strength: Strength | Literal["auto"] = Field(
        default=0.5, description="Strength of the color jitter, relative to 0.8/0.8/0.8/0.2 (0.4/0.4/0.2/0.1 in the paper)."
    )
    blur: Share | Literal["auto"] = Field(
        default="auto",
        description="Probability of Gaussian blur; auto: 0 up to 64 px, else 1 for first and 0.1 for second views.",
    )
    solarize: Share = Field(default=0.2, description="Probability that a second view is solarized.")


class MultiCropOptions(ViewOptions):
    """Options of multi-crop: large and small crops (Caron et al., 2020, section 3.3)."""

    crops: str = Field(default="2+6", pattern=r"^2\+\d\d?$", description="Large and small crops per image, such as 2+6 or 2+0.")
    small_scale: float = Field(
        default=0.3, gt=0, le=1, description="Largest area of a small crop, as a fraction of the image; the smallest is 0.05."
    )
    small_size: Pixels | Literal["auto"] = Field(
        default="auto", description="Side of a small crop in pixels; auto: 96/224 of the large crops', at least 16."
    )


class Views:
    """Random augmented views of images, with options on `auto` resolved for the data."""

    def __init__(self, options: ViewOptions, data: DataInfo) -> None:
        """Resolve the options; raise SslkitError for channels without hue and for crops of a single pixel."""
        small = data.size <= 64
        self.size, self.scale, self.gray = data.size, (options.crop_scale, 1.0), options.gray
        strength = options.color_strength
        self.strength = (0.5 if small else 1.0) if strength == "auto" else strength
        asymmetric = isinstance(options, UnlikeViewOptions)
        default_blur = (0.0, 0.0) if small else (1.0, 0.1) if asymmetric else (0.5, 0.5)
        self.blur = default_blur if options.blur == "auto" else (options.blur, options.blur)
        self.solarize = (0.0, options.solarize if isinstance(options, UnlikeViewOptions) else 0.0)
        check_hue(data.channels, self.strength)
        check_crop(data.size, options.crop_scale, "crop_scale")

    def __call__(self, batch: Batch, number: int = 0) -> Tensor:
        """Return one view `[B, C, S, S]` of a batch's images, the first (0) or the second (1) where the two differ."""
        return self._augment(batch, self.size, self.scale, number)

    def two(self, batch: Batch) -> Tensor:
        """Return two views, `[B, 2, C, S, S]`."""
        return torch.stack([self(batch, number) for number in range(2)], dim=1)

    def _augment(self, batch: Batch, size: int, scale: tuple[float, float], number: int = 0) -> Tensor:
        view = strong_view(batch, size, scale, self.strength, self.gray, self.blur[number])
        return solarize(view, probability=self.solarize[number]) if self.solarize[number] else view


class Crops(Views):
    """Multi-crop views: large and small crops, of which the encoder processes each size in one pass."""

    def __init__(self, options: MultiCropOptions, data: DataInfo, encoder: Encoder) -> None:
        """Resolve the number of small crops and their size; raise SslkitError for crops of a single pixel."""
        super().__init__(options, data)
        self.small = int(options.crops.partition("+")[2])
        size = max(16, round(_SMALL_SIZE * data.size)) if options.small_size == "auto" else options.small_size
        self.small_size = encoder.nearest_valid_size(size)
        self.small_scale = (min(_MIN_SMALL_SCALE, options.small_scale), options.small_scale)
        check_crop(data.size, options.small_scale, "small_scale")

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """Return two large crops, `image` `[B, 2, C, S, S]`, and the small crops, if any, `small` `[B, V, C, s, s]`."""
        crops = {"image": self.two(batch)}
        if self.small:
            small = [self._augment(batch, self.small_size, self.small_scale) for _ in range(self.small)]
            crops["small"] = torch.stack(small, dim=1)
        return crops

    def features(self, encode: Callable[[Tensor], Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Return the outputs of `encode` for all crops, large ones first, `[B, 2 + V, D]`: one pass per size."""
        sizes = [batch["image"], batch["small"]] if self.small else [batch["image"]]
        return torch.cat([encode(views) for views in sizes], dim=1)

    def pictures(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the crops of each image as columns, `[B, 2 + V, 3, S, S]`."""
        return side_by_side(*batch["image"].unbind(1), *(batch["small"].unbind(1) if self.small else ()))

    def reasons(self) -> dict[str, str]:
        """Return the resolved size of the small crops."""
        return {"crops": f"2+{self.small}, of {self.size} and {self.small_size} px"} if self.small else {}


def check_hue(channels: int, color_strength: float) -> None:
    """Raise SslkitError if the colors of images without hue (not 1 or 3 channels) would be jittered."""
    if channels not in (1, 3) and color_strength:
        raise SslkitError(f"images with {channels} channels have no hue to jitter", "set it to 0", flag="color_strength")


def check_crop(size: int, share: float, flag: str) -> None:
    """Raise SslkitError if a crop of the fraction `share` of an image of `size` pixels is less than two pixels wide."""
    if size * share**0.5 < 2:
        raise SslkitError(
            f"{share:g} of an image of {size} px is a crop of one pixel", f"use at least {4 / size**2:.2g}", flag=flag
        )


def strong_view(
    batch: Batch,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    color_strength: float = 1.0,
    gray: float = 0.2,
    blur: float = 0.5,
) -> Tensor:
    """Return one view of each image, `[B, C, S, S]`: crop, flip, color jitter, gray, blur (Chen et al., 2020, appendix A).

    `batch` has `canvas` `[B, C, H, W]` and `aspect` `[B]`, as a source delivers them. `color_strength` scales the jitter
    0.8/0.8/0.8/0.2; `gray` and `blur` are probabilities.
    """
    image = random_resized_crop(batch["canvas"], size, scale=scale, flipped=0.5, aspect=batch["aspect"])
    strength = 0.8 * color_strength
    image = color_jitter(image, strength, strength, strength, min(0.5, 0.2 * color_strength), gray=gray)
    return gaussian_blur(image, probability=blur)
