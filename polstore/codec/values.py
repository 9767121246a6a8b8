"""From items to values: the arithmetic that a writer and every reader share, bit for bit.

What a lossy scheme commits is what these functions return, so a writer calls them too and never commits the values that
it aimed for. Plain IEEE float32 operations, each rounded once, and integer operations; done block by block so that the
temporaries stay in the cache. Implements the formulas of specs/codec.md. Does no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polstore.codec.halves import BLOCK, from_halves
from polstore.codec.snapshot import Array, bits

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DROPPED_BITS",
    "MAX_EXPONENT",
    "MAX_STEP_EXPONENT",
    "MIN_EXPONENT",
    "SHORT_DIFFERENCE_BITS",
    "SHORT_VALUE_BITS",
    "TOP_EXPONENT",
    "add_halves",
    "add_steps",
    "round_mantissa",
    "scale_halves",
]

TOP_EXPONENT = 15  # the largest magnitude is scaled into [2^14, 2^15): rounding cannot reach 65 520, half's infinity
MIN_EXPONENT = -126  # 2^-126 and its inverse are both normal float32 numbers, so one multiplication scales
MAX_EXPONENT = 128 - TOP_EXPONENT  # of a magnitude just below 2^128
MAX_STEP_EXPONENT = 124  # what the rule for steps reaches with a largest magnitude just below 2^128
DROPPED_BITS = 13  # low bits of float32's 23-bit mantissa that leave 10
SHORT_VALUE_BITS = 20  # of which this leaves 3
SHORT_DIFFERENCE_BITS = 17  # and this 6


def add_halves(base: Array, halves: Array, exponent: int, out: Array | None = None) -> Array:
    """Return ``base + half · 2^exponent`` in float32, each operation rounded once (1-D ``<f4``)."""
    return _add(base, halves, exponent, out, from_halves)


def add_steps(base: Array, steps: Array, exponent: int, out: Array | None = None) -> Array:
    """Return ``base + step · 2^exponent`` in float32, each operation rounded once (steps 1-D ``<i2``)."""
    return _add(base, steps, exponent, out, lambda block: block.astype("<f4"))


def scale_halves(halves: Array, exponent: int, out: Array | None = None) -> Array:
    """Return ``half · 2^exponent`` in float32, rounded once (1-D ``<f4``)."""
    out = np.empty(halves.size, "<f4") if out is None else out
    scale = np.float32(2.0**exponent)
    with np.errstate(all="ignore"):
        for start in range(0, halves.size, BLOCK):
            np.multiply(from_halves(halves[start : start + BLOCK]), scale, out=out[start : start + BLOCK])
    return out


def round_mantissa(values: Array) -> Array:
    """Round float32 (1-D ``<f4``) to 10 bits of mantissa, ties to even; sign and zero are kept, nothing else becomes 0.

    What comes out for NaN and infinities means nothing; finite values may become infinite.
    """
    out = np.empty(values.size, "<u4")
    for start in range(0, values.size, BLOCK):
        word = bits(values[start : start + BLOCK])
        magnitude = word & np.uint32(0x7FFFFFFF)
        rounded = magnitude >> np.uint32(DROPPED_BITS)
        rounded &= np.uint32(1)
        rounded += magnitude
        rounded += np.uint32((1 << (DROPPED_BITS - 1)) - 1)
        rounded >>= np.uint32(DROPPED_BITS)
        np.maximum(rounded, magnitude != 0, out=rounded)
        rounded <<= np.uint32(DROPPED_BITS)
        rounded |= word & np.uint32(0x80000000)
        out[start : start + BLOCK] = rounded
    return out.view("<f4")


def _add(base: Array, items: Array, exponent: int, out: Array | None, floats: Callable[[Array], Array]) -> Array:
    out = np.empty(base.size, "<f4") if out is None else out
    scale = np.float32(2.0**exponent)
    with np.errstate(all="ignore"):  # a hostile record may overflow; its digest will not match
        for start in range(0, base.size, BLOCK):
            part = floats(items[start : start + BLOCK])
            part *= scale
            np.add(base[start : start + BLOCK], part, out=out[start : start + BLOCK])
    return out
