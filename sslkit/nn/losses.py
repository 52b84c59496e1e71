"""Losses, each once, in float32 whatever the networks run in."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(projection: Tensor, temperature: float) -> Tensor:
    """Return the normalised temperature-scaled cross-entropy of two views `[B, 2, D]` (Chen et al., 2020, eq. 1).

    Each of the 2B vectors has its partner as the right answer among the 2B - 1 others; the mean over all is returned.
    """
    batch = len(projection)
    vectors = F.normalize(projection.float(), dim=-1).transpose(0, 1).flatten(0, 1)  # first views, then second
    similarity = vectors @ vectors.T / temperature
    similarity = similarity.masked_fill(torch.eye(2 * batch, dtype=torch.bool, device=vectors.device), float("-inf"))
    partner = torch.arange(2 * batch, device=vectors.device).roll(batch)
    return F.cross_entropy(similarity, partner)


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE per query `[B]`: the key of `[B, D]` is the right answer among it and `negatives` `[K, D]`.

    All are unit vectors (He et al., 2020, equation 1).
    """
    positive = (query * key).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, query @ negatives.T], dim=1) / temperature
    return -F.log_softmax(logits, dim=1)[:, 0]
