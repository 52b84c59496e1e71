"""A codebook of vectors learned by moving averages."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.nn.clustering import nearest_center

_MAX_DISTANCES = 2**24  # distances in memory
_DEAD = 0.05  # of an even share of the vectors: a code that is nearest to fewer is reinitialized


class Codebook(nn.Module):
    """Codes `[K, D]`, each the moving average of the vectors it is nearest to.

    (van den Oord et al., 2017, appendix A.1.) Codes that are nearest to almost no vector restart at a vector of the batch.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(count, width))
        self.register_buffer("counts", torch.zeros(count))
        self.register_buffer("sums", torch.zeros(count, width))

    @torch.no_grad()
    def initialize(self, vectors: Tensor, vectors_per_step: int) -> None:
        """Set the codes to random ones of vectors `[N, D]`; later updates bring `vectors_per_step` vectors each."""
        self._restart(torch.ones_like(self.counts, dtype=torch.bool), vectors, vectors_per_step)

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the nearest code of vectors `[..., D]`, int64 `[...]`."""
        flat = vectors.flatten(0, -2).to(self.codes.dtype)
        with torch.autocast(flat.device.type, enabled=False):  # half precision would confuse a neighbor with the nearest
            return nearest_center(flat, self.codes)[0].view(vectors.shape[:-1])

    @torch.no_grad()
    def update(self, vectors: Tensor, decay: float) -> None:
        """Move the codes toward vectors `[N, D]`, keeping `decay` of their old values."""
        vectors = vectors.to(self.codes.dtype)
        counts, sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        for chunk in vectors.split(max(1, _MAX_DISTANCES // len(self.codes))):  # a product always adds up in the same order
            nearest = F.one_hot(self.nearest(chunk), len(self.codes)).to(chunk.dtype)
            counts += nearest.sum(dim=0)
            sums += nearest.T @ chunk
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        self.codes.copy_(self.sums / self.counts.clamp(min=1e-5)[:, None])
        self._restart(self.counts < _DEAD * len(vectors) / len(self.codes), vectors, len(vectors))

    def perplexity(self) -> Tensor:
        """Return the effective number of codes in use: the exponential of the entropy of their frequencies."""
        frequencies = self.counts / self.counts.sum().clamp(min=1e-5)
        perplexity: Tensor = torch.special.entr(frequencies).sum().exp()
        return perplexity

    def _restart(self, dead: Tensor, vectors: Tensor, vectors_per_step: int) -> None:
        """Move dead codes, bool `[K]`, to random ones of vectors `[N, D]`, each with an even share of a step as its count."""
        count = vectors_per_step / len(self.codes)
        places = torch.arange(len(self.codes), device=vectors.device) % len(vectors)
        order = torch.randperm(len(vectors), device=vectors.device)[places]
        fresh = vectors[order].to(self.codes.dtype)
        fresh = fresh + 1e-3 * fresh.std() * torch.randn_like(fresh)  # identical codes would never separate
        self.codes.copy_(torch.where(dead[:, None], fresh, self.codes))
        self.counts.copy_(torch.where(dead, count, self.counts))
        self.sums.copy_(torch.where(dead[:, None], fresh * count, self.sums))
