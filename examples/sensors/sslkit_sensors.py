"""Time series for sslkit: recordings of several sensors, an encoder for them, and a task that fills in gaps."""

import hashlib
import math
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from sslkit_sensors_options import SensorOptions
from torch import nn

from sslkit import DataInfo, Encoder, Modality, PretextTask, Source, SslkitError, TaskOptions


class SensorSource(Source):
    """Hold recordings; a batch has `signal`, float32 `[B, sensors, window]`."""

    noun = SensorOptions.noun

    def __init__(self, location, signals):
        self.location, self.signals, self.resolved = location, signals, {}
        self.info = DataInfo(len(signals), size=signals.shape[2], channels=signals.shape[1], modality="sensors")

    @classmethod
    def open(cls, spec):
        """Open `--data`."""
        try:
            signals = np.load(spec.data, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise SslkitError(f"cannot read {spec.data}: {error}", f"expected {SensorOptions.accepts}", flag="data") from error
        if signals.ndim != 3 or not np.issubdtype(signals.dtype, np.floating):
            raise SslkitError(
                f"{spec.data} holds {signals.dtype} of shape {signals.shape}", f"expected {SensorOptions.accepts}", flag="data"
            )
        window = spec.table(SensorOptions).window
        length = signals.shape[2] if window == "auto" else window
        if length > signals.shape[2]:
            raise SslkitError(f"{length} exceeds the {signals.shape[2]} times of a recording", "use fewer", flag="window")
        source = cls(spec.data, signals[:, :, :length].astype(np.float32))
        if window == "auto":
            source.resolved["window"] = length, "whole recordings"
        return source

    @classmethod
    def example(cls, folder, samples):
        """Write made-up recordings: each a few waves that all its sensors see, with noise."""
        path = folder / "recordings.npy"
        np.save(path, make_recordings(samples))
        return str(path)

    def fingerprint(self):
        """Return a hash of all values."""
        return hashlib.sha256(np.ascontiguousarray(self.signals).data).hexdigest()[:16]

    def read(self, rows, draw=None):
        """Return `signal` of some recordings; one with values that are not finite is broken."""
        signal = self.signals[rows]
        bad = np.flatnonzero(~np.isfinite(signal).all(axis=(1, 2)))
        return {"signal": signal}, {int(place): "values that are not finite" for place in bad}

    def view(self, batch, encodes):
        """Return the signal; there is nothing to crop."""
        return batch["signal"]


class Sensors(Modality):
    """What sslkit asks of recordings of several sensors."""

    options = SensorOptions
    source = SensorSource
    small_options: ClassVar = {"sensor_net": {"width": "16"}}

    def default_encoder(self, info, requires, on_cpu):
        """Return the only one there is."""
        return "sensor_net", "the encoder of sensors"

    def small_encoder(self, requires, exact):
        """Return the only one there is."""
        return "sensor_net"


class SensorNet(Encoder):
    """Stack convolutions along time; no BatchNorm, so that micro-batches and processes change nothing."""

    modality: ClassVar = "sensors"
    provides = ("pooled", "steps")
    sample_dims = 2

    def __init__(self, in_channels, width):
        super().__init__(width, in_channels)
        self.stack = nn.Sequential(
            nn.Conv1d(in_channels, width, 7, padding=3), nn.GELU(), nn.GroupNorm(4, width),
            nn.Conv1d(width, width, 7, padding=9, dilation=3), nn.GELU(), nn.GroupNorm(4, width),
            nn.Conv1d(width, width, 7, padding=27, dilation=9), nn.GELU(),
        )  # fmt: skip

    def steps(self, signal):
        """Return features at every time, `[B, width, time]`."""
        return self.stack(signal)

    def forward(self, signal):
        """Return features `[B, width]`."""
        return self.steps(signal).mean(dim=2)


def sensor_net(in_channels, size, width=64):
    """Dilated convolutions along time, width 64."""
    return SensorNet(in_channels, width)


class FillGaps(PretextTask):
    """Fill in gaps of a recording from what is around them."""

    class Options(TaskOptions):
        """Options of `fill_gaps`."""

        gaps: int = Field(default=4, ge=1, le=64, description="Gaps in a recording; they may overlap.")
        gap_length: int = Field(default=12, ge=1, description="Length of a gap.")

    modality: ClassVar = "sensors"
    requires: ClassVar = ("steps",)
    defaults: ClassVar = {"lr": 3e-3, "batch_size": 64}

    def build_head(self):
        """Build a linear map from features to sensors, at every time."""
        return nn.Conv1d(self.encoder.width, self.data.channels, 1)

    def transform(self, batch):
        """Return recordings with gaps, what they were, and where the gaps are, bool `[B, time]`."""
        signal = batch["signal"]
        time = torch.arange(signal.shape[2], device=signal.device)
        start = torch.randint(signal.shape[2], (len(signal), self.options.gaps, 1), device=signal.device)
        hidden = ((time >= start) & (time < start + self.options.gap_length)).any(dim=1)
        return {"signal": signal.where(~hidden[:, None], 0), "target": signal, "hidden": hidden}

    def predict(self, batch):
        """Return what was there, `[B, sensors, time]`."""
        return self.head(self.encoder.steps(batch["signal"]))

    def loss(self, output, batch):
        """Return the squared error summed over hidden times: gaps overlap, so their number varies."""
        error = (output - batch["target"]).square().mean(dim=1)
        return {"error": (error * batch["hidden"]).sum()}

    def counts(self, batch):
        """Return the number of hidden times."""
        return {"error": batch["hidden"].sum()}


def make_recordings(samples, sensors=3, time=128):
    """Return made-up recordings `[samples, sensors, time]`, the same ones every time."""
    random = np.random.default_rng(0)
    rate = random.uniform(1, 6, (samples, 2, 1))
    phase = random.uniform(0, 2 * math.pi, (samples, 2, 1))
    waves = np.sin(2 * math.pi * rate * np.linspace(0, 1, time) + phase)  # [samples, 2, time]
    mix = random.normal(size=(samples, sensors, 2))
    return (mix @ waves + 0.05 * random.normal(size=(samples, sensors, time))).astype(np.float32)


if __name__ == "__main__":
    np.save(sys.argv[1], make_recordings(512))
    print(f"wrote {Path(sys.argv[1]).resolve()}")
