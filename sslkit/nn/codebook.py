"""A codebook of vectors learned by moving averages."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.nn.clustering import nearest_center

_AT_ONCE = 2**24  # distances in memory
_DEAD = 0.05  # of an even share of the vectors: a code that fewer are nearest to begins anew


class Codebook(nn.Module):
    """Hold codes `[K, D]`, each the moving average of the vectors that it is nearest to.

    (van den Oord et al., 2017, appendix A.1.) Codes that nearly no vector is near to begin anew at a vector of the batch.
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
    def begin(self, vectors: Tensor, step: int) -> None:
        """Take the codes from vectors `[N, D]`, any of them; a step will bring so many vectors."""
        self._begin(torch.ones_like(self.counts, dtype=torch.bool), vectors, step)

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the nearest code of vectors `[..., D]`, int64 `[...]`."""
        flat = vectors.flatten(0, -2).to(self.codes.dtype)
        with torch.autocast(flat.device.type, enabled=False):  # half precision would take a neighbor for the nearest
            return nearest_center(flat, self.codes)[0].view(vectors.shape[:-1])

    @torch.no_grad()
    def update(self, vectors: Tensor, decay: float) -> None:
        """Let the codes follow vectors `[N, D]`, keeping `decay` of what they were."""
        vectors = vectors.to(self.codes.dtype)
        counts, sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        for part in vectors.split(max(1, _AT_ONCE // len(self.codes))):  # a product, which adds up in the same order always
            nearest = F.one_hot(self.nearest(part), len(self.codes)).to(part.dtype)
            counts += nearest.sum(dim=0)
            sums += nearest.T @ part
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        self.codes.copy_(self.sums / self.counts.clamp(min=1e-5)[:, None])
        self._begin(self.counts < _DEAD * len(vectors) / len(self.codes), vectors, len(vectors))

    def perplexity(self) -> Tensor:
        """Return how many codes are in use: the exponential of the entropy of their shares."""
        shares = self.counts / self.counts.sum().clamp(min=1e-5)
        used: Tensor = torch.special.entr(shares).sum().exp()
        return used

    def _begin(self, anew: Tensor, vectors: Tensor, step: int) -> None:
        """Put the codes that begin anew, bool `[K]`, at vectors `[N, D]`, and count an even share of a step for each."""
        count = torch.tensor(step / len(self.codes), device=vectors.device, dtype=self.counts.dtype)
        drawn = torch.randperm(len(vectors), device=vectors.device)[torch.arange(len(self.codes)) % len(vectors)]
        found = vectors[drawn].to(self.codes.dtype)
        found = found + 1e-3 * found.std() * torch.randn_like(found)  # two codes in one place would never part
        self.codes.copy_(torch.where(anew[:, None], found, self.codes))
        self.counts.copy_(torch.where(anew, count, self.counts))
        self.sums.copy_(torch.where(anew[:, None], found * count, self.sums))
