"""A transformer on tubelets that trains on a laptop CPU."""

import torch
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.image.decoders import sine_positions
from sslkit.image.transforms import take_patches
from sslkit.nn import Block
from sslkit.video.encoders.base import VideoEncoder, check_frames
from sslkit.video.transforms import cut_tubelets

_HEAD = 32  # width of an attention head


def video_micro(
    in_channels: int = 3,
    size: int = 32,
    frames: int = 16,
    frame_step: int = 6,
    tubelet: int = 2,
    patch: int = 4,
    width: int = 96,
    depth: int = 4,
) -> "VideoMicro":
    """Transformer on tubelets of 2 frames and 4×4 px, width 96, depth 4: trains on a laptop CPU, has tokens."""
    check_frames("video_micro", in_channels, frames, frame_step)
    if width < _HEAD or width % _HEAD:
        raise SslkitError(f"width of video_micro should be a multiple of {_HEAD} (got {width})", flag="encoder_option")
    for name, value in (("tubelet", tubelet), ("patch", patch), ("depth", depth)):
        if not 1 <= value <= 64:
            raise SslkitError(f"{name} should be 1 to 64 (got {value})", flag="encoder_option")
    return VideoMicro(in_channels, frames, frame_step, tubelet, patch, width, depth)


class VideoMicro(VideoEncoder):
    """Encode tubelets, a few pixels of a few frames, which all attend to each other (Tong et al., 2022, section 3.3).

    Positions in time, rows and columns are fixed sines and cosines, so that clips of any length and size are encoded.
    """

    provides = ("pooled", "tokens", "layers", "tubelets")

    def __init__(
        self, in_channels: int, frames: int, frame_step: int, tubelet: int, patch: int, width: int, depth: int
    ) -> None:
        super().__init__(width, in_channels, frames, frame_step)
        self.tubelet, self.patch = tubelet, patch
        self.embed = nn.Linear(tubelet * patch**2 * in_channels, width)
        self.blocks = nn.ModuleList(Block(width, width // _HEAD) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    @property
    def size_step(self) -> int:
        """Return the side of a tubelet in pixels."""
        return self.patch

    def nearest_valid_size(self, side: int) -> int:
        """Return `side`, rounded up to whole tubelets."""
        return -(-side // self.patch) * self.patch

    def grid(self, clip: Tensor) -> tuple[int, int, int]:
        """Return tubelets in time, rows and columns of clips `[B, T, C, H, W]`; raise SslkitError if they do not divide it."""
        frames, _, height, width = clip.shape[-4:]
        if frames % self.tubelet:
            raise SslkitError(
                f"{frames} is not a multiple of the encoder's tubelets of {self.tubelet} frames",
                f"use {frames // self.tubelet * self.tubelet}",
                flag="frames",
            )
        if height % self.patch or width % self.patch:
            raise SslkitError(f"{height} is not a multiple of the encoder's patch of {self.patch} px", flag="size")
        return frames // self.tubelet, height // self.patch, width // self.patch

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the embedding and of each block."""
        blocks = [list(block.parameters()) for block in self.blocks]
        return [list(self.embed.parameters()), *blocks[:-1], [*blocks[-1], *self.norm.parameters()]]

    def tokens(
        self, sample: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> Tensor:
        """Return features of tubelets, `[B, N, width]`, those of a moment after each other; see `Encoder`.

        `keep` (int64 `[B, K]`) computes only those. `mask` (bool `[B, N]`) replaces tubelets by `fill` (`[width]`).
        """
        tokens: Tensor = self.norm(self._blocks(sample, keep, mask, fill)[-1])
        return tokens

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return what each block computes, `[B, N, width]`; the last after its LayerNorm."""
        outputs = self._blocks(sample)
        return [*outputs[:-1], self.norm(outputs[-1])]

    def forward(self, sample: Tensor) -> Tensor:
        """Return the mean over tubelets, `[B, width]`."""
        return self.pool(self.tokens(sample))

    def _blocks(
        self, clip: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> list[Tensor]:
        positions = sine_positions(self.grid(clip), self.width, clip.device)
        tubelets = cut_tubelets(self.normalize(clip), self.tubelet, self.patch)
        if keep is None:
            x = self.embed(tubelets)
            if mask is not None:
                assert fill is not None, "a mask needs a fill vector"
                x = torch.where(mask[..., None], fill.to(x.dtype), x)
            x = x + positions
        else:
            x = self.embed(take_patches(tubelets, keep)) + positions[keep]
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs
