"""Adversarial training in one backward pass; the output size of decoders."""

import copy

import pytest
import torch
from torch import nn

from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.image.decoders import ConvDecoder, map_size
from sslkit.nn import with_frozen_weights


def test_gradients_are_those_of_two_passes() -> None:
    generator, critic = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    other_generator, other_critic = copy.deepcopy(generator), copy.deepcopy(critic)
    noise, real = torch.randn(6, 3), torch.randn(6, 4)

    fake = generator(noise)
    frozen_scores, scores = with_frozen_weights(critic)(fake), critic(fake.detach())
    (frozen_scores.mean() + scores.square().mean() - critic(real).mean()).backward()

    other_critic(other_generator(noise)).mean().backward()
    expected = [parameter.grad.clone() for parameter in other_generator.parameters() if parameter.grad is not None]
    other_critic.zero_grad()
    (other_critic(other_generator(noise).detach()).square().mean() - other_critic(real).mean()).backward()
    assert all(torch.allclose(p.grad, q) for p, q in zip(generator.parameters(), expected, strict=True))
    for parameter, reference in zip(critic.parameters(), other_critic.parameters(), strict=True):
        assert torch.allclose(parameter.grad, reference.grad, atol=1e-6)


def test_frozen_critic_returns_the_critics_scores() -> None:
    critic, image = nn.Linear(3, 1), torch.randn(2, 3, requires_grad=True)
    assert torch.equal(with_frozen_weights(critic)(image), critic(image))


@pytest.mark.parametrize(("grid", "side"), [((4, 4), 32), ((7, 7), 224), ((6, 6), 100), ((8, 8), 8)])
def test_decoder_reaches_the_size(grid: tuple[int, int], side: int) -> None:
    for norm in ("batch", "layer", "none"):
        assert ConvDecoder(16, grid, side, 3, norm)(torch.randn(2, 16, *grid)).shape == (2, 3, side, side)


def test_size_of_the_feature_map() -> None:
    encoder = build_encoder(recipe_for("resnet_micro", 32, options={"width": "8"})).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert map_size(encoder, torch.zeros(1, 3, 32, 32)) == (4, 4)
    assert encoder.training and all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
