"""BatchNorm with the statistics of the micro-batches of all processes."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_OPERATIONS = torch.ops._c10d_functional  # those that torch.compile can trace


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over all processes of the default group, followed by the dropout and activation of timm's norms.

    Unlike `torch.nn.SyncBatchNorm` it compiles without a graph break, and it runs on any device.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        """Take over the parameters and buffers of a norm, under the same names."""
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.drop, self.act = getattr(norm, "drop", None), getattr(norm, "act", None)
        self.training = norm.training
        group = dist.group.WORLD
        self.processes, self.rank = (1, 0) if group is None else (group.size(), group.rank())
        self.group_name = "" if group is None else group.group_name

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, `[B, C, ...]`, normalized by channel."""
        if self.training:
            group = self.processes, self.rank, self.group_name
            x, mean, variance, count = _Normalize.apply(x, self.weight, self.bias, self.eps, *group)
            if self.track_running_stats:
                self._track(mean, variance * count / (count - 1))
        else:
            untracked = self.running_mean is None
            x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, untracked, 0.0, self.eps)
        x = x if self.drop is None else self.drop(x)
        return x if self.act is None else self.act(x)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch; without a momentum they are the mean over all batches."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            for buffer, value in ((self.running_mean, mean), (self.running_var, variance)):
                if self.momentum is None:
                    buffer.lerp_(value.to(buffer.dtype), 1 / self.num_batches_tracked.to(buffer.dtype))
                else:
                    buffer.lerp_(value.to(buffer.dtype), self.momentum)


class _Normalize(torch.autograd.Function):
    """Normalize by the mean and variance over all processes; return those and the number of values, too.

    Each process sends its own mean, variance and count, which are combined without cancellation (Chan et al., 1983): a
    difference of the means of squares and the squared mean would lose digits where the mean is large.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, processes: int, rank: int, group: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        variance, mean = torch.var_mean(_wide(x), _other_dims(x), correction=0)
        count = mean.new_full((1,), x.numel() // channels)
        rows = _gather(torch.cat([mean, variance, count]), processes, rank, group)
        means, variances, counts = rows.split([channels, channels, 1], dim=1)
        count = counts.sum()
        mean = (counts * means).sum(dim=0) / count
        variance = (counts * (variances + (means - mean).square())).sum(dim=0) / count
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.group, ctx.biased = group, bias is not None
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        dims, shape = _other_dims(x), (1, -1, *[1] * (x.dim() - 2))
        wide, normalized = _wide(gradient), (_wide(x) - mean.view(shape)) * scale.view(shape)
        sums = torch.stack([wide.sum(dims), (wide * normalized).sum(dims)])
        mean_gradient, mean_product = (_sum(sums, ctx.group) / count).unbind()
        slope = scale if weight is None else scale * weight
        of_x = (wide - mean_gradient.view(shape) - normalized * mean_product.view(shape)) * slope.view(shape)
        # Parameters get the sums of this process: the exchange of gradients averages them like all others.
        return of_x.to(x.dtype), None if weight is None else sums[1], sums[0] if ctx.biased else None, None, None, None, None


def convert_sync_batchnorm(module: nn.Module) -> None:
    """Replace every BatchNorm inside a module; one that is registered in two places, as in a shared encoder, changes once."""
    converted: dict[nn.Module, SyncBatchNorm] = {}
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm):
                if child not in converted:
                    converted[child] = SyncBatchNorm(child)
                parent.add_module(name, converted[child])


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _other_dims(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _gather(row: Tensor, processes: int, rank: int, group: str) -> Tensor:
    """Return the rows of all processes, as a sum of matrices with one row each: gloo has no such gather for CUDA tensors."""
    rows = row.new_zeros(processes, len(row))
    rows[rank] = row
    return _sum(rows, group)


def _sum(values: Tensor, group: str) -> Tensor:
    total: Tensor = _OPERATIONS.wait_tensor(_OPERATIONS.all_reduce(values, "sum", group))
    return total
