"""A memory bank: a vector of every sample, as it was when it was last seen."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MemoryBank(nn.Module):
    """Hold a unit vector of every sample, `rows` `[samples, width]`; random ones until a sample was seen.

    (Wu et al., 2018, section 3.) Rows are a buffer, so that they survive a resume.
    """

    rows: Tensor

    def __init__(self, samples: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(samples, width), dim=1))

    def sample_negatives(self, count: int, step: int) -> Tensor:
        """Return which `count` samples are noise in a step, int64 `[count]`: the same for all parts of it and all processes."""
        if count >= len(self.rows):
            return torch.arange(len(self.rows), device=self.rows.device)
        drawn = torch.randint(len(self.rows), (count,), generator=torch.Generator().manual_seed(step))
        return drawn.to(self.rows.device)

    def scores(self, query: Tensor, index: Tensor, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return similarities over the temperature of unit vectors `[B, D]`: to their own row `[B]`, to noise `[B, K]`.

        A sample is no noise to itself: there the score is -inf.
        """
        own = (query * self.rows[index]).sum(dim=1) / temperature
        others = (query @ self.rows[noise].T / temperature).masked_fill(index[:, None] == noise, float("-inf"))
        return own, others

    def log_normalizer(self, count: int, temperature: float) -> float:
        """Return the logarithm of the sum of exponentials over `count` scores that vectors at random places would have.

        The papers estimate it from the first batch, when the bank is random (Wu et al., 2018, equation 8); on a sphere of D
        dimensions it is known: cosines have a density of (1 - c²)^((D - 3) / 2).
        """
        cosine = torch.linspace(-1, 1, 20001, dtype=torch.float64)[1:-1]
        density = (self.rows.shape[1] - 3) / 2 * torch.log1p(-cosine.square())
        return float(torch.logsumexp(density + cosine / temperature, 0) - torch.logsumexp(density, 0)) + math.log(count)

    @torch.no_grad()
    def update(self, index: Tensor, rows: Tensor, momentum: float) -> None:
        """Keep `momentum` of the rows of samples `index` `[B]`, the rest from unit vectors `[B, D]`; their length stays 1."""
        self.rows[index] = F.normalize(torch.lerp(rows.to(self.rows.dtype), self.rows[index], momentum), dim=1)
