"""How a picture becomes the input of an exported encoder: as evaluations do it, in words, in plain values and in code."""

from typing import Any

import numpy as np

from sslkit.contract.modality import InputGuide, Snippet
from sslkit.image.source import SMALL, choose_canvas
from sslkit.image.transforms.geometry import middle_side

_COLORS, _MODES = {1: "gray", 3: "RGB"}, {1: "L", 3: "RGB"}  # by channels; Pillow's modes


def input_guide(channels: int, size: int, value_range: str, short_side: int | None) -> InputGuide:
    """Return how a picture becomes the input `[1, channels, size, size]` of an encoder.

    `short_side` is the median in pixels of the pictures that it was trained on; None: large above 64 px, else `size`.
    """
    large, short = 100 * size, short_side or (100 * size if size > SMALL else size)
    resize, limit = (choose_canvas(size, np.array([[side, side]]), "center")[0] for side in (short, large))
    crop = middle_side(resize, size)
    low, comma, high = value_range.partition(",")
    facts: dict[str, Any] = {
        "channels": channels,
        **({"color": _COLORS[channels]} if channels in _COLORS else {}),
        "resize": resize,
        "crop": crop,
        "size": size,
        "interpolation": "bilinear",
        "antialias": True,
        "crop_position": "center",
        "range": [0.0, 1.0],
        **({"black_and_white": [float(low), float(high)]} if comma else {}),
        "orientation": "EXIF applied",
        "background": "white",
        "layout": "[batch, channels, height, width]",
        "dtype": "float32",
    }
    scaled = f" and resized to {size} × {size} px in the same way" if crop != size else ""
    values = "divided by 255"
    if comma:
        values = f"scaled so that {low} becomes 0 and {high} becomes 1, and cut off beyond (of 8 bits: divided by 255)"
    text = [
        f"- **Size**: the short side is resized to {resize} px (bilinear, antialiased), and the middle {crop} × {crop} px are"
        f" cut out{scaled}.",
        f"- **Color**: {_COLORS.get(channels, f'{channels} channels')}, upright (EXIF), transparency on white.",
        f"- **Values**: {values}: float32 in [0, 1], `[batch, {channels}, {size}, {size}]`.",
    ]
    if resize == limit:
        note = f"`sslkit embed` does the same for pictures whose median short side is at least {limit} px; smaller ones"
    else:
        note = f"Those are the sizes for pictures with a short side of {resize} px, the median in training; others"
    text += ["", f"{note} are resized to the median of their set."]
    if comma:
        text += ["", "There is no code here: Pillow would cut these values off at 255 where it converts a picture."]
    summary = f"short side to {resize} px, middle {crop} px" + (f", to {size} px" if scaled else "") + ", values in [0, 1]"
    snippets = _snippets(channels, resize, crop, size) if channels in _COLORS and not comma else []
    return InputGuide(facts, summary, text, snippets)


def _snippets(channels: int, resize: int, crop: int, size: int) -> list[Snippet]:
    """Return the code for pictures of 8 bits, by Pillow and by torchvision."""
    mode, start = _MODES[channels], (resize - crop) // 2
    geometry = [  # torchvision's crops begin at whole pixels: half a pixel makes cosines of 0.998
        "",
        'picture = Image.open("picture.jpg")',
        f'picture.draft("{mode}", ({resize}, {resize}))  # a large JPEG is decoded at a fraction of its size',
        'picture = ImageOps.exif_transpose(picture).convert("RGBA")',
        f'picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("{mode}")',
        "short = min(picture.size)",
        "left, top = (picture.width - short) / 2, (picture.height - short) / 2",
        "box = (left, top, left + short, top + short)",
        f"picture = picture.resize(({resize}, {resize}), Image.Resampling.BILINEAR, box=box)",
        f"picture = picture.crop(({start}, {start}, {start + crop}, {start + crop}))",
        *([f"picture = picture.resize(({size}, {size}), Image.Resampling.BILINEAR)"] if crop != size else []),
    ]
    axes, shape = "[None, None]" if channels == 1 else ".transpose(2, 0, 1)[None]", f"# [1, {channels}, {size}, {size}]"
    pillow = [
        "import numpy",
        "from PIL import Image, ImageOps",
        *geometry,
        f"image = numpy.asarray(picture, numpy.float32){axes} / 255  {shape}",
    ]
    torchvision = [
        "import torch",
        "from PIL import Image, ImageOps",
        "from torchvision.transforms import v2",
        *geometry,
        "to_image = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])",
        f"image = to_image(picture)[None]  {shape}",
    ]
    return [Snippet("Pillow and NumPy", pillow, False), Snippet("Pillow and torchvision", torchvision, True)]
