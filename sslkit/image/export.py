"""Exports of image encoders: state dicts under timm's and torchvision's names, and how a picture becomes their input."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors.torch import save_file
from torch import nn

from sslkit.contract.errors import SslkitError
from sslkit.contract.exporter import Exporter, ExportJob, Settings
from sslkit.encoders.recipe import encoder_name
from sslkit.image.encoders.base import ImageEncoder
from sslkit.image.encoders.torchvision import CLASSIFIERS
from sslkit.image.source import SMALL, choose_canvas
from sslkit.image.transforms.geometry import middle_side

_COLORS, _MODES = {1: "gray", 3: "RGB"}, {1: "L", 3: "RGB"}  # by channels; Pillow's modes
_NORMALIZE = "image = (image - torch.tensor({mean}).view(-1, 1, 1)) / torch.tensor({std}).view(-1, 1, 1)"


class _StateDict(Exporter):
    """State dict of a library's model."""

    reader = Path(__file__).with_name("read_state_dict.py")
    modalities = ("image",)
    library: ClassVar[str]

    def loading(self, name: str, settings: Settings, output: str) -> list[str]:
        """Return lines that need torch, safetensors and the library."""
        mean, std = ([round(value, 4) for value in settings[statistic]] for statistic in ("mean", "std"))
        return [
            f"import {self.library}, torch, safetensors.torch",
            *self.building(settings),
            f'model.load_state_dict(safetensors.torch.load_file("{name}"))',
            _NORMALIZE.format(mean=mean, std=std),
            f"{output} = model(image)",
        ]

    def building(self, settings: Settings) -> list[str]:
        """Return the lines that build `model`."""
        raise TypeError(f"{type(self).__name__} does not define building()")

    def image_encoder(self, job: ExportJob, from_library: bool) -> tuple[ImageEncoder, Any]:
        """Return the encoder and the library's model inside; raises SslkitError if it is another one, or was changed."""
        encoder, recipe = job.network.encoder, job.recipe
        if not isinstance(encoder, ImageEncoder) or not from_library:
            raise SslkitError(f"{encoder_name(recipe)} is not a {self.library} model", "use --to pt2 or onnx", flag="to")
        model: Any = encoder.model
        # For small images the stem's max-pooling is left out, which no published model does.
        if recipe["stem"] == "small" and isinstance(getattr(model, "maxpool", None), nn.Identity):
            raise SslkitError(
                f"{recipe['name']} was trained with the small stem, which {self.library} does not have",
                "use --to pt2 or onnx, or pretrain above 64 px",
                flag="to",
            )
        return encoder, model


class Timm(_StateDict):
    """State dict that `timm.create_model(NAME, num_classes=...)` loads strictly; expects normalized images."""

    suffix = ".timm.safetensors"
    library = "timm"

    def check(self, job: ExportJob) -> None:
        """Raise SslkitError for an encoder that is not timm's."""
        self._encoder(job)

    def write(self, job: ExportJob, samples: Any, path: Path) -> Settings:
        """Write the weights and, as timm names it, the classifier."""
        encoder, model = self._encoder(job)
        options: Settings = {"num_classes": len(job.classes), "in_chans": job.recipe["in_channels"], **job.recipe["options"]}
        if "tokens" in encoder.provides:
            options["dynamic_img_size"] = True  # any image size, as in pretraining
        _save(job, model, str(model.pretrained_cfg.get("classifier", "")), path)
        return {"library": self.library, "name": job.recipe["name"], "options": options, **_normalization(encoder)}

    def building(self, settings: Settings) -> list[str]:
        """Return the lines that build `model`."""
        return [f'model = timm.create_model("{settings["name"]}"{_keywords(settings)}).eval()']

    def _encoder(self, job: ExportJob) -> tuple[ImageEncoder, Any]:
        return self.image_encoder(job, job.metadata.get("encoder_from", "").startswith("timm "))


