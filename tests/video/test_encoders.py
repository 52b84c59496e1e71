"""Encoders of clips: what they see, and what they refuse."""

from typing import Any

import pytest
import torch

from sslkit import SslkitError
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.video.encoders.video_micro import video_micro

SMALL = {"frames": 4, "tubelet": 2, "patch": 4, "width": 32, "depth": 2}


def small(**options: Any) -> Any:
    torch.manual_seed(0)
    return video_micro(3, 16, **{**SMALL, **options}).eval()


def test_tokens_are_those_of_tubelets_and_the_clip_is_their_mean() -> None:
    encoder, clip = small(), torch.rand(2, 4, 3, 16, 16)
    tokens = encoder.tokens(clip)
    assert encoder.grid(clip) == (2, 4, 4) and tokens.shape == (2, 32, 32)
    assert torch.allclose(encoder(clip), tokens.mean(dim=1), atol=1e-6)
    layers = encoder.layers(clip)
    assert len(layers) == 2 and torch.equal(layers[-1], tokens)


def test_only_kept_tubelets_are_seen() -> None:
    encoder, clip = small(), torch.rand(2, 4, 3, 16, 16)
    keep = torch.tensor([[0, 5, 17], [3, 30, 31]])
    kept = encoder.tokens(clip, keep=keep)
    other = clip.clone()
    other[0, 2:, :, :4, :4] = 0  # tubelet 16
    other[1, :2, :, 12:, :] = 0  # 12 to 15
    assert torch.equal(encoder.tokens(other, keep=keep), kept)
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(encoder.tokens(clip, keep=keep[:, order]), kept[:, order], atol=1e-5)
    everything = torch.arange(32).expand(2, -1)
    assert torch.allclose(encoder.tokens(clip, keep=everything), encoder.tokens(clip), atol=1e-5)


def test_masked_tubelets_are_replaced_before_positions_are_added() -> None:
    encoder, fill = small(), torch.randn(32)
    mask = torch.zeros(2, 32, dtype=torch.bool)
    mask[:, :16] = True
    first, second = torch.rand(2, 2, 4, 3, 16, 16)
    second[:, 2:] = first[:, 2:]
    assert torch.equal(encoder.tokens(first, mask=mask, fill=fill), encoder.tokens(second, mask=mask, fill=fill))
    tokens = encoder.tokens(torch.zeros(1, 4, 3, 16, 16), mask=torch.ones(1, 32, dtype=torch.bool), fill=fill)
    assert len(tokens[0].round(decimals=4).unique(dim=0)) == 32


def test_longer_and_larger_clips_are_encoded() -> None:
    assert small()(torch.rand(1, 8, 3, 24, 20)).shape == (1, 32)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 5, 3, 16, 16), "--frames: 5 is not a multiple of the encoder's tubelets of 2 frames"),
        ((1, 4, 3, 18, 16), "--size: 18 is not a multiple of the encoder's patch of 4 px"),
    ],
)
def test_clips_that_tubelets_do_not_divide_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(SslkitError, match=message):
        small()(torch.rand(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": "40"}, "width of video_micro should be a multiple of 32"),
        ({"depth": "0"}, "depth should be 1 to 64"),
        ({"frames": "0"}, "frames should be 1 to 256"),
        ({"tubelets": "2"}, "video_micro has no option tubelets"),
    ],
)
def test_options_that_make_no_encoder_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(SslkitError, match=message):
        build_encoder(recipe_for("video_micro", 16, 3, options))


@pytest.mark.parametrize(("name", "frames", "size"), [("r3d_18", 4, 32), ("s3d", 14, 32), ("swin3d_t", 4, 32)])
def test_networks_of_torchvision_are_encoders(name: str, frames: int, size: int) -> None:
    options = {"frames": str(frames), "frame_step": "2"}
    encoder = build_encoder(recipe_for(f"torchvision_video:{name}", size, 3, options)).eval()
    assert encoder.modality == "video" and (encoder.frames, encoder.frame_step) == (frames, 2)
    with torch.no_grad():
        assert encoder(torch.rand(1, frames, 3, size, size)).shape == (1, encoder.width)


def test_unknown_networks_of_torchvision_are_refused() -> None:
    with pytest.raises(SslkitError, match=r"torchvision has no model r3d_19 of clips .*r3d_18"):
        build_encoder(recipe_for("torchvision_video:r3d_19", 32, 3, {}))
