"""The range of pixels with more than 8 bits: which of their values become black and white."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.data.decode import inspect_samples
from sslkit.data.index import Index
from sslkit.image.decode import is_deep, open_header
from sslkit.image.formats import DeepImage, check_pixels

_LOW, _HIGH = 0.1, 99.9  # percentiles of a sample


@dataclass(frozen=True)
class PixelRange:
    """The values that become black and white; those beyond are cut off."""

    low: float
    high: float

    @classmethod
    def read(cls, text: str) -> "PixelRange":
        """Return the range in `LOW,HIGH`."""
        low, high = map(float, text.split(","))
        return cls(low, high)

    def __str__(self) -> str:
        return ",".join(repr(float(value)).removesuffix(".0") for value in (self.low, self.high))

    def __call__(self, values: NDArray[Any]) -> NDArray[np.uint16]:
        """Return values as 0 to 65,535; raises UnreadableSampleError if some are not finite."""
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UnreadableSampleError("contains NaN or infinite pixels")
        inside = values.astype(np.float64).clip(self.low, self.high)
        sixteen_bits: NDArray[np.uint16] = np.rint((inside - self.low) / (self.high - self.low) * 65535).astype(np.uint16)
        return sixteen_bits


@dataclass(frozen=True)
class _Values:
    """What is known of the values of one sample."""

    dtype: np.dtype[Any]
    least: float
    largest: float
    low: float  # percentiles
    high: float
    window: tuple[float, float] | None = None  # what the file asks for

    @classmethod
    def of(cls, values: NDArray[Any], window: tuple[float, float] | None = None) -> "_Values":
        low, high = np.percentile(values[np.isfinite(values)], [_LOW, _HIGH])
        return cls(values.dtype, float(values.min()), float(values.max()), float(low), float(high), window)


def choose_range(index: Index, option: str) -> tuple[PixelRange | None, str]:
    """Return the range that `--range` means for this data, and the reason; None if 200 samples have 8 bits.

    `auto` is the range of the type of unsigned integers, or, if the 99.9th percentiles of all samples lie below a quarter of
    it, from 0 to the largest of them. Of signed integers and floats, and for `data`, it is from the least 0.1st to the
    largest 99.9th percentile; of DICOM files with a window it is the median of these. Raises SslkitError for `dtype` with
    floats, and for samples that are all alike.
    """
    if option not in ("auto", "dtype", "data"):
        return PixelRange.read(option), "as given, for pixels of more than 8 bits"
    samples = _look(index)
    if not samples:
        return None, ""
    windows = [sample.window for sample in samples if sample.window is not None]
    if option == "auto" and windows:
        low, high = (_rounded(float(np.median(ends))) for ends in zip(*windows, strict=True))
        return PixelRange(low, high), f"the median window of {len(windows)} samples"
    largest = max(sample.largest for sample in samples)
    kinds = {sample.dtype for sample in samples}
    # Pillow reads some files of 16 bits into 32.
    top = _top(kinds, min(sample.least for sample in samples) >= 0 and largest < 2**16)
    high = max(sample.high for sample in samples)
    if option == "dtype" or (option == "auto" and top is not None and high >= top / 4):
        if top is None:
            raise SslkitError(f"the pixels of {index.source} are {_type_names(kinds)}", "name LOW,HIGH, or data", flag="range")
        return PixelRange(0, top), f"the range of {top.bit_length()} bits"
    low = 0.0 if option == "auto" and top is not None else min(sample.low for sample in samples)
    if not low < high:
        raise SslkitError(
            f"the pixels of {len(samples)} samples of {index.source} are all {low:g}", "name LOW,HIGH", flag="range"
        )
    start = "0" if low == 0 else f"the {_LOW}st percentile"
    low, high = _rounded(low), _rounded(high)
    return PixelRange(low, high), f"{start} to the {_HIGH}th percentile of {len(samples)} samples"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _top(kinds: set[np.dtype[Any]], fits_16_bits: bool) -> int | None:
    """Return the largest value of unsigned integers, None for signed ones and floats."""
    bits = [16 if kind == np.int32 and fits_16_bits else 8 * kind.itemsize for kind in kinds]
    unsigned = all(kind.kind == "u" or (kind == np.int32 and fits_16_bits) for kind in kinds)
    return 2 ** max(bits) - 1 if unsigned else None


def _type_names(kinds: set[np.dtype[Any]]) -> str:
    return " and ".join(sorted(kind.name for kind in kinds))


def _look(index: Index) -> list[_Values]:
    """Return the values of up to 200 samples that have more than 8 bits."""
    if index.array is not None:
        array = index.array
        return [] if array.dtype == np.uint8 else inspect_samples(index, lambda row: _Values.of(array[row]), "image")

    def look(row: int) -> _Values | None:
        with open_header(index, row) as image:
            if isinstance(image, DeepImage):
                values = image.read(index.page(row))
                return None if values.dtype == np.uint8 else _Values.of(values, image.window)
            if not is_deep(image):
                return None
            check_pixels(*image.size)
            image.seek(index.page(row))
            return _Values.of(np.asarray(image))

    return [values for values in inspect_samples(index, look, "image") if values is not None]
