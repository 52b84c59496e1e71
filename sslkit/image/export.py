"""Exports of image encoders: state dicts under timm's and torchvision's names."""

import json
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save_file
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.contract.exporter import DESCRIPTION, Exporter, ExportJob, Settings
from sslkit.encoders.recipe import encoder_name
from sslkit.image.encoders.base import ImageEncoder
from sslkit.image.encoders.torchvision import CLASSIFIERS


class _StateDict(Exporter):
    """State dict of a library's model."""

    reader = Path(__file__).with_name("read_state_dict.py")
    modalities = ("image",)
    library: ClassVar[str]

    def loading(self, name: str, settings: Settings, output: str) -> list[str]:
        """Return lines that need torch, safetensors and the library."""
        return [
            f"import {self.library}, torch, safetensors.torch",
            *self.building(settings),
            f'model.load_state_dict(safetensors.torch.load_file("{name}"))',
            normalizing_line(settings),
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
        if recipe["options"].get("distilled"):
            problem = f"the features of {recipe['name']} with distilled=true are two tokens, those of {self.library} their mean"
            raise SslkitError(problem, "use --to pt2 or onnx", flag="to")
        if recipe["options"].get("norm") == "group":  # by which sslkit replaces BatchNorm
            problem = f"{recipe['name']} was trained with norm=group, which {self.library} does not have"
            raise SslkitError(problem, "use --to pt2 or onnx", flag="to")
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
        self.timm_encoder(job)

    def write(self, job: ExportJob, samples: Any, path: Path) -> Settings:
        """Write the weights and, as timm names it, the classifier."""
        encoder, model = self.timm_encoder(job)
        _save(job, model.state_dict() | classifier_state(job, model), path)
        return {
            "library": self.library,
            "name": job.recipe["name"],
            "options": model_options(job, encoder),
            **normalization(encoder),
        }

    def building(self, settings: Settings) -> list[str]:
        """Return the lines that build `model`."""
        return [f'model = timm.create_model("{settings["name"]}"{_keywords(settings)}).eval()']

    def timm_encoder(self, job: ExportJob) -> tuple[ImageEncoder, Any]:
        """Return the encoder and timm's model inside; raises SslkitError if it is another one, or was changed."""
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
        _save(job, model.state_dict() | _named_classifier(job, f"{attribute}.{len(kept)}"), path)
        return {
            "library": self.library,
            "name": str(job.recipe["name"]).removeprefix("torchvision:"),
            "options": job.recipe["options"],
            "classifier": attribute,
            "kept": [type(part).__name__ for part in kept],
            "width": encoder.width,
            "classes": len(job.classes),
            **normalization(encoder),
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


def model_options(job: ExportJob, encoder: ImageEncoder) -> Settings:
    """Return the arguments with which `timm.create_model` builds the encoder's model, its classifier included."""
    options: Settings = {"num_classes": len(job.classes), "in_chans": job.recipe["in_channels"], **job.recipe["options"]}
    if "tokens" in encoder.provides:
        options["dynamic_img_size"] = True  # any image size, as in pretraining
    return options


def classifier_state(job: ExportJob, model: Any) -> dict[str, Tensor]:
    """Return the classifier's weights, if there is one, by timm's names."""
    return _named_classifier(job, str(model.pretrained_cfg.get("classifier", "")))


def normalization(encoder: ImageEncoder) -> Settings:
    """Return mean and standard deviation by channel, each as the shortest decimal number that float32 reads back as it."""
    return {name: [float(str(value)) for value in getattr(encoder, name).flatten().numpy()] for name in ("mean", "std")}


def normalizing_line(settings: Settings) -> str:
    """Return the line of Python that normalizes `image`."""
    mean, std = (f"torch.tensor({settings[statistic]}).view(-1, 1, 1)" for statistic in ("mean", "std"))
    return f"image = (image - {mean}) / {std}"


def _named_classifier(job: ExportJob, name: str) -> dict[str, Tensor]:
    classifier = job.network.classifier
    return {} if classifier is None else {f"{name}.{key}": value for key, value in classifier.state_dict().items()}


def _save(job: ExportJob, state: dict[str, Tensor], path: Path) -> None:
    """Write a model's weights, and the description of the file."""
    contiguous = {name: value.contiguous() for name, value in state.items()}
    save_file(contiguous, path, {"format": "pt", DESCRIPTION: json.dumps(job.description)})


def _keywords(settings: Settings) -> str:
    """Return the options of a model as further arguments of a call."""
    return "".join(f", {option}={value!r}" for option, value in settings["options"].items())
