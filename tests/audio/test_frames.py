"""Frames of sound: MFCC against librosa's, masks, and encoders that tell a recording from the silence after it."""

import math

import numpy as np
import pytest
import torch

from sslkit import SslkitError
from sslkit.audio.encoders.base import recorded_samples
from sslkit.audio.encoders.speech import distance_bucket
from sslkit.audio.masks import span_mask
from sslkit.audio.spectrogram import MFCC
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for

SMALL = {
    "speech_micro": {"width": "32", "depth": "2", "channels": "16"},
    "wavlm_micro": {"width": "32", "depth": "2", "channels": "16"},
    "cpc_micro": {"width": "16"},
}


def build(name: str, rate: int = 8000) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_encoder(recipe_for(name, 960, 1, {**SMALL[name], "sample_rate": str(rate)}))


def test_mfcc_are_librosas() -> None:
    librosa = pytest.importorskip("librosa")
    rate, length, hop = 8000, 240, 160
    sound = np.random.default_rng(0).normal(scale=0.1, size=4000).astype(np.float32)
    module = MFCC(rate, length, hop)
    count = 1 + (4000 - length) // hop
    values, mean = module(torch.from_numpy(sound)[None], torch.ones(1, count, dtype=torch.bool))
    bands = librosa.feature.melspectrogram(
        y=sound, sr=rate, n_fft=length, hop_length=hop, n_mels=40, fmin=60, fmax=3600, power=2, center=False
    )
    expected = librosa.feature.mfcc(S=np.log(bands + 1e-5), n_mfcc=13)
    first = librosa.feature.delta(expected, width=5, mode="nearest")
    assert values.shape == (1, count, 39)
    whole = (values + mean[:, None])[0].T.numpy()
    assert np.allclose(whole[:13], expected, atol=1e-3) and np.allclose(whole[13:26, 2:-2], first[:, 2:-2], atol=1e-3)
    assert values.mean(dim=1).abs().max() < 1e-5


def test_mfcc_do_not_hear_the_silence_after_a_recording() -> None:
    module, sound = MFCC(8000, 240, 160), 0.1 * torch.randn(1, 4000)
    longer = torch.cat([sound, torch.zeros(1, 1600)], dim=1)
    values, mean = module(sound, torch.ones(1, 24, dtype=torch.bool))
    recorded = torch.arange(34)[None] < 24
    padded, same = module(longer, recorded)
    assert torch.allclose(padded[:, :24], values, atol=1e-5) and not padded[:, 24:].any()
    assert torch.allclose(same, mean, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_silence_after_a_recording_changes_nothing(name: str) -> None:
    encoder = build(name).eval()
    sound = 0.1 * torch.randn(3, 2400)
    longer = torch.cat([sound, torch.zeros(3, 1600)], dim=1)
    assert torch.allclose(encoder(longer), encoder(sound), atol=1e-5)
    frames = encoder.recorded_frames(sound).shape[1]
    assert encoder.recorded_frames(sound).all() and encoder.recorded_frames(longer).sum(dim=1).tolist() == [frames] * 3
    assert torch.allclose(encoder.tokens(longer)[:, :frames], encoder.tokens(sound), atol=1e-5)
    assert encoder.without_padding(longer).shape == sound.shape
    assert [layer.shape[1:] for layer in encoder.layers(sound)] == [(frames, encoder.width)] * len(encoder.layers(sound))
    assert {id(each) for stage in encoder.stages() for each in stage} == {id(each) for each in encoder.parameters()}
    silent = encoder(torch.zeros(2, 2400))
    assert silent.isfinite().all()


@pytest.mark.parametrize(("name", "hop"), [("speech_micro", 0.02), ("cpc_micro", 0.01)])
@pytest.mark.parametrize("rate", [8000, 16000, 22050])
def test_frames_at_all_rates(name: str, hop: float, rate: int) -> None:
    encoder = build(name, rate)
    convolutions = encoder.convolutions
    assert 0.7 * hop < convolutions.hop / rate < 1.4 * hop
    assert convolutions(torch.randn(1, rate)).shape == (1, convolutions.count(rate), convolutions.channels)
    changed = torch.zeros(1, rate)
    changed[:, 3 * convolutions.hop : 3 * convolutions.hop + convolutions.reach] = torch.randn(convolutions.reach)
    moved = (convolutions(changed) != convolutions(torch.zeros(1, rate))).any(dim=2)[0].nonzero().flatten()
    first, last = 3 - (convolutions.reach - 1) // convolutions.hop, 3 + (convolutions.reach - 1) // convolutions.hop
    assert 3 in moved and moved.min() >= first and moved.max() <= last
    with pytest.raises(SslkitError, match="samples are no frame"):
        convolutions.count(convolutions.reach - 1)


def test_what_comes_later_changes_no_summary() -> None:
    encoder = build("cpc_micro").eval()
    sound = 0.1 * torch.randn(2, 4000)
    changed = torch.cat([sound[:, :2000], 0.1 * torch.randn(2, 2000)], dim=1)
    convolutions = encoder.convolutions
    before = convolutions.count(2000)
    first, second = encoder.tokens(sound), encoder.tokens(changed)
    assert torch.allclose(first[:, :before], second[:, :before], atol=1e-6)
    assert not torch.allclose(first[:, before + 4 :], second[:, before + 4 :], atol=1e-3)


def test_masked_frames_are_replaced_after_the_convolutions() -> None:
    encoder = build("speech_micro").eval()
    sound, fill = 0.1 * torch.randn(2, 2400), torch.randn(32)
    frames, recorded = encoder.frames(sound).detach().requires_grad_(), encoder.recorded_frames(sound)
    mask = torch.zeros_like(recorded)
    mask[:, 4:7] = True
    encoder.contexts(frames, recorded, mask, fill)[-1].sum().backward()
    assert frames.grad is not None
    assert not frames.grad[:, 4:7].any() and frames.grad[:, :4].any() and frames.grad[:, 7:].any()


def test_recorded_samples() -> None:
    sound = torch.tensor([[0.0, 1, 0, 2, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 3]])
    assert recorded_samples(sound).tolist() == [4, 0, 6]


def test_spans_cover_their_share_of_the_recorded_frames() -> None:
    torch.manual_seed(0)
    recorded = torch.arange(50)[None] < torch.randint(10, 51, (4000, 1))
    mask = span_mask(recorded, 0.5, 5)
    assert not (mask & ~recorded).any() and mask.any(dim=1).all()
    inside = torch.arange(50) >= 4  # earlier ones are in fewer spans
    assert (mask & inside).sum() / (recorded & inside).sum() == pytest.approx(0.5, abs=0.03)
    single = span_mask(torch.ones(200, 30, dtype=torch.bool), 1e-6, 5)
    runs = single.sum(dim=1)
    assert runs.max() == 5 and runs.min() >= 1  # one span, which the end may cut


def test_buckets_of_distances() -> None:
    distance = torch.arange(-200, 201)
    bucket = distance_bucket(distance)
    assert bucket.min() == 0 and bucket.max() == 31
    assert (bucket[distance > 0] >= 16).all() and (bucket[distance <= 0] < 16).all()
    assert bucket[(distance >= -7) & (distance <= 0)].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    for size in (8, 20, 60, 127, 500):
        expected = min(15, 8 + int(math.log(size / 8) / math.log(128 / 8) * 8))
        assert distance_bucket(torch.tensor(-size)) == expected and distance_bucket(torch.tensor(size)) == 16 + expected
