"""BatchNorm over two processes is BatchNorm over the whole batch in one."""

import copy
from typing import Any

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from sslkit.engine.parallel import World
from sslkit.nn.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm
from tests.processes import run_in_two

ROWS = 5  # of which the first process has three


def norms() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    made = {
        "images": nn.BatchNorm2d(4),
        "vectors": nn.BatchNorm1d(4, momentum=None),
        "plain": nn.BatchNorm1d(4, affine=False),
        "untracked": nn.BatchNorm2d(4, track_running_stats=False),
        "activated": BatchNormAct2d(4, act_layer=nn.SiLU),
    }
    for norm in made.values():
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    return {name: nn.Sequential(norm).double() for name, norm in made.items()}


def sample(name: str, rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (rows, 4, 3, 2) if name in ("images", "untracked", "activated") else (rows, 4)
    return 10 + torch.rand(shape, dtype=torch.float64, generator=generator)


def trained(network: nn.Module, x: Tensor, times: int = 2) -> dict[str, Tensor]:
    """Return output, gradients and buffers after some batches; the loss weighs each value differently."""
    x = x.clone().requires_grad_()
    for _ in range(times):
        network.zero_grad()
        x.grad = None
        output = network(x)
        weights = torch.cos(7 * output.detach())
        (output * weights).sum().backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in network.named_parameters()}
    assert x.grad is not None
    return {"output": output.detach(), "x": x.grad, **gradients, **dict(network.named_buffers())}


def of_each(world: World) -> dict[str, Any]:
    traces = {}
    for name, network in norms().items():
        convert_sync_batchnorm(network)
        assert isinstance(network[0], SyncBatchNorm)
        x = sample(name)
        traces[name] = trained(network, x[:3] if world.first else x[3:])
    return {"traces": traces, "variance": of_large_means(world), "structure": structure_is_kept(world)}


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return run_in_two(of_each)


@pytest.mark.slow
def test_two_processes_normalize_like_one(results: list[dict[str, Any]]) -> None:
    first, second = (result["traces"] for result in results)
    for name, network in norms().items():
        alone = trained(network, sample(name))
        for key, expected in alone.items():
            of_rows, of_parameters = key in ("output", "x"), key.startswith("gradient")
            parts = [first[name][key], second[name][key]]
            actual = torch.cat(parts) if of_rows else sum(parts) if of_parameters else parts[0]
            scale = expected.abs().max().clamp(min=1e-3)
            assert float((actual - expected).abs().max() / scale) < 1e-12, (name, key)
            assert of_rows or of_parameters or torch.equal(*parts)


def of_large_means(world: World) -> Tensor:
    """Return the running variance of float32 vectors whose mean is 10⁴ times their deviation."""
    network = nn.Sequential(nn.BatchNorm1d(2, momentum=None))
    convert_sync_batchnorm(network)
    x = 1e4 + torch.rand(64, 2, generator=torch.Generator().manual_seed(world.rank))
    network(x)
    variance = network[0].running_var
    assert isinstance(variance, Tensor)
    return variance


def structure_is_kept(world: World) -> bool:
    norm = nn.BatchNorm1d(2)
    network = nn.Sequential(norm, nn.Sequential(norm), nn.BatchNorm1d(2))
    before = network.state_dict()
    convert_sync_batchnorm(network)
    after = network.state_dict()
    inner = network.get_submodule("1.0")
    kept = before.keys() == after.keys() and all(before[name].data_ptr() == after[name].data_ptr() for name in before)
    return kept and network[0] is inner and network[0] is not network[2]


def test_a_large_mean_does_not_hide_the_variance(results: list[dict[str, Any]]) -> None:
    values = torch.cat([1e4 + torch.rand(64, 2, generator=torch.Generator().manual_seed(rank)) for rank in range(2)])
    expected = values.double().var(dim=0)
    assert torch.allclose(results[0]["variance"].double(), expected, rtol=1e-3)


def test_parameters_and_buffers_keep_their_names(results: list[dict[str, Any]]) -> None:
    assert all(result["structure"] for result in results)


def compiled(world: World) -> list[float]:
    """Return the differences of a compiled network from an eager one, with two sizes of micro-batch."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), BatchNormAct2d(4)).double()
    convert_sync_batchnorm(network)
    eager = copy.deepcopy(network)
    network.forward = torch.compile(network.forward, fullgraph=True)
    differences = []
    for rows in (4, 3):
        x = torch.rand(rows, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(world.rank))
        expected, actual = trained(eager, x), trained(network, x)
        differences.append(max(float((expected[key] - actual[key]).abs().max()) for key in expected))
    return differences


@pytest.mark.slow
def test_it_compiles_as_one_graph() -> None:
    assert max(run_in_two(compiled)[0]) < 1e-11
