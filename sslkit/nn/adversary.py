"""Adversarial training of two networks in one backward pass."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call


def critic_layers(channels: int, width: int) -> list[nn.Module]:
    """Return strided convolutions from images to `16 * width` values, without norms, which would mix samples."""
    layers: list[nn.Module] = []
    for outer in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(channels, outer, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = outer
    return [*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten()]


def with_frozen_weights(critic: nn.Module) -> Callable[..., Tensor]:
    """Return the critic as a function that passes gradients to its inputs but not to its weights.

    `with_frozen_weights(critic)(fake)` trains the generator of `fake`, `critic(fake.detach())` trains the critic: neither a
    second optimizer nor a second backward pass is needed.
    """
    constants = {name: value.detach() for name, value in (*critic.named_parameters(), *critic.named_buffers())}

    def apply_critic(*inputs: Tensor) -> Tensor:
        scores: Tensor = functional_call(critic, constants, inputs)
        return scores

    return apply_critic
