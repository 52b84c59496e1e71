"""Feature maps of any layer of an encoder."""

from dataclasses import dataclass

from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError


@dataclass(frozen=True)
class MapReader:
    """Read the feature maps of one layer: the last, or a number counted from the input."""

    encoder: Encoder
    name: str  # in messages
    layer: str = "last"
    flag: str = "ckpt"  # that names the encoder

    def check(self, command: str) -> None:
        """Raise SslkitError for an encoder that has no feature maps of images."""
        if self.encoder.modality != "image" or "feature_map" not in self.encoder.provides:
            problem = f"{self.name} is an encoder of {self.encoder.modality} data with {', '.join(self.encoder.provides)}"
            raise SslkitError(problem, f"{command} needs feature maps of images", flag=self.flag)

    def __call__(self, image: Tensor) -> Tensor:
        """Return feature maps `[B, D, h, w]` of images `[B, C, S, S]`; raises SslkitError for a layer that there is not."""
        if self.layer == "last":
            return self.encoder.feature_map(image)
        layers = self.encoder.layers(image) if "layers" in self.encoder.provides else []
        if not 1 <= int(self.layer) <= len(layers):
            raise SslkitError(f"{self.name} has {len(layers)} layers (got {self.layer})", flag="layer")
        layer = layers[int(self.layer) - 1]
        if layer.dim() == 3:  # tokens of a square grid, class token and registers first
            places = layer[:, self.encoder.prefix :].transpose(1, 2)
            layer = places.unflatten(2, (round(places.shape[2] ** 0.5), -1))
        return layer
