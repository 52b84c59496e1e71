"""How much better one row of a result is than another."""

from dataclasses import dataclass

from sslkit.contract.result import Metric, Row


@dataclass(frozen=True)
class Gain:
    """How much better one row is than another, by the headline, with the 95% interval of the difference if there is one."""

    value: float
    low: float | None
    high: float | None
    metric: Metric

    @property
    def is_positive(self) -> bool:
        """Return whether the first row is better: by more than chance, if there is an interval."""
        return (self.value if self.low is None else self.low) > 0

    @property
    def is_negative(self) -> bool:
        """Return whether the first row is worse: by more than chance, if there is an interval."""
        return (self.value if self.high is None else self.high) < 0

    def amount(self) -> str:
        """Return how much better or worse the first row is, without a sign."""
        return f"{self._number(abs(self.value))}{self._unit}"

    def difference(self) -> str:
        """Return the signed difference of the headlines: below zero where the first row's is the lower one."""
        return f"{self._number(self.value if self.metric.higher_is_better else -self.value, '+')}{self._unit}"

    def interval(self) -> str:
        """Return the 95% interval in brackets: of the amount where it has one sign, else of the signed difference."""
        if self.low is None or self.high is None:
            return ""
        turned = self.is_negative if self.is_negative or self.is_positive else not self.metric.higher_is_better
        low, high = (-self.high, -self.low) if turned else (self.low, self.high)
        return f" (95% interval {self._number(low)} to {self._number(high)})"

    @property
    def _unit(self) -> str:
        return " points" if self.metric.unit == "share" else ""

    def _number(self, value: float, sign: str = "") -> str:
        """Return a value, of a share in percent; `sign` is that of Python's format, z drops that of a rounded zero."""
        return f"{100 * value:{sign}z.1f}" if self.metric.unit == "share" else f"{value:{sign}z.3f}"


def gain_over(row: Row, other: Row) -> Gain:
    """Return how much better a row is than another of the same test part: paired over samples where that was recorded."""
    ours, theirs = row.headline, other.headline
    paired = other.comparisons.get(row.model)
    low: float | None
    high: float | None
    if paired is not None and None not in (paired.difference, paired.low, paired.high):
        value, low, high = (0.0 - (end or 0.0) for end in (paired.difference, paired.high, paired.low))
    elif ours.low is not None and ours.high is not None:  # wider than a paired one: each end against the other's far end
        value = ours.value - theirs.value
        low = ours.low - (theirs.value if theirs.high is None else theirs.high)
        high = ours.high - (theirs.value if theirs.low is None else theirs.low)
    else:
        value, low, high = ours.value - theirs.value, None, None
    if ours.higher_is_better:
        return Gain(value, low, high, ours)
    return Gain(-value, None if high is None else -high, None if low is None else -low, ours)
