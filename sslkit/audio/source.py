"""Recordings as a source: windows of sound, read where they are wanted, resampled and mixed to one channel."""

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslkit.audio.encoders.base import AudioEncoder
from sslkit.audio.options import RECORDINGS, SHORTEST, AudioOptions
from sslkit.audio.reading import (
    Recording,
    Wave,
    is_silent,
    last_start,
    load_soundfile,
    measure_recording,
    open_recording,
    read_window,
    require_readers,
)
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.contract.source import OpenSpec, ReadSeed, Rows
from sslkit.contract.task import Batch, DataInfo
from sslkit.data.decode import inspect_samples
from sslkit.data.index import Index
from sslkit.data.indexed_source import IndexedSource

_SECONDS, _RATE = 0.96, 16000  # as in COLA (Saeed et al., 2021)
_LONGEST = 2.0  # seconds, of the windows that are to be whole recordings


_SHOWN = 8  # windows of a recording in an evaluation


TRIES = 10  # windows, before a recording that is silent in places is given up


class AudioSource(IndexedSource):
    """Recordings; a batch has `audio`, float32 `[B, 2, samples]` in [-1, 1]: two windows of each recording.

    `length`, int64 `[B]`, is the number of recorded samples in a window; zeros follow where a recording is shorter.
    In training windows are random and independent; in evaluations there are eight, evenly spaced from beginning to end.
    `info.size` is the window in milliseconds, `info.details` has `sample_rate` in Hz.
    """

    kind: ClassVar = RECORDINGS
    noun: ClassVar = RECORDINGS.noun
    training_windows: ClassVar[int] = 2  # of a recording

    def __init__(self, index: Index, size: int, sample_rate: int, resolved: dict[str, tuple[Any, str]]) -> None:
        require_readers(index)
        self.index, self.resolved, self.location = index, resolved, index.source
        self.rate, self.samples = sample_rate, max(1, round(size * sample_rate / 1000))
        self.info = DataInfo(len(index), size, 1, "audio", {"sample_rate": sample_rate})

    @classmethod
    def for_training(cls, index: Index, spec: OpenSpec) -> Self:
        """Return recordings at the sample rate and window that were asked for, or that suit the data."""
        resolved: dict[str, tuple[Any, str]] = {}
        rate, milliseconds = choose_window(index, spec, resolved)
        resolved["cache"] = refuse_cache(spec)
        return cls(index, milliseconds, rate, resolved)

    @classmethod
    def for_evaluation(cls, index: Index, spec: OpenSpec, encoder: Encoder, size: int, like: Self | None = None) -> Self:
        """Return recordings at the sample rate of an encoder."""
        assert isinstance(encoder, AudioEncoder)
        return cls(index, size, encoder.sample_rate, {})

    @classmethod
    def example(cls, folder: Path, samples: int) -> str:
        """Write tones that glide, each with a timbre of its own, as 16-bit .wav files of a second at 8 kHz."""
        random, place = np.random.default_rng(0), folder / "recordings"
        place.mkdir(exist_ok=True)
        time = np.arange(8000) / 8000
        for number in range(samples):
            start, end, *timbre = random.uniform([200, 200, 0, 0, 0], [1200, 1200, 1, 1, 1])
            phase = 2 * np.pi * np.cumsum(start + (end - start) * time) / 8000
            tone = sum(strength * np.sin((harmonic + 1) * phase) for harmonic, strength in enumerate(timbre))
            noise = random.normal(scale=0.02, size=len(time))
            load_soundfile().write(place / f"{number:04}.wav", 0.3 * (tone + noise), 8000)
        return str(place)

    def key(self) -> str:
        """Return the data's own key, the rate and the window."""
        return f"{self.index.key()} {self.rate} {self.samples} {_SHOWN}"

    def read(self, rows: Rows, draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Return `audio`, float32 `[B, windows, samples]`, and `length`, int64 `[B]`; a broken recording is silent."""
        sound = np.zeros((len(rows), _SHOWN if draw is None else self.training_windows, self.samples), dtype=np.float32)
        lengths = np.zeros(len(rows), dtype=np.int64)
        broken: dict[int, str] = {}
        for place, row in enumerate(rows):
            try:
                windows = self._windows(int(row), None if draw is None else draw.generator(int(row)))
                lengths[place] = len(windows[0])
                sound[place, :, : lengths[place]] = windows
            except UnreadableSampleError as reason:
                broken[place] = str(reason)
        return {"audio": sound, "length": lengths}, broken

    def view(self, batch: Batch, encodes: str) -> Tensor:
        """Return all windows, `[B, windows, samples]`."""
        sound: Tensor = batch["audio"]
        return sound

    def encoder_options(self, encodes: str) -> dict[str, Any]:
        """Return the sample rate."""
        return {"sample_rate": self.rate}

    def workers(self, requested: int | str) -> tuple[int, str]:
        """Return how many processes read; as many as given."""
        return (1, "reads ahead while the step runs") if requested == "auto" else (int(requested), "as given")

    def _windows(self, row: int, random: np.random.Generator | None) -> NDArray[np.float32]:
        """Return windows of a recording, random or evenly spaced, or as often the whole of a shorter one.

        Raises UnreadableSampleError.
        """
        with open_recording(self.index, row) as recording:
            last = last_start(recording, self.rate, self.samples)
            if random is None:
                starts = np.linspace(0, last, _SHOWN).round().astype(int)
                windows = [read_window(recording, int(start), self.rate, self.samples) for start in starts]
                if all(map(is_silent, windows)):
                    raise UnreadableSampleError("silent")
                return np.stack(windows)
            return np.stack([self._audible(recording, last, random) for _ in range(self.training_windows)])

    def _audible(self, recording: Recording, last: int, random: np.random.Generator) -> Wave:
        """Read a random window that is not silent."""
        for _ in range(TRIES):
            window = read_window(recording, int(random.integers(last + 1)), self.rate, self.samples)
            if not is_silent(window):
                return window
        raise UnreadableSampleError("silent" if last == 0 else f"silent in {TRIES} places of it")


def refuse_cache(spec: OpenSpec) -> tuple[str, str]:
    """Return how `--cache` is printed; raises SslkitError if it was asked for."""
    if spec.cache in ("on", "compact"):
        raise SslkitError("audio is not cached", "leave it out: windows are read directly from the files", flag="cache")
    return "off", "windows are read directly from the files"


def choose_window(index: Index, spec: OpenSpec, resolved: dict[str, tuple[Any, str]]) -> tuple[int, int]:
    """Return the sample rate in Hz and the window in milliseconds that were asked for, or suit the recordings.

    What `auto` became is added to `resolved`.
    """
    options = spec.table(AudioOptions)
    durations, rates = zip(*inspect_samples(index, lambda row: measure_recording(index, row), "recording"), strict=True)
    if "sample_rate" in getattr(spec, "encoder_option", {}):
        raise SslkitError("the sample rate is an option of the data", "use --sample-rate", flag="encoder_option")
    rate = options.sample_rate
    if rate == "auto":
        usual = int(np.median(rates))
        rate = min(usual, _RATE)
        resolved["sample_rate"] = rate, f"the recordings' rate is {usual:,} Hz, and at most {_RATE:,} Hz are used"
    seconds = options.seconds
    if seconds == "auto":
        half = int(500 * np.median(durations)) / 1000
        seconds = max(min(_SECONDS, half), SHORTEST)
        resolved["seconds"] = seconds, "the usual window" if seconds == _SECONDS else "half of the median recording"
    if seconds == "recording":
        median = int(1000 * np.median(durations)) / 1000
        seconds = max(min(_LONGEST, median), SHORTEST)
        resolved["seconds"] = seconds, "the median recording" if seconds == median else "a part of most recordings"
    return int(rate), round(1000 * float(seconds))
