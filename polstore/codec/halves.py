"""Exact conversion between float32 and the bits of float16, with integer operations.

numpy's own cast runs at 60 MB/s on machines without the instruction for it; this one needs no such instruction and is
never slower. Rounding is to nearest, ties to even; halves below 2^-14 keep their subnormal precision of 2^-24. Used by
`polstore.codec.quantise`; specs/codec.md has the definition. Does no I/O.
"""

from __future__ import annotations

import numpy as np

from polstore.codec.snapshot import BLOCK, Array, bits

__all__ = ["from_halves", "to_halves"]

_SMALLEST_NORMAL = 0x38800000  # float32 bits of 2^-14, the smallest normal half
_ROUND = np.uint32((0xFFF - (112 << 23)) % 2**32)  # just under half a unit, and the exponent's bias 127 turned to 15
_FLOATS = np.arange(1 << 16, dtype="<u2").view("<f2").astype("<f4")  # every half there is


def to_halves(values: Array) -> Array:
    """Round float32 values to float16.

    Args:
        values: 1-D ``<f4``, every element finite and below 65 520 in magnitude, the first value that would round to
            infinity. Other elements give meaningless bits.

    Returns:
        1-D ``<u2``, the bits of the halves.
    """
    halves = np.empty(values.size, "<u2")
    for start in range(0, values.size, BLOCK):
        word = bits(values[start : start + BLOCK])
        magnitude = word & np.uint32(0x7FFFFFFF)
        rounded = magnitude >> np.uint32(13)
        rounded &= np.uint32(1)  # a tie goes up just where that makes the result even
        rounded += magnitude
        rounded += _ROUND
        rounded >>= np.uint32(13)
        # The unit in the last place of [0.5, 1) is 2^-24, so adding 0.5 rounds to the subnormal halves' spacing.
        small = bits(magnitude.view("<f4") + np.float32(0.5))
        small -= np.uint32(0x3F000000)
        np.copyto(rounded, small, where=magnitude < np.uint32(_SMALLEST_NORMAL))
        sign = word >> np.uint32(16)
        sign &= np.uint32(0x8000)
        rounded |= sign
        halves[start : start + BLOCK] = rounded
    return halves


def from_halves(halves: Array, out: Array | None = None) -> Array:
    """Return the float32 values (1-D ``<f4``) of float16 bits (1-D ``<u2``); exact for every half."""
    return np.take(_FLOATS, halves, out=out, mode="clip")  # every index is in range, and "raise" takes twice as long
