"""Losses, each once, in float32 whatever the networks run in."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(projection: Tensor, temperature: float, at_once: int = 2**21) -> Tensor:
    """Return the normalised temperature-scaled cross-entropy of two views `[B, 2, D]` (Chen et al., 2020, eq. 1).

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


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE per query `[B]`: the key of `[B, D]` is the right answer among it and `negatives` `[K, D]`.

    All are unit vectors (He et al., 2020, equation 1).
    """
    positive = (query * key).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, query @ negatives.T], dim=1) / temperature
    return -F.log_softmax(logits, dim=1)[:, 0]


def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of the codes of some views against what all other views say.

    `scores` `[B, V, K]` of all views, `codes` `[B, A, K]` of the first A of them (Caron et al., 2020, equations 1 and 2,
    and section 3.2 for more than two views).
    """
    said = F.log_softmax(scores / temperature, dim=-1)
    each = -torch.einsum("bak,bvk->av", codes, said) / len(scores)
    others = ~torch.eye(codes.shape[1], scores.shape[1], dtype=torch.bool, device=scores.device)
    return each[others].mean()
