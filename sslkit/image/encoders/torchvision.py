"""torchvision models as encoders: `torchvision:resnet18`."""

from typing import Any, ClassVar

import torchvision
from torch import nn

from sslkit.contract.encoder import Encoder, EncoderLibrary
from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.image.encoders.base import WrappedEncoder
from sslkit.image.encoders.timm import small_stem

CLASSIFIERS = ("fc", "head", "heads", "classifier")  # attribute names of the classifier in torchvision models


class TorchvisionLibrary(EncoderLibrary):
    """torchvision's classification models."""

    modality: ClassVar = "image"

    def names(self) -> list[str]:
        """Return the names of all architectures."""
        return list(torchvision.models.list_models(module=torchvision.models))

    def build(
        self, name: str, in_channels: int, size: int, stem: str = "standard", pretrained: bool = False, **options: Any
    ) -> Encoder:
        """Build a torchvision classifier and take its last layer off."""
        return torchvision_encoder(name, in_channels, size, stem, pretrained, **options)

    def version(self) -> str:
        """Return torchvision's version."""
        return f"torchvision {torchvision.__version__}"


def torchvision_encoder(
    name: str, in_channels: int, size: int, stem: str = "standard", pretrained: bool = False, **options: Any
) -> Encoder:
    """Build a torchvision model without the last layer of its classifier."""
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise SslkitError(f"torchvision has no model {name}", did_you_mean(name, names), flag="encoder")
    if in_channels != 3:
        raise SslkitError(
            f"torchvision:{name} takes 3 channels, but the data has {in_channels}", "use a timm model", flag="encoder"
        )
    model = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    if stem == "small":
        small_stem(model, in_channels)
    # The features are as wide as the input of the classifier's first linear layer.
    for attribute in CLASSIFIERS:
        if hasattr(model, attribute):
            last = [layer for layer in getattr(model, attribute).modules() if isinstance(layer, nn.Linear)]
            if last:
                return _without_classifier(model, attribute, last[0].in_features)
    raise SslkitError(f"torchvision:{name} has no classifier to remove", "use a classification model", flag="encoder")


def _without_classifier(model: nn.Module, attribute: str, width: int) -> Encoder:
    # ConvNeXt's classifier starts with a norm and a flatten that belong to the features.
    layers = [layer for layer in getattr(model, attribute).children() if not isinstance(layer, nn.Linear | nn.Dropout)]
    feature_layers = [layer for layer in layers if isinstance(layer, nn.Flatten) or "Norm" in type(layer).__name__]
    setattr(model, attribute, nn.Sequential(*feature_layers))
    return WrappedEncoder(model, width, in_channels=3)