class Torchvision(_StateDict):
    """State dict of torchvision's model, its classifier removed or replaced; expects normalized images."""

    suffix = ".torchvision.safetensors"
    library = "torchvision"

    def check(self, job: ExportJob) -> None:
        """Raise SslkitError for an encoder that is not torchvision's."""
        self._encoder(job)

    def write(self, job: ExportJob, samples: Any, path: Path) -> Settings:
        """Write the weights and, after what torchvision has before its classifier, the classifier."""
        encoder, model = self._encoder(job)
        attribute = next(name for name in CLASSIFIERS if hasattr(model, name))
        kept = getattr(model, attribute)  # norms and flattens before the classifier, which belong to the features
        _save(job, model, f"{attribute}.{len(kept)}", path)
        return {
            "library": self.library,
            "name": str(job.recipe["name"]).removeprefix("torchvision:"),
            "options": job.recipe["options"],
            "classifier": attribute,
            "kept": [type(part).__name__ for part in kept],
            "width": encoder.width,
            "classes": len(job.classes),
            **_normalization(encoder),
        }

    def building(self, settings: Settings) -> list[str]:
        """Return the lines that build `model`."""
        attribute, kept = settings["classifier"], tuple(settings["kept"])
        parts = f"*(part for part in model.{attribute}.children() if type(part).__name__ in {kept})"
        last = f", torch.nn.Linear({settings['width']}, {settings['classes']})" if settings["classes"] else ""
        return [
            f'model = torchvision.models.get_model("{settings["name"]}"{_keywords(settings)}).eval()',
            f"model.{attribute} = torch.nn.Sequential({parts}{last})",
        ]

    def _encoder(self, job: ExportJob) -> tuple[ImageEncoder, Any]:
        return self.image_encoder(job, str(job.recipe.get("name", "")).startswith("torchvision:"))


def _save(job: ExportJob, model: nn.Module, classifier: str, path: Path) -> None:
    """Write a model's weights, with the classifier's under the name that the library has for it."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if job.network.classifier is not None:
        state |= {f"{classifier}.{name}": value for name, value in job.network.classifier.state_dict().items()}
    save_file(state, path)


def _normalization(encoder: ImageEncoder) -> Settings:
    return {"mean": encoder.mean.flatten().tolist(), "std": encoder.std.flatten().tolist()}


def _keywords(settings: Settings) -> str:
    """Return the options of a model as further arguments of a call."""
    return "".join(f", {option}={value!r}" for option, value in settings["options"].items())


def input_guide(channels: int, size: int, value_range: str) -> list[str]:
    """Return in Markdown how evaluations make the input of `size` pixels of a picture; for 8 bits also in code."""
    resized, whole = (choose_canvas(size, np.array([[side, side]]), "center")[0] for side in (100 * size, SMALL))
    middle = middle_side(resized, size)
    low, comma, high = value_range.partition(",")
    scaling = "divided by 255"
    if comma:
        scaling = f"scaled so that {low} becomes 0 and {high} becomes 1, and cut off beyond (of 8 bits: divided by 255)"
    limit = f"below {resized}" if resized > whole else f"of at most {whole}"
    guide = [
        f"Upright (EXIF), {_COLORS.get(channels, f'{channels} channels')}, transparency on white. The middle square is resized"
        f" to {resized} × {resized} px, bilinear with antialiasing, which brings the short side to {resized} px; of that the"
        f" middle {middle} × {middle} px are cut out. Values are {scaling}: floats in [0, 1].",
        "",
        f"A picture with a short side {limit} px is not resized first: the middle 7/8 of its square, but at least {size} px"
        f" where it has them, is brought to {size} × {size} px in the same way. `sslkit` decides by the median short side of"
        " a set of pictures.",
    ]
    if channels not in _COLORS:
        return guide
    return [
        *guide,
        "",
        "```python",
        "import numpy",
        "from PIL import Image, ImageOps",
        "",
        'picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGBA")  # of 8 bits',
        'white = Image.new("RGBA", picture.size, "white")',
        f'picture = Image.alpha_composite(white, picture).convert("{_MODES[channels]}")',
        "short = min(picture.size)",
        "left, top = (picture.width - short) / 2, (picture.height - short) / 2",
        f"side = short if short <= {whole} else min(short, {resized})",
        f"middle = min(side, max({size}, round(side * 7 / 8)))",
        "start = (side - middle) // 2",
        "picture = picture.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + short, top + short))",
        "picture = picture.crop((start, start, start + middle, start + middle))",
        f"picture = picture.resize(({size}, {size}), Image.Resampling.BILINEAR)",
        f"image = numpy.asarray(picture, numpy.float32).reshape(1, {size}, {size}, {channels}).transpose(0, 3, 1, 2) / 255",
        "# float32 [1, C, H, W]; for torch: image = torch.from_numpy(image)",
        "```",
    ]
