"""Our losses against lightly's on random tensors: how far values and gradients are apart at most, in ten draws.

    python benchmarks/losses.py

Needs lightly, from PyPI; fails above 1e-5.
"""

from collections.abc import Callable

import lightly.loss as lightly
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit import DataInfo, PretextTask
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.nn import barlow_twins, info_nce, negative_cosine, nt_xent, sinkhorn, swapped_prediction, vicreg
from sslkit.tasks.load import load_task

IMAGES, VIEWS, WIDTH, PROTOTYPES, QUEUE = 64, 4, 32, 48, 100
Loss = Callable[[Tensor], Tensor]


def main() -> None:
    torch.manual_seed(0)
    print("| loss | ours | lightly | difference | of gradients |\n|---|---|---|---|---|")
    pairs, vectors, scores = both(), (IMAGES, VIEWS, WIDTH), (IMAGES, VIEWS, PROTOTYPES)
    for name, (ours, theirs) in pairs.items():
        apart = [0.0, 0.0]
        for _ in range(10):
            inputs = torch.randn(scores if name in ("DINO", "SwAV") else vectors).tanh()
            (value, gradient), (other, other_gradient) = derived(ours, inputs), derived(theirs, inputs)
            apart[0] = max(apart[0], abs(value - other) / abs(other))
            apart[1] = max(apart[1], float((gradient - other_gradient).abs().max() / other_gradient.abs().max()))
        print(f"| {name} | {value:.6f} | {other:.6f} | {apart[0]:.1e} | {apart[1]:.1e} |")
        assert max(apart) < 1e-5, f"{name} differs"


def derived(loss: Loss, inputs: Tensor) -> tuple[float, Tensor]:
    """Return a loss and its gradient."""
    inputs = inputs.clone().requires_grad_()
    value = loss(inputs).squeeze()
    return float(value.detach()), torch.autograd.grad(value, inputs)[0]


def both() -> dict[str, tuple[Loss, Loss]]:
    """Return each loss, ours and lightly's, of views `[B, V, D]` or scores `[B, V, K]`."""
    queue, center, task = F.normalize(torch.randn(QUEUE, WIDTH), dim=1), torch.randn(PROTOTYPES), msn()

    def our_vicreg(views: Tensor) -> Tensor:
        terms = vicreg(views[:, 0], views[:, 1])
        return 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]

    def our_swav(views: Tensor) -> Tensor:
        codes = [sinkhorn(views[:, view].detach(), 0.05, 3) for view in range(2)]
        return swapped_prediction(views, torch.stack(codes, dim=1), 0.1)

    def with_queue(views: Tensor) -> Tensor:
        loss = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(QUEUE, WIDTH))
        loss.memory_bank.bank = queue.clone()
        loss.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
        return loss(views[:, 0], views[:, 1].detach())  # MoCo's keys have no gradient

    def their_dino(views: Tensor) -> Tensor:
        loss = lightly.DINOLoss(output_dim=PROTOTYPES)
        loss.center.copy_(center)
        return loss(list(views[:, :2].detach().unbind(1)), list(views.unbind(1)))

    return {
        "NT-Xent": (lambda views: nt_xent(views[:, :2], 0.5), lambda views: lightly.NTXentLoss()(views[:, 0], views[:, 1])),
        "InfoNCE with a queue": (
            lambda views: info_nce(unit(views[:, 0]), unit(views[:, 1].detach()), queue, 0.2).mean(),
            with_queue,
        ),
        "Barlow Twins": (
            lambda views: sum(barlow_twins(views[:, 0], views[:, 1], 0.005).values(), views.new_zeros(())),
            lambda views: lightly.BarlowTwinsLoss()(views[:, 0], views[:, 1]),
        ),
        "VICReg": (our_vicreg, lambda views: lightly.VICRegLoss()(views[:, 0], views[:, 1])),
        "DINO": (
            lambda views: swapped_prediction(views, F.softmax((views[:, :2].detach() - center) / 0.04, dim=-1), 0.1),
            their_dino,
        ),
        "SwAV": (our_swav, lambda views: lightly.SwaVLoss()(list(views[:, :2].unbind(1)), list(views[:, 2:].unbind(1)))),
        "MSN": (
            lambda views: sum(task.loss({"anchor": views[:, 1:], "target": views[:, 0]}, {}).values(), views.new_zeros(())),
            lambda views: lightly.MSNLoss()(views[:, 1:].transpose(0, 1).flatten(0, 1), views[:, 0], task.prototypes.weight),
        ),
        "negative cosine": (
            lambda views: negative_cosine(views[:, 0], views[:, 1]),
            lambda views: lightly.NegativeCosineSimilarity()(views[:, 0], views[:, 1]),
        ),
    }


def msn() -> PretextTask:
    """Return the msn task, whose targets are of its own."""
    task, data = load_task("msn"), DataInfo(64, 32)
    recipe = recipe_for("vit_micro", 32, 3, {"width": "32", "depth": "2"})
    return task(task.Options(width=WIDTH, prototypes=PROTOTYPES), RecipeBuilder(recipe, data)(), data)


def unit(vectors: Tensor) -> Tensor:
    """Return vectors of length one."""
    return F.normalize(vectors, dim=1)


if __name__ == "__main__":
    main()
