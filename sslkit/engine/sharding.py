"""`--shard`: each process keeps a part of the encoders' weights, gradients and optimizer state (FSDP2).

What is not part of an encoder, such as heads and the parameters of losses, is small, and every process has all of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp import register_fsdp_forward_method as register_forward_method

from sslkit.contract.encoder import Encoder
from sslkit.engine.compilation import find_blocks
from sslkit.engine.precision import Machine

_METHODS = ("tokens", "feature_map", "layers", "pool", "attention", "keys", "code_layers")  # of encoders, besides forward


class ShardedEncoders:
    """The encoders of a task, of which each process keeps a part; their blocks are put together one at a time to compute."""

    def __init__(self, task: nn.Module, machine: Machine) -> None:
        """Divide the weights of all encoders inside a task, those of teachers too."""
        mesh = init_device_mesh(machine.device.type, (machine.world.size,))
        self._roots = [module for module in task.modules() if isinstance(module, Encoder) and not _holds_encoder(module)]
        for root in self._roots:
            for parameter in root.parameters():
                parameter.data = parameter.data.contiguous()  # FSDP takes no other memory format
            # Freed after the forward pass, roots included: an average of a teacher's weights and the student's needs both
            # in parts.
            # The stem stays with the root: it is small, and its output is often a view, which FSDP cannot watch.
            stem = set(root.stages()[0])
            blocks = [block for block in find_blocks(root) if stem.isdisjoint(block.parameters())]
            for block in [*blocks, root]:
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
            _Depth(root).register()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep all weights whole inside, so that each process may compute what it likes, without gradients."""
        modules = [module for root in self._roots for module in root.modules() if isinstance(module, FSDPModule)]
        for module in modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in modules:
                module.reshard()
                module.set_reshard_after_forward(True, recurse=False)


class _Depth:
    """Gather the weights that an encoder has outside of its blocks when one of its methods is called from outside.

    `forward` may call `tokens`; the inner call must not free the weights that the outer one still needs.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.calls = encoder, 0

    def register(self) -> None:
        """Make each public method of the encoder that computes something behave like `forward`."""
        self.encoder.forward = _without_views(self.encoder.forward)  # type: ignore[method-assign]
        for name in _METHODS:
            inner = getattr(self.encoder, name, None)
            if inner is not None:
                setattr(self.encoder, name, _without_views(inner))
                register_forward_method(self.encoder, name)
                setattr(self.encoder, name, self._outermost(getattr(self.encoder, name), inner))
        self.encoder.register_forward_pre_hook(lambda *_: self._add(1))
        self.encoder.register_forward_hook(lambda *_: self._add(-1), always_call=True)

    def _add(self, calls: int) -> None:
        self.calls += calls

    def _outermost(self, outer: Callable[..., Any], inner: Callable[..., Any]) -> Callable[..., Any]:
        def method(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            try:
                return (outer if self.calls == 1 else inner)(*arguments, **options)
            finally:
                self.calls -= 1

        return method


def _without_views(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method whose output is no view: FSDP waits for the gradient of the very tensor that is returned."""

    def copied(output: Any) -> Any:
        if isinstance(output, list):
            return [copied(inner) for inner in output]
        return output.clone() if isinstance(output, Tensor) and output._is_view() else output

    return lambda *arguments, **options: copied(method(*arguments, **options))


def _holds_encoder(module: nn.Module) -> bool:
    return any(isinstance(part, Encoder) for part in module.modules() if part is not module)
