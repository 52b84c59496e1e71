"""Fusible functions get the same draws whether they are compiled or not; a failed compilation falls back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sslkit import SslkitError
from sslkit.engine.fusion import Fusion, build_fusion
from sslkit.engine.precision import Machine, choose_machine
from sslkit.image.transforms.geometry import _crop_by_pixels
from sslkit.image.views import strong_view
from sslkit.nn.fusion import fusible, fusing
from tests.canvases import canvases


@pytest.fixture(autouse=True)
def no_graphs_left() -> Any:
    yield
    torch._dynamo.reset()


@fusible
def doubled(x: Tensor) -> Tensor:
    return 2 * x


@fusible
def reads(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def test_fusible_functions_go_through_what_fuses() -> None:
    called = []

    def fuse(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        called.append(function.__name__)
        return function

    assert float(doubled(torch.ones(()))) == 2 and not called
    with fusing(fuse):
        assert float(doubled(torch.ones(()))) == 2
    assert called == ["doubled"]
    doubled(torch.ones(()))
    assert called == ["doubled"]


@pytest.mark.slow
def test_compiled_views_are_those_of_the_same_seed() -> None:
    image = torch.rand(4, 3, 20, 20)
    views = []
    fusion = Fusion(required=True)
    for fuse in (None, fusion):
        torch.manual_seed(0)
        with fusing(fuse):
            views.append([strong_view(canvases(image), size) for size in (16, 8)])
        views[-1].append(torch.rand(3))  # the generator is where it was
    assert len(fusion._compiled) == 2
    for eager, compiled in zip(*views, strict=True):
        assert torch.allclose(eager, compiled, atol=1e-5)


@pytest.mark.slow
def test_compiled_taps_equal_eager_ones() -> None:
    image, theta = torch.rand(4, 3, 20, 20), torch.eye(2, 3).expand(4, 2, 3) * 0.9
    for offsets in (None, torch.rand(4, 2) / 20):
        expected = _crop_by_pixels(image, theta, 8, offsets)
        with fusing(Fusion(required=True)):
            assert torch.allclose(_crop_by_pixels(image, theta, 8, offsets), expected, atol=1e-5)


def test_a_failed_compilation_falls_back_or_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with fusing(Fusion()):
        for _ in range(2):
            assert float(reads(torch.tensor(-1.0))) == 1
    assert capsys.readouterr().err.count("off for reads of transform: it cannot be compiled") == 1
    with fusing(Fusion(required=True)), pytest.raises(SslkitError, match="reads of transform cannot be compiled"):
        reads(torch.tensor(-1.0))


def test_only_cuda_fuses() -> None:
    assert build_fusion(choose_machine("cpu", compile="on")) is None
    assert build_fusion(Machine(torch.device("cuda"), None, compile=False)) is None
    assert build_fusion(Machine(torch.device("cuda"), None, compile=True, compile_required=True)).required  # type: ignore[union-attr]
