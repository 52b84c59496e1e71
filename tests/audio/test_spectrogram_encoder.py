"""Encoders of images on spectrograms: what they see of a recording, and what they refuse."""

import pytest
import torch

from sslkit import SslkitError
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for

OPTIONS = {"sample_rate": "8000", "mels": "32", "width": "32", "depth": "2", "patch": "8"}


def build(name: str = "spectrogram:vit_micro", **options: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_encoder(recipe_for(name, 500, 1, {**OPTIONS, **options})).eval()


def test_patches_are_of_bands_and_frames_and_those_after_the_recording_are_not_pooled() -> None:
    encoder, sound = build(), 0.1 * torch.randn(3, 4000)
    sound[1, 1500:], sound[2] = 0, 0
    picture = encoder.picture(sound)
    assert encoder.grid(4000) == (4, 7) and picture.shape == (3, 1, 32, 56)  # 51 frames of 10 ms in whole patches
    assert picture.min() >= -0.01 and picture[0, :, :, :50].mean() > 0.2 and picture[1, :, :, 24:].abs().max() < 0.01
    recorded = encoder.recorded_patches(sound).view(3, 4, 7)
    # Columns begin every 8 frames of 80 samples; of silence, the first counts.
    assert torch.equal(recorded[:, 0].sum(dim=1), torch.tensor([7, 3, 1])) and torch.equal(recorded[:, 0], recorded[:, 3])
    tokens = encoder.tokens(sound)
    patches = tokens[:, encoder.prefix :]
    expected = torch.stack([patches[sample][recorded[sample].flatten()].mean(dim=0) for sample in range(3)])
    assert torch.allclose(encoder(sound), expected, atol=1e-5)
    assert encoder(sound[:, :3200]).shape == (3, 32)  # other lengths


def test_kept_patches_are_those_of_the_spectrogram() -> None:
    encoder, sound = build(), 0.1 * torch.randn(2, 4000)
    everything = torch.arange(28).expand(2, -1)
    assert torch.allclose(encoder.tokens(sound, keep=everything), encoder.tokens(sound), atol=1e-5)
    later = sound.clone()
    later[:, 2400:] = 0
    first = torch.arange(28).view(4, 7)[:, :3].flatten().expand(2, -1)  # patches of the first 24 frames
    assert torch.allclose(encoder.tokens(sound, keep=first), encoder.tokens(later, keep=first), atol=1e-2)


def test_any_encoder_of_images_may_be_named() -> None:
    encoder = build_encoder(recipe_for("spectrogram:resnet_micro", 500, 1, {"sample_rate": "8000", "width": "8"}))
    assert encoder(0.1 * torch.randn(2, 4000)).shape == (2, 64) and "spectrogram_patches" not in encoder.provides
    assert [layer.dim() for layer in encoder.layers(0.1 * torch.randn(2, 4000))] == [4] * 4
    again = build_encoder(encoder.recipe)
    again.load_state_dict(encoder.state_dict())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("spectrogram:vit_micro", {"mels": "30"}, "mels should be 8 to 256, and a multiple of 8"),
        ("spectrogram:gpt_micro", {}, "gpt_micro"),
        ("spectrogram:nothing", {}, "unknown encoder nothing"),
        ("spectrogram:vit_micro", {"sample_rate": "1"}, "sample_rate should be"),
    ],
)
def test_what_is_no_encoder_of_spectrograms_is_refused(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(SslkitError, match=message):
        build(name, **options)
