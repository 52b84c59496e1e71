"""How far the patches of an image are from all patches of normal images (PatchCore; Roth et al., 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.image.feature_maps import as_map
from sslkit.nn.k_center import k_center

_PROJECTED = 128  # values of a patch by which the memory is thinned
_NEIGHBORHOOD = 3  # places whose mean describes one
_COLORS = 4  # pixels a side of a patch of colors
_CHUNK = 2**25  # distances in memory


class PatchFeatures(nn.Module):
    """Describe the places of images by layers of an encoder: means over neighborhoods, side by side on the finest grid."""

    def __init__(self, encoder: Encoder, layers: list[int] | None, name: str, flag: str = "ckpt") -> None:
        super().__init__()
        self.encoder = encoder
        if "layers" not in encoder.provides:
            raise SslkitError(f"{name} provides {', '.join(encoder.provides)}, but no layers", flag=flag)
        self.layers, self.name = layers, name

    def forward(self, images: Tensor) -> Tensor:
        """Return `[B, D, h, w]` of images `[B, C, S, S]`; raises SslkitError for a layer that there is not."""
        outputs = self.encoder.layers(images)
        chosen = self.layers or default_layers(len(outputs))
        if max(chosen) > len(outputs):
            raise SslkitError(f"{self.name} has {len(outputs)} layers (got {max(chosen)})", flag="layers")
        maps = [F.avg_pool2d(as_map(outputs[number - 1], self.encoder.prefix), _NEIGHBORHOOD, 1, 1) for number in chosen]
        side = max(each.shape[-1] for each in maps)
        # Of equal size, or the layer with the largest values alone would tell distances.
        scaled = [each / each.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6) for each in maps]
        return torch.cat([F.interpolate(each, size=(side, side), mode="bilinear") for each in scaled], dim=1)


class PatchColors(nn.Module):
    """Describe the places of images by their pixels, as what features have to beat."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.places = places

    def forward(self, images: Tensor) -> Tensor:
        """Return 4 x 4 pixels of each place, `[B, 16 C, h, w]`."""
        side = self.places * _COLORS
        pixels: Tensor = F.pixel_unshuffle(F.interpolate(images, size=(side, side), mode="bilinear", antialias=True), _COLORS)
        return pixels


class PatchMemory(nn.Module):
    """Score images by the distance of each place to the nearest patch of a memory `[M, D]`."""

    memory: Tensor

    def __init__(self, features: nn.Module, memory: Tensor) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("memory", memory)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the score `[B]` and the distances of places `[B, h, w]` of images `[B, C, S, S]`."""
        maps = self.features(images).float()
        places = maps.flatten(2).transpose(1, 2)  # [B, h * w, D]
        nearest = self._distance(places.flatten(0, 1)).view(maps.shape[0], *maps.shape[2:])
        return nearest.flatten(1).amax(dim=1), nearest

    def _distance(self, places: Tensor) -> Tensor:
        """Return the distance to the nearest patch of the memory, `[P]`."""
        if torch.compiler.is_compiling():
            return torch.cdist(places, self.memory).amin(dim=1)
        rows = max(1, _CHUNK // len(self.memory))
        return torch.cat([torch.cdist(part, self.memory).amin(dim=1) for part in places.split(rows)])


def default_layers(count: int) -> list[int]:
    """Return the middle layers, of four the second and third: not yet of the pretext task, no longer mere edges."""
    return sorted({max(1, round(count / 2)), max(1, round(3 * count / 4))})


def thin_out(patches: Tensor, count: int) -> Tensor:
    """Return places of patches `[P, D]` so that every other one is near to one of them: greedy k-center, `[count]`.

    Distances are those of a random projection (Roth et al., 2022, section 3.2).
    """
    if count >= len(patches):
        return torch.arange(len(patches))
    if patches.shape[1] > _PROJECTED:
        projection = torch.randn(patches.shape[1], _PROJECTED, device=patches.device) / _PROJECTED**0.5
        patches = patches @ projection
    return k_center(patches, count, 0, "patches chosen")
