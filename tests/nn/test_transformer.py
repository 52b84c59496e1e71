"""Which kernel attends, and that both agree."""

import pytest
import torch
from torch.profiler import profile

from sslkit import build_encoder
from sslkit.nn import Attention

FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


def kernels_of(module: torch.nn.Module, *inputs: torch.Tensor, half: bool) -> set[str]:
    with profile() as profiler, torch.autocast("cpu", torch.bfloat16, enabled=half):
        module(*inputs)
    return {event.key for event in profiler.key_averages()}


@pytest.mark.parametrize(("tokens", "half", "fused"), [(16, True, False), (16, False, True), (300, True, True)])
def test_few_tokens_attend_by_products_in_half_precision_on_a_cpu(tokens: int, half: bool, fused: bool) -> None:
    attention, x = Attention(32, 2), torch.randn(2, tokens, 32)
    assert (FUSED in kernels_of(attention, x, x, half=half)) == fused


def test_the_same_of_timm_and_with_recomputation() -> None:
    torch.manual_seed(0)
    encoder, image = build_encoder("vit_micro", size=32).eval(), torch.rand(4, 3, 32, 32)
    assert FUSED not in kernels_of(encoder, image, half=True)
    exact = encoder(image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.nn.functional.cosine_similarity(encoder(image), exact).min() > 0.999
        encoder.checkpoint_activations()
        encoder(image).sum().backward()  # forward and recomputation use one kernel, or torch would refuse
    assert all(parameter.grad is not None for parameter in encoder.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("causal", [True, False])
def test_both_kernels_have_the_same_gradients(causal: bool) -> None:
    torch.manual_seed(0)
    attention, x = Attention(32, 2), torch.randn(2, 16, 32)
    attention(x, x, causal).square().sum().backward()
    exact = [parameter.grad.clone() for parameter in attention.parameters() if parameter.grad is not None]
    attention.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = attention(x, x, causal)
    output.float().square().sum().backward()
    for parameter, reference in zip(attention.parameters(), exact, strict=True):
        assert parameter.grad is not None
        assert torch.nn.functional.cosine_similarity(parameter.grad.flatten(), reference.flatten(), dim=0) > 0.995
