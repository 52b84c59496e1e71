"""Convolutional layers with probabilistic max-pooling, as convolutional RBMs learn them (Lee et al., 2009)."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError

_DEVIATION = 0.01  # of initial weights
_MOST_BASES, _LARGEST = 65_536, 256
_RADIUS = 4  # pixels around each, whose mean is subtracted


def conv_rbm_stack(
    in_channels: int = 3, size: int = 32, bases: str | int = "24", kernel: int = 7, pool: int = 2
) -> "ConvRBMStack":
    """Filters of 7×7 whose units compete in blocks of 2×2, such as `bases=24-100` for two layers; what `conv_rbm` trains."""
    text = str(bases)
    if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)*", text):
        raise SslkitError(f"bases of conv_rbm_stack should be numbers such as 24-100 (got {text})", flag="encoder_option")
    if any(int(number) > _MOST_BASES for number in text.split("-")):
        raise SslkitError(f"conv_rbm_stack has {_MOST_BASES:,} bases at most (got {text})", flag="encoder_option")
    if type(kernel) is not int or type(pool) is not int or not (2 <= kernel <= _LARGEST and 1 <= pool <= _LARGEST):
        problem = (
            f"kernel and pool of conv_rbm_stack should be whole numbers, from 2 and 1 to {_LARGEST} (got {kernel}, {pool})"
        )
        raise SslkitError(problem, flag="encoder_option")
    encoder = ConvRBMStack(in_channels, [int(number) for number in text.split("-")], kernel, pool)
    encoder.check_size(size)
    return encoder


class ConvRBMStack(Encoder):
    """Compute pooled probabilities of hidden units, layer by layer, from images `[B, C, H, W]`.

    The mean of its neighborhood is subtracted from each pixel, which whitens roughly, and what is left is divided by `scale`,
    which the task measures.
    """

    provides = ("pooled", "feature_map", "layers", "competing_units")
    scale: Tensor

    def __init__(self, in_channels: int, bases: list[int], kernel: int, pool: int) -> None:
        super().__init__(4 * bases[-1], in_channels)
        self.kernel, self.pool_side = kernel, pool
        self.register_buffer("scale", torch.ones(1))  # no scalar: it decides the precision
        pairs = list(zip([in_channels, *bases[:-1]], bases, strict=True))
        self.weights = nn.ParameterList(_DEVIATION * torch.randn(above, below, kernel, kernel) for below, above in pairs)
        self.biases = nn.ParameterList(torch.zeros(above) for _, above in pairs)

    def check_size(self, side: int) -> None:
        """Raise SslkitError for images that are too small for all layers."""
        smallest = side
        for _ in self.weights:
            smallest = (smallest - self.kernel + 1) // self.pool_side
        if smallest < 2 or side <= _RADIUS:
            problem = f"{side} px are too few for {len(self.weights)} layers of {self.kernel}×{self.kernel} filters"
            raise SslkitError(problem, "use larger images or a smaller kernel", flag="size")

    def stages(self) -> list[list[nn.Parameter]]:
        """Return weights and biases of each layer."""
        return [[weight, bias] for weight, bias in zip(self.weights, self.biases, strict=True)]

    def visible(self, image: Tensor) -> Tensor:
        """Return standardized differences of pixels to their neighborhood, `[B, C, H, W]`."""
        padded = F.pad(image, (_RADIUS,) * 4, mode="reflect")
        standardized: Tensor = (image - F.avg_pool2d(padded, 2 * _RADIUS + 1, stride=1)) / self.scale
        return standardized

    def blocks(self, below: Tensor, layer: int, train_weights: bool = True) -> Tensor:
        """Return the input of a layer's units, `[B, K, h, w, P * P]`: those of a block of P × P compete.

        Rows and columns that fill no block have no units. Without `train_weights`, only biases have a gradient.
        """
        weight = self.weights[layer] if train_weights else self.weights[layer].detach()
        total = F.conv2d(below, weight, self.biases[layer])
        side = self.pool_side
        rows, columns = (length // side for length in total.shape[2:])
        total = total[:, :, : rows * side, : columns * side]
        cells: Tensor = total.unflatten(2, (rows, side)).unflatten(4, (columns, side)).transpose(3, 4).flatten(4)
        return cells

    def hidden(self, below: Tensor, layer: int, train_weights: bool = True) -> Tensor:
        """Return the probability of each unit, `[B, K, h, w, P * P]`: of those of a block one is on, or none (section 3.3)."""
        cells = self.blocks(below, layer, train_weights)
        return torch.cat([cells, torch.zeros_like(cells[..., :1])], dim=4).softmax(dim=4)[..., :-1]

    def down(self, hidden: Tensor, layer: int, shape: torch.Size) -> Tensor:
        """Return the input that hidden units `[B, K, h, w, P * P]` have on the layer below, of a shape `[B, C, H, W]`."""
        side = self.pool_side
        units = hidden.unflatten(4, (side, side)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
        total = F.conv_transpose2d(units, self.weights[layer])
        return F.pad(total, (0, shape[3] - total.shape[3], 0, shape[2] - total.shape[2]))

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return the probability that any unit of a block is on, for each layer, `[B, K, h, w]`."""
        outputs, x = [], self.visible(sample)
        for layer in range(len(self.weights)):
            x = self.hidden(x, layer).sum(dim=4)
            outputs.append(x)
        return outputs

    def feature_map(self, image: Tensor) -> Tensor:
        """Return those of the highest layer."""
        return self.layers(image)[-1]

    def forward(self, sample: Tensor) -> Tensor:
        """Return features `[B, width]`: means over the quadrants."""
        return F.adaptive_avg_pool2d(self.feature_map(sample), 2).flatten(1)
