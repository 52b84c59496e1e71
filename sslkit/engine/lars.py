"""LARS, which scales the step of each weight to the size of the weight (You et al., 2017)."""

from typing import Any

import torch
from torch import Tensor

TRUST = 0.001  # relative change of a weight at a learning rate of 1


class Lars(torch.optim.Optimizer):
    """SGD with momentum in which each weight's step has `TRUST` times the weight's norm (You et al., 2017, algorithm 1).

    Weights of more than one dimension are scaled, whatever their weight decay, as in the authors' code of Barlow Twins and
    MoCo v3 (timm's LARS scales only what is decayed); biases and norms take steps of SGD. As with torch's fused
    optimizers, a step changes nothing if the tensor `found_inf` is set to 1.
    """

    found_inf: Tensor | None = None

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step on the parameters that have a gradient."""
        for group in self.param_groups:
            for scaled in (True, False):
                parameters = [p for p in group["params"] if p.grad is not None and (p.dim() > 1) == scaled]
                if parameters:
                    self._update(parameters, group, scaled)

    def _update(self, parameters: list[Tensor], group: dict[str, Any], scaled: bool) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        bad = self.found_inf
        if bad is not None:  # zeros, because what is not finite stays so whatever it is multiplied by
            gradients = [torch.where(bad.bool(), 0, gradient) for gradient in gradients]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        if scaled:
            gradients = list(torch._foreach_mul(gradients, _trust_ratios(parameters, gradients)))
        if bad is not None:
            gradients = list(torch._foreach_mul(gradients, 1 - bad))
        steps = gradients
        if group["momentum"]:
            for parameter in parameters:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            kept: Any = group["momentum"]
            torch._foreach_mul_(buffers, kept if bad is None else kept + (1 - kept) * bad)
            torch._foreach_add_(buffers, gradients)
            steps = list(torch._foreach_add(gradients, buffers, alpha=group["momentum"])) if group["nesterov"] else buffers
        rate = -group["lr"] if bad is None else -group["lr"] * (1 - bad)
        torch._foreach_add_(parameters, torch._foreach_mul(steps, rate))


def _trust_ratios(parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """Return `TRUST` · ‖w‖ / ‖step‖ for each weight; 1 where one of the two is 0."""
    ratios = []
    for weight, step in zip(torch._foreach_norm(parameters), torch._foreach_norm(gradients), strict=True):
        ratios.append(torch.where((weight > 0) & (step > 0), TRUST * weight / step, 1.0))
    return ratios
