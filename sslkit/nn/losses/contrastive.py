"""Contrastive losses, in float32 whatever the networks run in."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(projection: Tensor, temperature: float, at_once: int = 2**21) -> Tensor:
    """Return the normalized temperature-scaled cross-entropy of two views `[B, 2, D]` (Chen et al., 2020, eq. 1).

    Each of the 2B vectors has its partner as the right answer among the 2B - 1 others; the mean over all is returned.
    Of more than `at_once` similarities so many are there at a time: memory grows with B, not with its square.
    """
    vectors = F.normalize(projection.to(torch.promote_types(projection.dtype, torch.float32)), dim=-1)
    vectors = vectors.transpose(0, 1).flatten(0, 1)  # first views, then second
    rows = max(1, at_once // len(vectors))
    if rows >= len(vectors):
        return _nt_xent_rows(vectors, 0, rows, temperature).mean()
    loss: Tensor = _PieceByPiece.apply(vectors, rows, temperature)
    return loss


class _PieceByPiece(torch.autograd.Function):
    """Take NT-Xent of some vectors after the others, and the gradient of each piece with it."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, rows: int, temperature: float) -> Tensor:
        loss = vectors.new_zeros(())
        leaf = vectors.detach().requires_grad_(ctx.needs_input_grad[0])
        with torch.set_grad_enabled(leaf.requires_grad):
            for start in range(0, len(vectors), rows):
                piece = _nt_xent_rows(leaf, start, rows, temperature).sum() / len(vectors)
                if leaf.requires_grad:
                    piece.backward()
                loss += piece.detach()
        if leaf.grad is not None:
            ctx.save_for_backward(leaf.grad)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None, None]:
        (saved,) = ctx.saved_tensors
        return gradient[0] * saved, None, None


def _nt_xent_rows(vectors: Tensor, start: int, rows: int, temperature: float) -> Tensor:
    """Return the loss of some of the unit vectors `[2B, D]` against all."""
    asked = torch.arange(start, min(start + rows, len(vectors)), device=vectors.device)
    similarity = vectors[asked] @ vectors.T / temperature
    similarity = similarity.masked_fill(asked[:, None] == torch.arange(len(vectors), device=vectors.device), float("-inf"))
    return F.cross_entropy(similarity, (asked + len(vectors) // 2) % len(vectors), reduction="none")


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float, same: Tensor | None = None) -> Tensor:
    """Return InfoNCE per query `[B]`: the key of `[B, D]` is the right answer among it and `negatives` `[K, D]`.

    (He et al., 2020, equation 1.) Negatives that are a query's own key, bool `same` `[B, K]`, do not count.
    """
    others = query @ negatives.T
    if same is not None:
        others = others.masked_fill(same, float("-inf"))
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), others], dim=1) / temperature
    return -F.log_softmax(logits, dim=1)[:, 0]


def matched_pairs(scores: Tensor, same: Tensor | None = None) -> Tensor:
    """Return the mean of the cross-entropies over rows and over columns of scores `[B, B]`, whose diagonal is right.

    (Radford et al., 2021, figure 3.) What is right as well, bool `same` `[B, B]`, does not count.
    """
    if same is not None:
        scores = scores.masked_fill(same, float("-inf"))
    own = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def matched_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE per query `[B]`: of the keys of all, `[B, D]`, its own is the right answer.

    All are unit vectors (Chen et al., 2021, algorithm 1).
    """
    return F.cross_entropy(query @ key.T / temperature, torch.arange(len(query), device=query.device), reduction="none")


def noise_contrastive(key: Tensor, noise: Tensor, expected: float) -> Tensor:
    """Return noise-contrastive estimation per query `[B]` from scores of its key `[B]` and of noise `[B, K]`.

    Scores are similarities over the temperature; `expected` is the logarithm of what the sum of exponentials over K samples
    would be, so that a key is told from noise by the odds exp(score - expected) (Wu et al., 2018, equations 4 to 8). Noise
    of score -inf does not count.
    """
    return -F.logsigmoid(key - expected) - F.logsigmoid(expected - noise).sum(dim=1)


def margin_loss(first: Tensor, second: Tensor, margin: float) -> dict[str, Tensor]:
    """Return what pulls pairs together and what pushes others apart, of views `[B, D]` (Hadsell et al., 2006, equation 4).

    `same` is the mean of d²/2 over pairs, `other` that of max(0, margin - d)²/2 over first views and other samples' second.
    """
    square = (first.square().sum(dim=1)[:, None] + second.square().sum(dim=1) - 2 * first @ second.T).clamp(min=1e-12)
    others = ~torch.eye(len(first), dtype=torch.bool, device=first.device)
    return {"same": square.diagonal().mean() / 2, "other": F.relu(margin - square.sqrt())[others].square().mean() / 2}


def jensen_shannon(scores: Tensor, same: Tensor) -> Tensor:
    """Return minus the Jensen-Shannon bound on information, of scores `[N, M]` and which pairs belong together, bool.

    The mean over those of softplus(-score), and that over all others of softplus(score) (Hjelm et al., 2019, equation 4).
    """
    return F.softplus(-scores[same]).mean() + F.softplus(scores[~same]).mean()
