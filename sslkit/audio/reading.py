"""Read windows of recordings: of sound files, and of the sound of videos."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sslkit.audio.options import RATES, SHORTEST
from sslkit.contract.errors import UnreadableSampleError
from sslkit.data.decode import decoding
from sslkit.data.index import Index
from sslkit.extras import load_extra
from sslkit.video.options import VIDEO_FILES

Wave = NDArray[np.float32]  # [samples], in [-1, 1]

_MOST_CHANNELS = 64


_SILENT = 2.0**-15  # the smallest step of 16 bits


_AHEAD = 0.25  # seconds before a window from which decoding begins: codecs need what came before


class Recording(Protocol):
    """A recording that is open."""

    rate: int  # Hz
    length: int  # samples

    def read(self, start: int, count: int) -> Wave:
        """Return the mean over channels of the samples from `start` on, `count` of them or what there is."""


class SoundFile:
    """Read a sound file."""

    def __init__(self, file: Any) -> None:
        self.file, self.rate, self.length = file, file.samplerate, file.frames
        check_sound(file.channels, self.rate)

    def read(self, start: int, count: int) -> Wave:
        """Return samples `[count]`, or fewer at the end."""
        self.file.seek(start)
        wave: Wave = self.file.read(count, dtype="float32", always_2d=True).mean(axis=1)
        return wave


class SoundTrack:
    """Read the sound of a video; `start` is when it begins, in seconds of the container's clock."""

    def __init__(self, container: Any) -> None:
        if not container.streams.audio:
            raise UnreadableSampleError("no sound in it")
        self.container, self.track = container, container.streams.audio[0]
        self.rate = int(self.track.rate or 0)
        check_sound(self.track.channels, self.rate)
        self.second = float(self.track.time_base)  # of a tick
        self.begin = self.track.start_time or 0
        self.start = self.begin * self.second
        if self.track.duration:
            seconds = self.track.duration * self.second
        else:  # of the container, which may begin before its sound
            seconds = ((container.duration or 0) + (container.start_time or 0)) / 1e6 - self.start
        self.length = int(seconds * self.rate)

    def read(self, start: int, count: int) -> Wave:
        """Return samples `[count]`, or fewer at the end; zeros where a container says that it is longer than its sound."""
        wave = np.zeros(max(0, min(count, self.length - start)), dtype=np.float32)
        ahead = round(_AHEAD * self.rate)
        for search in (start - ahead, -ahead):
            first = self._decode(wave, start, search)
            if first <= start:
                break  # else the search missed: decode all that comes before
        return wave

    def _decode(self, wave: Wave, start: int, search: int) -> int:
        """Fill a window with what is decoded from the place of a search on; returns the first sample that was there."""
        resampler = load_av().AudioResampler(format="fltp")  # changes how samples are stored, and nothing else
        self._seek(int(search / self.rate / self.second) + self.begin)
        first = place = None
        tick = max(1.0, 1.5 * self.second * self.rate)
        for frame in self._frames():
            stamped = round((frame.pts - self.begin) * self.second * self.rate)
            if place is None or abs(stamped - place) > tick:  # else what is rounded to ticks would leave gaps
                place = stamped
            first = place if first is None else first
            for part in resampler.resample(frame):
                samples = part.to_ndarray().mean(axis=0)
                left, right = max(place, start), min(place + len(samples), start + len(wave))
                if left < right:
                    wave[left - start : right - start] = samples[left - place : right - place]
                place += len(samples)
            if place >= start + len(wave):
                break
        return start + 1 if first is None else first

    def _frames(self) -> Iterator[Any]:
        """Decode what follows; a search may have ended within a packet, which is left out."""
        started = False
        for packet in self.container.demux(self.track):
            try:
                frames = packet.decode()
            except load_av().error.InvalidDataError:
                if started:
                    raise
                continue
            started = started or bool(frames)
            yield from frames

    def _seek(self, tick: int) -> None:
        """Go to the last packet before a time.

        Some containers have packets before their beginning, which the codec needs; others refuse to look for them.
        """
        try:
            self.container.seek(tick, stream=self.track)
        except PermissionError:
            self.container.seek(max(self.begin, tick), stream=self.track)


def check_sound(channels: int, rate: int) -> None:
    """Raise UnreadableSampleError for a header that declares what would take gigabytes to read, or no sound."""
    if channels > _MOST_CHANNELS:
        raise UnreadableSampleError(f"{channels} channels, expected {_MOST_CHANNELS} or fewer")
    if not RATES[0] <= rate <= RATES[1]:
        raise UnreadableSampleError(f"{rate} Hz, expected {RATES[0]} to {RATES[1]}")


@contextmanager
def open_recording(index: Index, row: int) -> Iterator[Recording]:
    """Open a recording, or the sound of a video; raises UnreadableSampleError."""
    with decoding(index, row), index.open(row) as stream:
        if _is_video(index.name(row)):
            with load_av().open(stream) as container:
                yield SoundTrack(container)
        else:
            with load_soundfile().SoundFile(stream) as file:
                yield SoundFile(file)


def measure_recording(index: Index, row: int) -> tuple[float, int]:
    """Return seconds and rate of a recording."""
    with open_recording(index, row) as recording:
        return recording.length / recording.rate, recording.rate


def last_start(recording: Recording, rate: int, samples: int) -> int:
    """Return the last sample at which a window of so many samples at `rate` can begin, 0 in a shorter recording.

    Raises UnreadableSampleError for one that is hardly any sound.
    """
    if recording.length < SHORTEST * recording.rate:
        seconds = recording.length / recording.rate
        raise UnreadableSampleError(f"{seconds:.3f} s of sound, expected {SHORTEST:g} s or more")
    return max(0, recording.length - _own_samples(recording, rate, samples))


def read_window(recording: Recording, start: int, rate: int, samples: int) -> Wave:
    """Return the window that begins at a sample of the recording, `samples` of them at `rate`, or fewer at the end."""
    wave = recording.read(start, _own_samples(recording, rate, samples))
    if not np.isfinite(wave).all():
        raise UnreadableSampleError("values that are not finite")
    if recording.rate != rate:
        from scipy.signal import resample_poly

        common = gcd(recording.rate, rate)
        wave = resample_poly(wave, rate // common, recording.rate // common)
    return wave[:samples]


def is_silent(wave: Wave) -> bool:
    """Tell whether a window has no sound."""
    return float(np.abs(wave).max(initial=0)) < _SILENT


def _own_samples(recording: Recording, rate: int, samples: int) -> int:
    """Return how many samples of a recording are so many at `rate`."""
    return -(-samples * recording.rate // rate)


def require_readers(index: Index) -> None:
    """Raise SslkitError, naming the extra, if what reads these files is not installed: now, and not once for every file."""
    videos = sum(map(_is_video, index.paths))
    if videos < len(index):
        load_soundfile()
    if videos:
        load_av()


def load_soundfile() -> Any:
    """Return the library that reads sound files; raises SslkitError, naming the extra, if it is missing."""
    return load_extra("soundfile", "audio", "reading sound")


def load_av() -> Any:
    """Return the library that reads videos; raises SslkitError, naming the extra, if it is missing."""
    return load_extra("av", "video", "reading the sound of videos")


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_FILES
