"""Contrastive losses."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.nn.precision import widen


def nt_xent(projection: Tensor, temperature: float, max_similarities: int = 2**21) -> Tensor:
    """Return the normalized temperature-scaled cross-entropy of two views `[B, 2, D]` (Chen et al., 2020, equation 1).

    Each of the 2B vectors is classified against the other 2B - 1, of which its partner is the positive; the mean over all
    is returned. At most `max_similarities` similarities are in memory at a time: memory grows with B, not with its square.
    """
    vectors = F.normalize(widen(projection), dim=-1)
    vectors = vectors.transpose(0, 1).flatten(0, 1)  # first views, then second
    rows = max(1, max_similarities // len(vectors))
    if rows >= len(vectors):
        return _nt_xent_rows(vectors, 0, rows, temperature).mean()
    loss: Tensor = _ChunkedNTXent.apply(vectors, rows, temperature)
    return loss


class _ChunkedNTXent(torch.autograd.Function):
    """Compute NT-Xent in chunks of vectors, and the gradient of each chunk with it."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, rows: int, temperature: float) -> Tensor:
        loss = vectors.new_zeros(())
        leaf = vectors.detach().requires_grad_(ctx.needs_input_grad[0])
        with torch.set_grad_enabled(leaf.requires_grad):
            for start in range(0, len(vectors), rows):
                chunk_loss = _nt_xent_rows(leaf, start, rows, temperature).sum() / len(vectors)
                if leaf.requires_grad:
                    chunk_loss.backward()
                loss += chunk_loss.detach()
        if leaf.grad is not None:
            ctx.save_for_backward(leaf.grad)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None, None]:
        (saved,) = ctx.saved_tensors
        return gradient[0] * saved, None, None


def _nt_xent_rows(vectors: Tensor, start: int, rows: int, temperature: float) -> Tensor:
    """Return the loss of the unit vectors from `start` on, `rows` at most, against all `[2B, D]`."""
    anchor = torch.arange(start, min(start + rows, len(vectors)), device=vectors.device)
    similarity = vectors[anchor] @ vectors.T / temperature
    similarity = similarity.masked_fill(anchor[:, None] == torch.arange(len(vectors), device=vectors.device), float("-inf"))
    return F.cross_entropy(similarity, (anchor + len(vectors) // 2) % len(vectors), reduction="none")


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float, same: Tensor | None = None) -> Tensor:
    """Return InfoNCE per query `[B]`, from queries and keys `[B, D]` and shared negatives `[K, D]`.

    (He et al., 2020, equation 1.) Negatives that are a query's own key, bool `same` `[B, K]`, are ignored.
    """
    negative_scores = query @ negatives.T
    if same is not None:
        negative_scores = negative_scores.masked_fill(same, float("-inf"))
    return info_nce_from_scores((query * key).sum(dim=1) / temperature, negative_scores / temperature)


def info_nce_from_scores(key: Tensor, negatives: Tensor) -> Tensor:
    """Return InfoNCE per query `[B]`, from scores of its key `[B]` and of negatives `[B, K]`; those of -inf are ignored."""
    return -F.log_softmax(torch.cat([key[:, None], negatives], dim=1), dim=1)[:, 0]


def in_batch_info_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE per query `[B]`, from unit vectors `[B, D]`: the keys of other samples are the negatives.

    (Chen et al., 2021, algorithm 1.)
    """
    return F.cross_entropy(query @ key.T / temperature, torch.arange(len(query), device=query.device), reduction="none")


def symmetric_cross_entropy(
    scores: Tensor, same: Tensor | None = None, smoothing: float = 0.0, row_weight: float = 0.5
) -> Tensor:
    """Return the weighted sum of the cross-entropies over rows and over columns of scores `[B, B]`; diagonals are targets.

    (Radford et al., 2021, figure 3.) Other pairs that match, bool `same` `[B, B]`, are ignored. `smoothing` is the share of a
    target that is spread over all pairs that are not (Jia et al., 2021); rows weigh `row_weight`, columns the rest (Zhang et
    al., 2020).
    """
    same = torch.zeros_like(scores, dtype=torch.bool) if same is None else same
    by_rows = _pair_cross_entropy(scores, same, smoothing)
    by_columns = _pair_cross_entropy(scores.T, same.T, smoothing)
    return row_weight * by_rows + (1 - row_weight) * by_columns


def _pair_cross_entropy(scores: Tensor, same: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross-entropy over rows of scores `[B, B]` with the diagonal as target."""
    log_probability = scores.masked_fill(same, float("-inf")).log_softmax(dim=1)
    loss = -log_probability.diagonal()
    if smoothing:
        spread = -log_probability.masked_fill(same, 0).sum(dim=1) / (~same).sum(dim=1)
        loss = torch.lerp(loss, spread, smoothing)
    return loss.mean()


def pairwise_sigmoid(scores: Tensor, same: Tensor | None = None) -> Tensor:
    """Return the loss of telling by scores `[B, B]` which pairs match, those on the diagonal, summed over pairs, divided by B.

    (Zhai et al., 2023, algorithm 1.) Other pairs that match, bool `same` `[B, B]`, are ignored.
    """
    sign = 2 * torch.eye(len(scores), dtype=scores.dtype, device=scores.device) - 1
    losses = -F.logsigmoid(sign * scores)
    return (losses if same is None else losses.masked_fill(same, 0)).sum() / len(scores)


def noise_contrastive(key: Tensor, noise: Tensor, log_normalizer: float) -> Tensor:
    """Return noise-contrastive estimation per query `[B]` from scores of its key `[B]` and of noise `[B, K]`.

    Scores are similarities over the temperature; `log_normalizer` is the logarithm of the expected sum of exponentials
    over K samples, so that the odds of key against noise are exp(score - log_normalizer) (Wu et al., 2018, equations 4 to
    8). Noise of score -inf is ignored.
    """
    return -F.logsigmoid(key - log_normalizer) - F.logsigmoid(log_normalizer - noise).sum(dim=1)


def margin_loss(first: Tensor, second: Tensor, margin: float) -> dict[str, Tensor]:
    """Return the pull on positive pairs and the push on negative ones, of views `[B, D]` (Hadsell et al., 2006, equation 4).

    `same` is the mean of d²/2 over pairs, `other` that of max(0, margin - d)²/2 over first views and other samples' second.
    """
    square = (first.square().sum(dim=1)[:, None] + second.square().sum(dim=1) - 2 * first @ second.T).clamp(min=1e-12)
    positive = torch.eye(len(first), dtype=torch.bool, device=first.device)
    push = F.relu(margin - square.sqrt()).square().masked_fill(positive, 0).sum() / (len(first) * (len(first) - 1))
    return {"same": square.diagonal().mean() / 2, "other": push / 2}


def jensen_shannon(scores: Tensor, same: Tensor) -> Tensor:
    """Return the negative Jensen-Shannon bound on mutual information, of scores `[N, M]` with positive pairs `same`, bool.

    The mean over positives of softplus(-score), plus that over negatives of softplus(score) (Hjelm et al., 2019, equation 4).
    """
    positive = F.softplus(-scores).masked_fill(~same, 0).sum() / same.sum()
    negative = F.softplus(scores).masked_fill(same, 0).sum() / (~same).sum()
    return positive + negative
