"""Items of an encoding: what stands for each element in a stream, and the element that an item stands for.

Both directions, range by range of a tensor's elements and block by block inside, so that all temporaries stay in the
cache. Which encoding a tensor gets is decided in `polstore.codec.encoding`; the arithmetic of the lossy ones is in
`polstore.codec.values`. Implements the table of encodings in specs/codec.md. Does no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polstore.codec import planes
from polstore.codec.halves import BLOCK
from polstore.codec.snapshot import bits
from polstore.codec.stored import FLOATS, Encoding
from polstore.codec.values import (
    DROPPED_BITS,
    SHORT_DIFFERENCE_BITS,
    SHORT_VALUE_BITS,
    add_halves,
    add_steps,
    scale_halves,
)

if TYPE_CHECKING:
    from polstore.codec.snapshot import Array

_DROPPED = {Encoding.ROUNDED_DIFFERENCE: DROPPED_BITS, Encoding.SHORT_DIFFERENCE: SHORT_DIFFERENCE_BITS}  # low bits

__all__ = ["read_values", "write_items"]


def write_items(encoding: Encoding, dtype: str, source: Array, partner: Array | None, out: Array) -> bool:
    """Make the items of a range of elements.

    Args:
        encoding: any but SAME.
        dtype: of the tensor.
        source: the halves or steps for the encodings made of such, else the committed values; 1-D.
        partner: the base's values of the same range, for those encodings that need them.
        out: 1-D unsigned integers, as many as there are elements.

    Returns:
        Whether the items lead back to the source; if not, it has bits that the encoding drops.
    """
    good = True
    for start in range(0, source.size, BLOCK):
        block = slice(start, start + BLOCK)
        under = None if partner is None else _predicted(encoding, dtype, partner[block])
        good &= _write(encoding, dtype, source[block], under, out[block])
    return good


def read_values(encoding: Encoding, dtype: str, exponent: int, items: Array, partner: Array | None, out: Array) -> None:
    """Make the values of a range of elements; defined for all items, hostile ones too.

    Args:
        encoding: any but SAME.
        dtype: of the tensor.
        exponent: of the tensor.
        items: 1-D unsigned integers, as `write_items` makes them.
        partner: the base's values of the same range, for those encodings that need them.
        out: 1-D, in the carrier's dtype, as many as there are items.
    """
    for start in range(0, items.size, BLOCK):
        block = slice(start, start + BLOCK)
        under = None if partner is None else partner[block]
        if encoding is Encoding.SCALED_VALUE:
            scale_halves(items[block], exponent, out[block])
        elif encoding is Encoding.SCALED_DELTA and under is not None:
            add_halves(under, items[block], exponent, out[block])
        elif encoding is Encoding.STEPPED_DELTA and under is not None:
            add_steps(under, planes.unzigzag(items[block]), exponent, out[block])
        else:
            predicted = None if under is None else _predicted(encoding, dtype, under)
            bits(out[block])[:] = _pattern(encoding, dtype, items[block], predicted)


def _write(encoding: Encoding, dtype: str, source: Array, predicted: Array | None, out: Array) -> bool:
    if encoding is Encoding.STEPPED_DELTA:
        out[:] = planes.zigzag(source)
        return True
    pattern = bits(source)
    if encoding is Encoding.SHORT_VALUE:
        out[:] = (pattern >> np.uint32(SHORT_VALUE_BITS - 1)) & np.uint32(0xFFE)
        out |= (pattern >> np.uint32(31)).astype("<u2")
        return not np.bitwise_or.reduce(pattern) & ((1 << SHORT_VALUE_BITS) - 1)
    if predicted is None:
        out[:] = pattern
        return True
    integers = _integers(pattern, dtype)
    if encoding in _DROPPED:
        if np.bitwise_or.reduce(pattern) & ((1 << _DROPPED[encoding]) - 1):
            return False
        integers = integers >> _DROPPED[encoding]
    difference = integers - predicted
    out[:] = planes.zigzag(difference.astype(f"<i{out.dtype.itemsize}", copy=False))
    return np.array_equal(predicted + planes.unzigzag(out), integers)


def _predicted(encoding: Encoding, dtype: str, partner: Array) -> Array | None:
    """Return the signed integers that items are differences from; None if they are no differences."""
    if encoding in _DROPPED:
        return _integers(bits(partner), dtype) >> _DROPPED[encoding]
    return _integers(bits(partner), dtype) if encoding is Encoding.DIFFERENCE else None


def _pattern(encoding: Encoding, dtype: str, items: Array, predicted: Array | None) -> Array:
    """Return the bits of the values."""
    if encoding is Encoding.SHORT_VALUE:
        wide = items.astype("<u4")
        pattern = wide << np.uint32(31)
        wide >>= np.uint32(1)
        wide <<= np.uint32(SHORT_VALUE_BITS)
        wide &= np.uint32(0x7FFFFFFF)
        pattern |= wide
        return pattern
    if predicted is None:
        return items
    integers = predicted + planes.unzigzag(items)
    dropped = _DROPPED.get(encoding, 0)
    if dropped:
        integers <<= dropped
    pattern = planes.unordered(integers) if dtype in FLOATS else bits(integers)
    if dropped:  # which unordered() has set in negative numbers
        pattern &= np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    return pattern


def _integers(pattern: Array, dtype: str) -> Array:
    """Return signed integers in the order of the numbers (of unsigned integers: the same bits)."""
    return planes.ordered(pattern) if dtype in FLOATS else pattern.view(f"<i{pattern.dtype.itemsize}")
