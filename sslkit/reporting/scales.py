"""Scales, ticks and numbers of charts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Map values from `low` to `high` to places from `start` to `stop`, evenly or by logarithm."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def place(self, value: float) -> float:
        """Return the place of a value."""
        low, high, value = (math.log10(number) if self.log else number for number in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Return round values between low and high, `most` or about as many."""
        if self.log:
            return _log_ticks(self.low, self.high, most)
        step = _round_step((self.high - self.low) / most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        if first > last:  # no multiple lies between two that are further apart than low and high
            step /= 2
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def fit_scale(values: Sequence[float], start: float, stop: float, log: bool = False) -> Scale:
    """Return a scale with room for all values; of one value, around it."""
    low, high = min(values), max(values)
    if log and low > 0:
        return Scale(low / 1.1, high * 1.1, start, stop, log=True)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    # What never goes below zero has an axis that does not either.
    return Scale(max(low - room, 0.0) if low >= 0 else low - room, high + room, start, stop)


def spans_decades(values: Sequence[float]) -> bool:
    """Return whether values are better read on a logarithmic scale."""
    return min(values) > 0 and max(values) / min(values) > 50


def number_text(value: float, share: bool = False) -> str:
    """Return a number as people read it on an axis: 25%, 0.05, 1,200, 35k, 6e-5."""
    if share:
        return f"{100 * value:.3g}%" if abs(value) < 0.9995 else f"{100 * value:.4g}%"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 1e-3 or value == 0:
        return f"{value:.3g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def moving_average(values: Sequence[float]) -> list[float]:
    """Return the mean around each value, over a twentieth of all; the window is smaller at both ends."""
    half = max(1, len(values) // 40)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    averages = []
    for place in range(len(values)):
        reach = min(half, place, len(values) - 1 - place)
        averages.append((sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1))
    return averages


def _round_step(step: float) -> float:
    """Return the next larger of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return powers of ten, between them 2 and 5 where there are few, and fewer where there are many."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(exponents) <= 3 else (1,)
    ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return ticks[:: math.ceil(len(ticks) / most)] if len(ticks) > most + 1 else ticks
