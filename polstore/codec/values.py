"""From items to values: the arithmetic that a writer and every reader share, bit for bit.

What a lossy scheme commits is what these functions return, so a writer calls them too and never commits the values that
it aimed for. Plain IEEE float32 operations, each rounded once, and integer operations; all NaN are one, which only a
hostile record leads to. Done block by block so that the temporaries stay in the cache. Implements the formulas of
specs/codec.md. Does no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polstore.codec import native
from polstore.codec.halves import from_halves
from polstore.codec.snapshot import BLOCK, Array, bits

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MAX_EXPONENT",
    "MAX_STEP_EXPONENT",
    "MIN_EXPONENT",
    "SHORT_DIFFERENCE_BITS",
    "SHORT_VALUE_BITS",
    "TOP_EXPONENT",
    "UPPER_BITS",
    "add_halves",
    "add_steps",
    "from_upper",
]

TOP_EXPONENT = 15  # the largest magnitude is scaled into [2^14, 2^15): rounding cannot reach 65 520, half's infinity
MIN_EXPONENT = -126  # 2^-126 and its inverse are both normal float32 numbers, so one multiplication scales
MAX_EXPONENT = 128 - TOP_EXPONENT  # of a magnitude just below 2^128
MAX_STEP_EXPONENT = 124  # what the rule for steps reaches with a largest magnitude just below 2^128
UPPER_BITS = 16  # low bits of float32 that bfloat16 does not have; its mantissa keeps 7
SHORT_VALUE_BITS = 20  # of which this leaves 3
SHORT_DIFFERENCE_BITS = 18  # and this 5


def add_halves(base: Array, halves: Array, exponent: int, out: Array | None = None) -> Array:
    """Return ``base + half · 2^exponent`` in float32, each operation rounded once (1-D ``<f4``)."""
    loop = None if native.compiled is None else native.compiled.add_halves
    return _add(base, halves, exponent, out, loop, from_halves)


def add_steps(base: Array, steps: Array, exponent: int, out: Array | None = None) -> Array:
    """Return ``base + step · 2^exponent`` in float32, each operation rounded once (steps 1-D ``<i2``)."""
    loop = None if native.compiled is None else native.compiled.add_steps
    return _add(base, steps, exponent, out, loop, _from_steps)


def from_upper(upper: Array, out: Array | None = None) -> Array:
    """Return the float32 (1-D ``<f4``) whose upper halves are ``upper`` (1-D ``<u2``, bfloat16), the rest being 0."""
    out = np.empty(upper.size, "<f4") if out is None else out
    if native.compiled is not None:
        native.compiled.from_upper(upper, out)
        return out
    word = bits(out)
    for start in range(0, upper.size, BLOCK):
        np.left_shift(upper[start : start + BLOCK], UPPER_BITS, out=word[start : start + BLOCK], dtype="<u4")
    return out


def _from_steps(steps: Array, out: Array) -> None:
    out[:] = steps


def _add(
    base: Array,
    items: Array,
    exponent: int,
    out: Array | None,
    loop: Callable[[Array, Array, Array, float], None] | None,
    floats: Callable[[Array, Array], object],
) -> Array:
    """Add scaled items to the base by a compiled loop, or with what turns items into floats."""
    out = np.empty(base.size, "<f4") if out is None else out
    if loop is not None:
        loop(base, items, out, 2.0**exponent)
        return out
    scale = np.float32(2.0**exponent)
    with np.errstate(all="ignore"):  # a hostile record may overflow; its digest will not match
        for start in range(0, base.size, BLOCK):
            block = slice(start, start + BLOCK)
            part = out[block]
            floats(items[block], part)
            part *= scale
            np.add(base[block], part, out=part)
            np.copyto(part, np.nan, where=np.isnan(part))  # which of two a processor passes on is nowhere laid down
    return out
