"""Statistics of sound textures: what they tell, and what has no influence."""

import torch

from sslkit.audio.texture import SoundTexture

RATE = 8000
TIME = torch.arange(RATE) / RATE


def parts(sound: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the statistics of one sound `[T]` by kind."""
    values = SoundTexture(RATE)(sound[None])[0]
    mean, deviation, modulation, correlations = values.split([32, 32, 192, 118])
    return {"mean": mean, "deviation": deviation, "modulation": modulation.view(32, 6), "correlations": correlations}


def test_bands_of_a_tone_stand_out() -> None:
    low, high = (parts(0.3 * torch.sin(2 * torch.pi * hertz * TIME))["mean"].argmax() for hertz in (300, 2500))
    assert 2 < low < high < 32


def test_modulation_lies_in_its_octave() -> None:
    torch.manual_seed(0)
    noise = 0.1 * torch.randn(RATE)
    for hertz, octave in ((30.0, 0), (18.0, 1), (8.0, 2), (4.0, 3), (2.0, 4)):
        beating = parts(noise * (1 + torch.sin(2 * torch.pi * hertz * TIME)))
        assert (beating["modulation"][8:].mean(dim=0)).argmax() == octave, hertz
        assert (beating["modulation"].sum(dim=1) <= 1.001).all()


def test_bands_that_beat_together_are_correlated() -> None:
    torch.manual_seed(0)
    noise = 0.1 * torch.randn(RATE)
    together = parts(noise * (1 + torch.sin(2 * torch.pi * 5 * TIME)))["correlations"]
    assert together.mean() > 0.6 and parts(noise)["correlations"][31:].abs().mean() < 0.3
    assert together.max() <= 1.001


def test_level_and_what_follows_a_recording_have_no_influence() -> None:
    torch.manual_seed(0)
    sound = 0.2 * torch.randn(2, RATE) * (1 + torch.sin(2 * torch.pi * 5 * TIME))
    texture = SoundTexture(RATE)
    assert texture(sound).shape == (2, SoundTexture.width)
    assert torch.allclose(texture(sound), texture(0.25 * sound), atol=0.02)
    short = torch.cat([sound[:, :4000], torch.zeros(2, 4000)], dim=1)
    for mean in (slice(0, 32), slice(32, 64), slice(256, 374)):
        assert torch.allclose(texture(short)[:, mean], texture(sound[:, :4000])[:, mean], atol=0.05)
    assert texture(torch.zeros(1, RATE)).isfinite().all()
