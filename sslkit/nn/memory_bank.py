"""A memory bank with one vector per training sample."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MemoryBank(nn.Module):
    """A unit vector for every sample, `rows` `[samples, width]`, initialized at random (Wu et al., 2018, section 3).

    `negatives` int64 `[K]` are the samples whose rows are the negatives of a step, at random unless there are no more. They
    are drawn here and in `update`, never in a loss: micro-batches and processes have to share them. All of it is buffers,
    so that it survives a resume.
    """

    rows: Tensor
    negatives: Tensor

    def __init__(self, samples: int, width: int, negatives: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(samples, width), dim=1))
        self.register_buffer("negatives", torch.arange(min(negatives, samples)))
        self._draw_negatives()

    def scores(self, query: Tensor, index: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return logits of unit vectors `query` `[B, D]`: of each with its own row, `[B]`, and with negatives, `[B, K]`.

        `index` `[B]` are indices of samples. A sample is not its own negative: that score is -inf.
        """
        positive_scores = (query * self.rows[index]).sum(dim=1) / temperature
        negative_scores = query @ self.rows[self.negatives].T / temperature
        return positive_scores, negative_scores.masked_fill(index[:, None] == self.negatives, float("-inf"))

    def log_normalizer(self, count: int, temperature: float) -> float:
        """Return the expected log of the sum of exponentials of `count` scores, for vectors uniform on the sphere.

        The papers estimate it from the first batch, when the bank is random (Wu et al., 2018, equation 8); on a sphere of D
        dimensions it is known: cosines have a density of (1 - c²)^((D - 3) / 2).
        """
        cosine = torch.linspace(-1, 1, 20001, dtype=torch.float64)[1:-1]
        log_density = (self.rows.shape[1] - 3) / 2 * torch.log1p(-cosine.square())
        return float(torch.logsumexp(log_density + cosine / temperature, 0) - torch.logsumexp(log_density, 0)) + math.log(count)

    @torch.no_grad()
    def update(self, index: Tensor, rows: Tensor, momentum: float) -> None:
        """Move the rows of samples `index` `[B]` toward unit vectors `rows` `[B, D]`, keeping `momentum`, and renormalize.

        Then draw the negatives of the next step. Call it in `after_step`, which has the same random state everywhere.
        """
        self.rows[index] = F.normalize(torch.lerp(rows.to(self.rows.dtype), self.rows[index], momentum), dim=1)
        self._draw_negatives()

    def _draw_negatives(self) -> None:
        if len(self.negatives) < len(self.rows):
            self.negatives.random_(len(self.rows))
