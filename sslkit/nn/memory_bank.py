"""A memory bank: one vector per sample of the data (Wu et al., 2018)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit.contract.options import TaskOptions
from sslkit.nn.losses.contrastive import info_nce_from_scores, noise_contrastive


class MemoryBankOptions(TaskOptions):
    """Options of a memory bank and of the loss against it; a task overrides fields to name its paper's values."""

    loss: Literal["softmax", "nce"] = Field(
        default="softmax",
        description="Softmax over a sample's row and the negatives, or noise-contrastive estimation (the paper's).",
    )
    temperature: float = Field(default=0.2, gt=0, description="Temperature of the loss (0.07 in the paper).")
    negatives: int = Field(default=4096, ge=1, description="Negative samples per image from the memory bank; at most all.")
    momentum: float = Field(default=0.5, ge=0, lt=1, description="Momentum of the memory bank.")
    width: int = Field(default=128, ge=4, description="Output width of the head.")


class MemoryBank(nn.Module):
    """A unit vector for every sample, `rows` `[samples, width]`, initialized at random (Wu et al., 2018, section 3).

    `negatives` int64 `[K]` are the samples whose rows are the negatives of a step, at random unless there are no more. They
    are drawn here and in `update`, never in a loss: micro-batches and processes have to share them. All of it is buffers,
    so that it survives a resume.
    """

    rows: Tensor
    negatives: Tensor

    def __init__(self, samples: int, options: MemoryBankOptions) -> None:
        super().__init__()
        self.options = options
        self.choices = 1 + min(options.negatives, samples - 1)  # a sample's own row and the others it is compared with
        self.register_buffer("rows", F.normalize(torch.randn(samples, options.width), dim=1))
        self.register_buffer("negatives", torch.arange(min(options.negatives, samples)))
        self._draw_negatives()
        self.log_normalizer = self._log_normalizer() if options.loss == "nce" else 0.0

    def scores(self, query: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of unit vectors `query` `[B, D]`: of each with its own row, `[B]`, and with negatives, `[B, K]`.

        `index` `[B]` are indices of samples. A sample is not its own negative: that score is -inf.
        """
        temperature = self.options.temperature
        positive_scores = (query * self.rows[index]).sum(dim=1) / temperature
        negative_scores = query @ self.rows[self.negatives].T / temperature
        return positive_scores, negative_scores.masked_fill(index[:, None] == self.negatives, float("-inf"))

    def losses(self, query: Tensor, index: Tensor) -> Tensor:
        """Return the loss of each of the unit vectors `query` `[B, D]` of samples `index` `[B]`."""
        positive, negative = self.scores(query, index)
        if self.options.loss == "softmax":
            return info_nce_from_scores(positive, negative)
        return noise_contrastive(positive, negative, self.log_normalizer)

    @torch.no_grad()
    def update(self, index: Tensor, rows: Tensor) -> None:
        """Move the rows of samples `index` `[B]` toward unit vectors `rows` `[B, D]`, and renormalize.

        Then draw the negatives of the next step. Call it in `after_step`, which has the same random state everywhere.
        """
        moved = torch.lerp(rows.to(self.rows.dtype), self.rows[index], self.options.momentum)
        self.rows[index] = F.normalize(moved, dim=1)
        self._draw_negatives()

    def _log_normalizer(self) -> float:
        """Return the expected log of the sum of exponentials of the negatives' scores, for vectors uniform on the sphere.

        The papers estimate it from the first batch, when the bank is random (Wu et al., 2018, equation 8); on a sphere of D
        dimensions it is known: cosines have a density of (1 - c²)^((D - 3) / 2).
        """
        cosine = torch.linspace(-1, 1, 20001, dtype=torch.float64)[1:-1]
        log_density = (self.rows.shape[1] - 3) / 2 * torch.log1p(-cosine.square())
        scores = cosine / self.options.temperature
        return float(torch.logsumexp(log_density + scores, 0) - torch.logsumexp(log_density, 0)) + math.log(self.choices - 1)

    def _draw_negatives(self) -> None:
        if len(self.negatives) < len(self.rows):
            self.negatives.random_(len(self.rows))
