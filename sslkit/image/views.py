"""Random views of images: single crops, and the augmented views of contrastive, clustering and joint-embedding tasks."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
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


Jitter = tuple[float, float, float, float]  # of brightness, contrast, saturation and hue


_SMALL = 64  # pixels up to which images are augmented as CIFAR-10 is by Chen et al., 2020, appendix B.9


_PHOTO_SOLARIZE = 0.2


_UNIT_JITTER: Jitter = (0.8, 0.8, 0.8, 0.2)


def _check_jitter(value: float | str) -> float | str:
    values = _numbers(value)
    if isinstance(value, str) and value != "auto" and (len(values) != 4 or max(values) > 2 or values[3] > 0.5):
        raise ValueError("should be a number from 0 to 2, or four as 0.4/0.4/0.2/0.1 with the last at most 0.5, or auto")
    return value


def _check_rates(value: float | str) -> float | str:
    values = _numbers(value)
    if isinstance(value, str) and value != "auto" and (len(values) not in (2, 3) or max(values) > 1):
        raise ValueError("should be a number from 0 to 1, or two or three as 1/0.1/0.5, or auto")
    return value


def _numbers(value: float | str) -> list[float]:
    """Return the numbers between slashes; none for any other text."""
    if not isinstance(value, str):
        return [float(value)]
    words = value.split("/")
    return [float(word) for word in words] if all(re.fullmatch(r"\d*\.?\d+", word) for word in words) else []


# Left to right: a number in text stays a number, and only what is none is checked as text.
ColorStrength = Annotated[Strength | str, Field(union_mode="left_to_right"), AfterValidator(_check_jitter)]


Blur = Annotated[Share | str, Field(union_mode="left_to_right"), AfterValidator(_check_rates)]


def _auto_text(small: str, photo: str) -> str:
    """Return what `auto` means for small images and others, as the end of an option's description."""
    return f"auto: {small}." if small == photo else f"auto: {small} up to {_SMALL} px, else {photo}."


def color_strength_field(photo: str) -> Any:
    """Return the option `color_strength`, whose `auto` is `photo` for images above 64 px."""
    return Field(
        default="auto",
        description="Color jitter: a factor of 0.8/0.8/0.8/0.2 (brightness/contrast/saturation/hue), or four such values; "
        + _auto_text("0.5", photo),
    )


def blur_field(photo: str) -> Any:
    """Return the option `blur`, whose `auto` is `photo` for images above 64 px."""
    return Field(
        default="auto",
        description="Probability of Gaussian blur, or those of first/second or first/second/small views; "
        + _auto_text("0", photo),
    )


_MIN_SMALL_SCALE = 0.05  # area of small crops, as a fraction of the image


_SMALL_SIZE = 96 / 224  # relative to the size of large crops, as in SwAV and DINO


class CropOptions(TaskOptions):
    """Option of tasks that crop images at random; a task overrides the default with `crop_scale: CropScale = 0.2`."""

    crop_scale: CropScale = 0.5


class ViewOptions(CropOptions):
    """Options of augmented views: crop, flip, color jitter, gray, blur (Chen et al., 2020, appendix A).

    A task whose authors augment otherwise overrides `photo_jitter` or `photo_blur`, and the option that names it.
    """

    photo_jitter: ClassVar[str] = "1"  # what `auto` is above 64 px, as on the command line
    photo_blur: ClassVar[str] = "0.5"
    crop_scale: CropScale = 0.2
    color_strength: ColorStrength = color_strength_field(photo_jitter)
    gray: Share = Field(default=0.2, description="Probability that a view is converted to gray.")
    blur: Blur = blur_field(photo_blur)


class UnlikeViewOptions(ViewOptions):
    """Options of two views that differ in blur and solarization (Grill et al., 2020, appendix B)."""

    photo_jitter: ClassVar[str] = "0.4/0.4/0.2/0.1"
    photo_blur: ClassVar[str] = "1/0.1"
    color_strength: ColorStrength = color_strength_field(photo_jitter)
    blur: Blur = blur_field(photo_blur)
    solarize: Share | Literal["auto"] = Field(
        default=0.2, description="Probability that a second view is solarized; auto: 0 up to 64 px, else 0.2."
    )


