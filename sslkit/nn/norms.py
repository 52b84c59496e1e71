"""Normalization layers of a network: eval mode, BatchNorm by the current batch, GroupNorm instead of BatchNorm."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode and restore its previous mode at the end."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalize by the current batch without updating its running statistics.

    Before the first step those are still mean 0 and variance 1.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, (training, tracked) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracked


_CHANNELS = 16  # of a group: the best of seven numbers in Wu & He, 2018, table 3


def replace_batch_norm(network: nn.Module) -> int:
    """Replace every BatchNorm by a GroupNorm of 16 channels a group, in place, and return how many there were.

    Scales and shifts are kept (some are 0 on purpose), and so are activations that timm puts into the same module.
    """
    replaced = 0
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if isinstance(module, _BatchNorm):
                setattr(parent, name, _group_norm(module))
                replaced += 1
    return replaced


def _group_norm(norm: _BatchNorm) -> nn.Module:
    channels = norm.num_features
    groups = next(groups for groups in range(max(1, channels // _CHANNELS), 0, -1) if channels % groups == 0)
    group_norm = nn.GroupNorm(groups, channels, norm.eps, norm.affine)
    if norm.affine:
        group_norm.load_state_dict({"weight": norm.weight, "bias": norm.bias})
    rest = [module for module in norm.children() if not isinstance(module, nn.Identity)]
    return nn.Sequential(group_norm, *rest) if rest else group_norm
