"""Geometry of the report's charts: numbers in, places on a plot out.

A plot is a square of `SIDE` units that the page stretches to its own width and height, so that labels, which are text
of the page and not of the drawing, stay readable in a narrow window. Draws nothing and knows no HTML.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SIDE", "Axis", "dots", "linear_axis", "log_axis"]

SIDE = 1000  # units of a plot's width and height; three digits are finer than any screen
MAX_TICKS = 6
MAX_DECADES = 40  # beyond this the rest of a log axis is one line at its end: float32 norms span less


@dataclass(frozen=True)
class Axis:
    """A vertical axis.

    Attributes:
        low: value at the bottom, or its logarithm.
        high: at the top.
        log: whether these are logarithms to base 10.
        ticks: (label, distance from the top in percent).
    """

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[str, float], ...]

    def place(self, value: float) -> float:
        """Return the distance from the top, 0 to `SIDE`.

        What has no place of its own lies at an end: zero and minus infinity at the bottom, infinity and NaN at the top.
        """
        if math.isnan(value):
            return 0.0
        if self.log:
            value = math.log10(value) if value > 0 else -math.inf
        part = (value - self.low) / (self.high - self.low) if math.isfinite(value) else math.copysign(math.inf, value)
        return round(SIDE * (1 - min(max(part, 0.0), 1.0)), 1)


def log_axis(values: Sequence[float]) -> Axis:
    """Return a logarithmic axis over the positive finite values, from one power of ten to another."""
    exponents = [math.log10(value) for value in values if value > 0 and math.isfinite(value)]
    high = math.ceil(max(exponents, default=0.0))
    low = max(math.floor(min(exponents, default=-1.0)), high - MAX_DECADES)
    if low == high:
        low -= 1
    step = -(-(high - low) // (MAX_TICKS - 1))
    ticks = tuple(
        (f"1e{exponent}", round(100 * (high - exponent) / (high - low), 2)) for exponent in range(high, low - 1, -step)
    )
    return Axis(low, high, log=True, ticks=ticks)


def linear_axis(values: Sequence[float]) -> Axis:
    """Return a linear axis over the finite values."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if not high - low > abs(high) * 1e-12 or not math.isfinite(high - low):
        middle = low / 2 + high / 2
        spread = max(abs(middle), 1.0) / 2 if math.isfinite(high - low) else 1e307
        low, high = middle - spread, middle + spread
    count = MAX_TICKS - 2
    ticks = tuple((f"{high - (high - low) * part / count:.3g}", 100 * part / count) for part in range(count + 1))
    return Axis(low, high, log=False, ticks=ticks)


def dots(places: Sequence[tuple[float, float]]) -> str:
    """Return the path of dots: lines of no length, whose round ends stay round however the plot is stretched."""
    return "".join(f"M{x:g} {y:g}h0" for x, y in places)