class MultiCropOptions(ViewOptions):
    """Options of multi-crop: large and small crops (Caron et al., 2020, section 3.3)."""

    crops: str = Field(default="2+6", pattern=r"^2\+\d\d?$", description="Large and small crops per image, such as 2+6 or 2+0.")
    small_scale: float = Field(
        default=0.3, gt=0, le=1, description="Largest area of a small crop, as a fraction of the image; the smallest is 0.05."
    )
    small_size: Pixels | Literal["auto"] = Field(
        default="auto", description="Side of a small crop in pixels; auto: 96/224 of the large crops', at least 16."
    )


_SMALL_VIEW = 2  # after the first and the second


class Views:
    """Random augmented views of images, with options on `auto` resolved for the data.

    First, second and small views may differ in `blur` and `solarize`, which are probabilities.
    """

    def __init__(self, options: ViewOptions, data: DataInfo) -> None:
        """Resolve the options; raise SslkitError for channels without hue and for crops of a single pixel."""
        small = data.size <= _SMALL
        self.size, self.scale, self.gray = data.size, (options.crop_scale, 1.0), options.gray
        strength = ("0.5" if small else options.photo_jitter) if options.color_strength == "auto" else options.color_strength
        blur = ("0" if small else options.photo_blur) if options.blur == "auto" else options.blur
        self.jitter = _jitter(strength)
        self.blur = _of_each_view(blur)
        solarize = options.solarize if isinstance(options, UnlikeViewOptions) else 0.0
        self.solarize = (0.0, (0.0 if small else _PHOTO_SOLARIZE) if solarize == "auto" else solarize, 0.0)
        check_hue(data.channels, max(self.jitter[2:]))
        check_crop(data.size, options.crop_scale, "crop_scale")

    def __call__(self, batch: Batch, number: int = 0) -> Tensor:
        """Return one view `[B, C, S, S]` of a batch's images, the first (0) or the second (1) where the two differ."""
        return self._augment(batch, self.size, self.scale, number)

    def two(self, batch: Batch) -> Tensor:
        """Return two views, `[B, 2, C, S, S]`."""
        return torch.stack([self(batch, number) for number in range(2)], dim=1)

    def _augment(self, batch: Batch, size: int, scale: tuple[float, float], number: int = 0) -> Tensor:
        view = strong_view(batch, size, scale, self.jitter, self.gray, self.blur[number])
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
            small = [self._augment(batch, self.small_size, self.small_scale, _SMALL_VIEW) for _ in range(self.small)]
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


def _jitter(strength: float | str) -> Jitter:
    """Return the jitter of an option's value: a factor, or four values."""
    values = _numbers(strength)
    if len(values) == 4:
        return values[0], values[1], values[2], values[3]
    brightness, contrast, saturation, hue = (values[0] * unit for unit in _UNIT_JITTER)
    return brightness, contrast, saturation, min(0.5, hue)


def _of_each_view(rate: float | str) -> tuple[float, float, float]:
    """Return the rates of first, second and small views; those that an option's value does not name have the last one."""
    values = _numbers(rate)
    first, second, small = values + values[-1:] * (3 - len(values))
    return first, second, small


def check_hue(channels: int, color_strength: float) -> None:
    """Raise SslkitError if saturation or hue of images that have none (not 1 or 3 channels) would be jittered."""
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
    jitter: Jitter = _UNIT_JITTER,
    gray: float = 0.2,
    blur: float = 0.5,
) -> Tensor:
    """Return one view of each image, `[B, C, S, S]`: crop, flip, color jitter, gray, blur (Chen et al., 2020, appendix A).

    `batch` has `canvas` `[B, C, H, W]` and `aspect` `[B]`, as a source delivers them. `jitter` is of brightness, contrast,
    saturation and hue; `gray` and `blur` are probabilities.
    """
    image = random_resized_crop(batch["canvas"], size, scale=scale, flipped=0.5, aspect=batch["aspect"])
    image = color_jitter(image, *jitter, gray=gray)
    return gaussian_blur(image, probability=blur)
