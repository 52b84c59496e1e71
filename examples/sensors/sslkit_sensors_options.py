"""Data options of sensors, without torch: `--help` reads them."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sslkit import DataOptions

Window = Annotated[int, Field(ge=16, le=65_536)]


class SensorOptions(DataOptions):
    """Data options of recordings of several sensors."""

    modality: ClassVar = "sensors"
    noun: ClassVar = "recordings"
    accepts: ClassVar = "a .npy file of floats [recordings, sensors, time]"
    record: ClassVar = "sslkit_sensors:Sensors"

    window: Window | Literal["auto"] = Field(default="auto", description="Times of a recording that are used; auto: all.")

    def sample_size(self):
        """Return `--window`, None for auto."""
        return None if self.window == "auto" else self.window
