"""Spectrograms against librosa's, and the encoder on top of them."""

import numpy as np
import pytest
import torch

from sslkit import SslkitError, build_encoder
from sslkit.audio.spectrogram import LogMel
from sslkit.encoders.recipe import recipe_for


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("mels", [32, 64])
def test_spectrograms_are_librosas(rate: int, mels: int) -> None:
    librosa = pytest.importorskip("librosa")
    time = np.arange(rate) / rate
    tone = 0.3 * np.sin(2 * np.pi * (300 + 400 * time) * time) + np.random.default_rng(0).normal(scale=0.05, size=rate)
    sound = tone.astype(np.float32)
    module = LogMel(rate, mels)
    expected = librosa.feature.melspectrogram(
        y=sound, sr=rate, n_fft=module.length, hop_length=module.hop, n_mels=mels, fmin=60, fmax=min(7800, 0.45 * rate), power=2
    )
    spectrogram = module(torch.from_numpy(sound)[None])[0]
    assert spectrogram.shape == expected.shape
    assert float((spectrogram - torch.from_numpy(np.log(expected + 1e-5))).abs().max()) < 1e-3


def test_spectrograms_stay_in_float32() -> None:
    sound = 1e-3 * torch.randn(2, 4000)
    module = LogMel(8000, 32)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(sound)
    assert half.dtype == torch.float32 and torch.equal(half, module(sound))


def test_sound_of_any_length_has_features() -> None:
    encoder = build_encoder(recipe_for("audio_micro", 960, 1, {"width": "8", "sample_rate": "8000"})).eval()
    assert encoder.sample_rate == 8000 and encoder.modality == "audio"
    for samples in (200, 4000, 12345):
        assert encoder(torch.randn(3, samples)).shape == (3, 64)
    assert [features.shape[1] for features in encoder.layers(torch.randn(1, 4000))] == [8, 16, 32, 64]


@pytest.mark.parametrize(
    ("option", "message"),
    [("width=12", "multiple of 8"), ("sample_rate=10", "1000 to 192000"), ("mels=2", "8 to 256")],
)
def test_options_that_make_no_encoder(option: str, message: str) -> None:
    name, _, value = option.partition("=")
    with pytest.raises(SslkitError, match=message):
        build_encoder(recipe_for("audio_micro", 960, 1, {name: value}))
