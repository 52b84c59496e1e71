"""Patches compared with a dictionary of atoms, and pooled (Coates, Ng & Lee, 2011; Coates & Ng, 2011)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError

_CONTRAST = 10 / 255**2  # added to the variance of a patch (Coates, Ng & Lee, 2011, section 3.1.1)


def sparse_patches(
    in_channels: int = 3, size: int = 32, atoms: int = 128, patch: int = 6, stride: int = 1, threshold: float = 0.5
) -> "SparsePatches":
    """Thresholded similarities of all patches (6×6) to 128 atoms, pooled in four quadrants; what `sparse_coding` trains."""
    if not 2 <= patch <= size:
        raise SslkitError(f"patch of sparse_patches should be 2 to the size, {size} px (got {patch})", flag="encoder_option")
    if atoms < 2 or stride < 1 or threshold < 0:
        problem = f"atoms should be 2 or more, stride 1 or more, threshold not negative (got {atoms}, {stride}, {threshold})"
        raise SslkitError(problem, flag="encoder_option")
    return SparsePatches(in_channels, atoms, patch, stride, threshold)


class SparsePatches(Encoder):
    """Compare each patch of images `[B, C, H, W]` with a dictionary of unit atoms, and average over four quadrants.

    Patches are brought to mean 0 and the same contrast, and whitened by `whitening`, which the task measures. An atom has two
    features: by how much its similarity exceeds the threshold, and by how much its negative does (Coates & Ng, 2011).
    """

    provides = ("pooled", "feature_map", "atoms")
    mean: Tensor
    whitening: Tensor

    def __init__(self, in_channels: int, atoms: int, patch: int, stride: int, threshold: float) -> None:
        super().__init__(4 * 2 * atoms, in_channels)
        self.patch, self.stride, self.threshold = patch, stride, threshold
        values = in_channels * patch**2
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("whitening", torch.eye(values))
        self.dictionary = nn.Parameter(torch.randn(atoms, values))

    def atoms(self) -> Tensor:
        """Return the atoms of length 1, `[K, values]`."""
        return F.normalize(self.dictionary, dim=1)

    def normalize(self, patches: Tensor) -> Tensor:
        """Return patches `[..., values]` with mean 0 and equal contrast."""
        centered = patches - patches.mean(dim=-1, keepdim=True)
        return centered / (centered.square().mean(dim=-1, keepdim=True) + _CONTRAST).sqrt()

    def whiten(self, patches: Tensor) -> Tensor:
        """Return patches `[..., values]` normalized and whitened."""
        whitened: Tensor = (self.normalize(patches) - self.mean) @ self.whitening
        return whitened

    def feature_map(self, image: Tensor) -> Tensor:
        """Return the features of each patch, `[B, 2K, h, w]`."""
        rows, columns = ((side - self.patch) // self.stride + 1 for side in image.shape[2:])
        patches = F.unfold(image, self.patch, stride=self.stride).transpose(1, 2)
        similar = self.whiten(patches) @ self.atoms().T
        both = torch.cat([similar, -similar], dim=2)
        features: Tensor = (both - self.threshold).clamp(min=0).transpose(1, 2).unflatten(2, (rows, columns))
        return features

    def forward(self, sample: Tensor) -> Tensor:
        """Return features `[B, width]`: means over the quadrants."""
        return F.adaptive_avg_pool2d(self.feature_map(sample), 2).flatten(1)
