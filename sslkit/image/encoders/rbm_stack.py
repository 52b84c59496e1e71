"""Fully connected layers of sigmoid units, as restricted Boltzmann machines learn them (Hinton et al., 2006)."""

import re

import torch
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError

_DEVIATION = 0.01  # of initial weights (Hinton, 2010, section 8)


def rbm_stack(in_channels: int = 3, size: int = 32, widths: str | int = "256") -> "RBMStack":
    """Layers of sigmoid units on all pixels of a small image, such as `widths=500-500-2000`; what `rbm` trains."""
    text = str(widths)
    if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)*", text):
        raise SslkitError(f"widths of rbm_stack should be numbers such as 500-500-2000 (got {text})", flag="encoder_option")
    return RBMStack(in_channels, size, [int(width) for width in text.split("-")])


class RBMStack(Encoder):
    """Compute probabilities of hidden units, layer by layer, from the pixels of images `[B, C, size, size]`.

    Pixels are standardized by `mean` and `scale`, which the task measures; unless it does they are taken as they are.
    """

    provides = ("pooled", "layers", "units")
    mean: Tensor
    scale: Tensor

    def __init__(self, in_channels: int, size: int, widths: list[int]) -> None:
        super().__init__(widths[-1], in_channels)
        self.size, values = size, in_channels * size**2
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("scale", torch.ones(values))
        pairs = list(zip([values, *widths[:-1]], widths, strict=True))
        self.weights = nn.ParameterList(_DEVIATION * torch.randn(below, above) for below, above in pairs)
        self.biases = nn.ParameterList(torch.zeros(above) for _, above in pairs)

    def stages(self) -> list[list[nn.Parameter]]:
        """Return weights and biases of each layer."""
        return [[weight, bias] for weight, bias in zip(self.weights, self.biases, strict=True)]

    def visible(self, image: Tensor) -> Tensor:
        """Return the standardized pixels of images, `[B, values]`; raises SslkitError for images of another size."""
        if image.shape[1:] != (self.in_channels, self.size, self.size):
            shape = "×".join(map(str, image.shape[1:]))
            raise SslkitError(f"rbm_stack was built for {self.in_channels}×{self.size}×{self.size} (got {shape})", flag="size")
        return (image.flatten(1) - self.mean) / self.scale

    def image(self, visible: Tensor) -> Tensor:
        """Return the images of standardized pixels `[B, values]`: the inverse of `visible`."""
        image: Tensor = (visible * self.scale + self.mean).unflatten(1, (self.in_channels, self.size, self.size))
        return image

    def hidden(self, below: Tensor, layer: int, train_weights: bool = True) -> Tensor:
        """Return the probabilities of a layer's units, `[B, width]`, given those of the layer below.

        Without `train_weights`, only biases have a gradient.
        """
        weight = self.weights[layer] if train_weights else self.weights[layer].detach()
        return torch.sigmoid(below @ weight + self.biases[layer])

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return the probabilities of each layer's units, `[B, width]`."""
        outputs, x = [], self.visible(sample)
        for layer in range(len(self.weights)):
            x = self.hidden(x, layer)
            outputs.append(x)
        return outputs

    def forward(self, sample: Tensor) -> Tensor:
        """Return the probabilities of the highest units, `[B, width]`."""
        return self.layers(sample)[-1]
