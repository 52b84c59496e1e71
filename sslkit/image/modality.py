"""What the machinery asks of images."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import UnreadableSampleError
from sslkit.contract.modality import Augmentation, InputGuide, Modality
from sslkit.contract.options import DataOptions
from sslkit.contract.source import Source
from sslkit.contract.task import Batch, DataInfo
from sslkit.image.augmentation import ImageAugmentation
from sslkit.image.baselines import RawPixels
from sslkit.image.copies import COPIES_FROM, detail_correlation, gray_thumbnails
from sslkit.image.decode import read_canvas
from sslkit.image.encoders.select import Select, count_selected
from sslkit.image.input_guide import input_guide
from sslkit.image.options import ImageOptions
from sslkit.image.source import SIZES, ImageSource
from sslkit.image.transforms import center_view, random_resized_crop


class ImageModality(Modality):
    """Images `[B, C, H, W]`, floats in [0, 1]."""

    options: ClassVar[type[DataOptions]] = ImageOptions
    source: ClassVar[type[Source]] = ImageSource
    encoder_channels: ClassVar = 3
    sizes: ClassVar = SIZES
    small_size: ClassVar = 64
    copies_from: ClassVar = COPIES_FROM
    small_options: ClassVar = {
        "resnet_micro": {"width": "16"},
        "vit_micro": {"width": "32", "depth": "2"},
        "convvit_micro": {"width": "32", "depth": "1", "heads": "1"},
        "igpt": {"width": "32", "depth": "2", "heads": "1"},
        "rbm_stack": {"widths": "32"},
        "sparse_patches": {"atoms": "16"},
    }
    suggestions: ClassVar = {
        "tokens": "vit_micro or timm's vit_*",
        "palette": "igpt",
        "units": "rbm_stack",
        "atoms": "sparse_patches",
        "masked_convolutions": "convvit_micro",
        "feature_map": "resnet_micro",
        "layers": "resnet_micro",
    }

    def default_encoder(self, info: DataInfo, requires: tuple[str, ...], on_cpu: bool) -> tuple[str, str]:
        """Return one that trains on a CPU, or the usual one on a GPU; with tokens where the task requires them."""
        tokens = "tokens" in requires
        tail = ", has tokens" if tokens else ""
        if info.size <= 64 or on_cpu:
            reason = "images up to 64 px" if info.size <= 64 else "trains on a CPU"
            return "vit_micro" if tokens else "resnet_micro", reason + tail
        return "vit_small_patch16_224" if tokens else "resnet50", f"the usual one on a GPU{tail}"

    def small_encoder(self, requires: tuple[str, ...], exact: bool) -> str:
        """Return `resnet_micro`, or `vit_micro` where tokens are required or BatchNorm is unwanted."""
        return "vit_micro" if exact or "tokens" in requires else "resnet_micro"

    def count_selected(self, selection: str, channels: int) -> int:
        """Return the number of channels: of lightness, color, gray or edges of RGB images, or of a range such as `0-2`."""
        return count_selected(selection, channels)

    def select(self, selection: str, channels: int, encoder: Encoder) -> Encoder:
        """Return an encoder that sees lightness, color, gray, edges or a range of channels."""
        return Select(selection, channels, encoder)

    def health_samples(self, source: Source, batch: Batch, encoder: Encoder) -> Batch:
        """Keep the canvases, from which views are cropped."""
        return batch

    def health_views(self, samples: Batch, info: DataInfo) -> tuple[Tensor, Tensor]:
        """Return two random crops of the same images."""
        canvas, aspect = samples["canvas"], samples["aspect"]
        first, second = (random_resized_crop(canvas, info.size, (0.2, 1.0), flipped=0.5, aspect=aspect) for _ in range(2))
        return first, second

    def original(self, batch: Batch, info: DataInfo) -> Tensor | None:
        """Return the center of each image."""
        return center_view(batch["canvas"], info.size, batch["aspect"])

    def thumbnail(self, source: Source, row: int) -> Image.Image | None:
        """Return the middle of an image."""
        assert isinstance(source, ImageSource)
        try:
            canvas = read_canvas(source.index, row, replace(source.canvases.form, geometry="center")).canvas
        except UnreadableSampleError:
            return None
        if canvas.dtype == np.uint16:
            canvas = (canvas >> 8).astype(np.uint8)
        return Image.fromarray(canvas if canvas.shape[2] == 3 else canvas[..., 0])

    def content(self, batch: Batch) -> Tensor:
        """Return gray images of 32 px, uint8 `[B, 32, 32]`."""
        return gray_thumbnails(batch["canvas"])

    def likeness(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the correlation of details, `[P]`."""
        return detail_correlation(first, second)

    def baseline(self, encoder: Encoder, channels: int, size: int, detail: int) -> tuple[str, Encoder] | None:
        """Return the pixels themselves."""
        raw = RawPixels(channels, size, detail)
        return f"raw pixels, {raw.side} px", raw

    def augmentation(self, options: Any, info: DataInfo, classes: int) -> Augmentation:
        """Return random crops, flips, and what the options of `sslkit finetune` add."""
        return ImageAugmentation(options, info.size)

    def input_guide(
        self, encoder: Encoder, size: int, options: DataOptions, sample_details: Mapping[str, Any]
    ) -> InputGuide | None:
        """Return how a picture is resized, cut and scaled, and code that does it."""
        assert isinstance(options, ImageOptions)
        short = sample_details.get("short_side")
        return input_guide(encoder.in_channels, size, options.range, short if isinstance(short, int) and short > 0 else None)

    def example_inputs(self, count: int, channels: int, size: int) -> tuple[Tensor, str]:
        """Return handwritten digits."""
        from sklearn.datasets import load_digits

        images = torch.from_numpy(load_digits().images[:count] / 16).float()[:, None]
        resized = torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear")
        return resized.repeat(1, channels, 1, 1), "handwritten digits"
