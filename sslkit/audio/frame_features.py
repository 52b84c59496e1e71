"""Features of the frames of whole recordings, and which label each frame has."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslkit.audio.alignments import Alignment
from sslkit.audio.encoders.base import AudioEncoder, FrameEncoder, recorded_frames
from sslkit.audio.encoders.spectrogram import SpectrogramEncoder
from sslkit.audio.reading import open_recording, read_window
from sslkit.audio.spectrogram import MFCC
from sslkit.console import say_once, show_progress
from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.data.index import Index
from sslkit.evaluation.notes import count
from sslkit.evaluation.positions import layer_reader
from sslkit.evaluation.session import Layers

_AT_ONCE = 32  # windows


@dataclass(frozen=True)
class FrameReader:
    """Reads frames `[B, N, width]` of windows `[B, samples]` by layer; frame n has `length` samples from `n * hop` on."""

    read: Callable[[Tensor], Layers]
    length: int
    hop: int
    rate: int
    device: torch.device


@dataclass(frozen=True)
class LabeledFrames:
    """Features of frames that have a label, `[P, width]` by layer, their labels, and the row in the data of each, `[P]`."""

    layers: Layers
    labels: list[str]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class _Window:
    row: int
    start: float  # seconds
    sound: Tensor
    recorded: int  # samples; zeros follow


def frame_reader(encoder: AudioEncoder, name: str, layer: str) -> FrameReader:
    """Return what reads the frames of an encoder; raises SslkitError for one without frames, or without the layer.

    Of patches of spectrograms, those of all bands at a time are averaged.
    """
    if isinstance(encoder, FrameEncoder):
        length, hop = encoder.convolutions.reach, encoder.convolutions.hop
    elif isinstance(encoder, SpectrogramEncoder) and "spectrogram_patches" in encoder.provides:
        length = hop = encoder.patch * encoder.spectrogram.hop
    else:
        hint = "frames needs an encoder that has some, such as speech_micro or spectrogram:vit_micro"
        raise SslkitError(f"{name} has no frames", hint, flag="ckpt")

    def as_frames(tokens: Tensor, samples: int) -> Tensor:
        if isinstance(encoder, SpectrogramEncoder):
            columns: Tensor = tokens[:, encoder.prefix :].unflatten(1, encoder.grid(samples)).mean(dim=1)
            return columns[:, : samples // length]  # the last one may be padding
        return tokens

    read_layers = layer_reader(encoder, name, layer)

    @torch.no_grad()
    def read(sound: Tensor) -> Layers:
        return {number: as_frames(tokens, sound.shape[1]) for number, tokens in read_layers(sound).items()}

    return FrameReader(read, length, hop, encoder.sample_rate, encoder.device)


def mfcc_reader(like: FrameReader) -> FrameReader:
    """Return what reads MFCC of the same frames as another reader."""
    mfcc = MFCC(like.rate, like.length, like.hop).to(like.device)

    def read(sound: Tensor) -> Layers:
        return {"last": mfcc(sound, recorded_frames(sound, like.length, like.hop))[0]}

    return FrameReader(read, like.length, like.hop, like.rate, like.device)


def read_frames(
    reader: FrameReader, index: Index, alignments: dict[int, Alignment], rows: list[int], window: int
) -> LabeledFrames:
    """Return the features of all frames of some recordings whose middle has a label.

    Recordings are read as windows of `window` milliseconds that follow each other, such as encoders were trained on.
    """
    layers: dict[str, list[Tensor]] = {}
    labels: list[str] = []
    places: list[int] = []
    windows = _windows(reader, index, rows, round(window * reader.rate / 1000))
    while batch := list(islice(windows, _AT_ONCE)):
        sound = torch.stack([each.sound for each in batch]).to(reader.device)
        output = {name: values.float().cpu() for name, values in reader.read(sound).items()}
        middle = (np.arange(next(iter(output.values())).shape[1]) * reader.hop + reader.length / 2) / reader.rate
        for number, each in enumerate(batch):
            labeled = {
                place: label
                for place, seconds in enumerate(middle.tolist())
                if seconds * reader.rate <= each.recorded
                and (label := alignments[each.row].label_at(each.start + seconds)) is not None
            }
            for name, values in output.items():
                layers.setdefault(name, []).append(values[number, list(labeled)])
            labels += labeled.values()
            places += [each.row] * len(labeled)
    return LabeledFrames({name: torch.cat(parts) for name, parts in layers.items()}, labels, np.array(places))


def _windows(reader: FrameReader, index: Index, rows: list[int], samples: int) -> Iterator[_Window]:
    """Yield windows of so many samples of recordings, one after the other; the last of each is followed by zeros."""
    unreadable = 0
    with show_progress("frames of recordings", len(rows)) as progress:
        for row in rows:
            try:
                with open_recording(index, row) as recording:
                    step = samples * recording.rate / reader.rate
                    for number in range(max(1, int(np.ceil(recording.length / step)))):
                        wave = torch.from_numpy(read_window(recording, round(number * step), reader.rate, samples))
                        padded = F.pad(wave, (0, samples - len(wave)))
                        yield _Window(row, number * samples / reader.rate, padded, len(wave))
            except UnreadableSampleError:
                unreadable += 1
            progress.advance()
    if unreadable:
        say_once(f"skipped {count(unreadable, 'unreadable recording')} of {index.source}")
