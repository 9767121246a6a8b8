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
    round_mantissa,
    scale_halves,
)

if TYPE_CHECKING:
    from polstore.codec.snapshot import Array

__all__ = ["read_values", "write_items"]


def write_items(encoding: Encoding, dtype: str, source: Array, partner: Array | None, out: Array) -> None:
    """Make the items of a range of elements.

    Args:
        encoding: any but SAME.
        dtype: of the tensor.
        source: the halves or steps for the encodings made of such, else the committed values; 1-D.
        partner: the base's values of the same range, for those encodings that need them.
        out: 1-D unsigned integers, as many as there are elements.
    """
    for start in range(0, source.size, BLOCK):
        block = slice(start, start + BLOCK)
        out[block] = _items(encoding, dtype, source[block], None if partner is None else partner[block])


def _items(encoding: Encoding, dtype: str, source: Array, partner: Array | None) -> Array:
    if encoding is Encoding.STEPPED_DELTA:
        return planes.zigzag(source)
    pattern = bits(source)
    if encoding is Encoding.SHORT_VALUE:
        items = pattern >> np.uint32(31)
        items |= (pattern & np.uint32(0x7FFFFFFF)) >> np.uint32(SHORT_VALUE_BITS) << np.uint32(1)
        return items.astype("<u2")
    if partner is None or encoding in (Encoding.EXACT, Encoding.SCALED_DELTA, Encoding.SCALED_VALUE):
        return pattern
    if encoding is Encoding.SHORT_DIFFERENCE:
        integers = planes.ordered(pattern) >> SHORT_DIFFERENCE_BITS
        integers -= planes.ordered(bits(partner)) >> SHORT_DIFFERENCE_BITS
        return planes.zigzag(integers.astype("<i2"))  # from -2^15 + 1 to 2^15 - 1
    if encoding is Encoding.ROUNDED_DIFFERENCE:
        integers = planes.ordered(pattern) >> DROPPED_BITS
        integers -= planes.ordered(bits(round_mantissa(partner))) >> DROPPED_BITS
        return planes.zigzag(integers)
    return planes.zigzag(_integers(pattern, dtype) - _integers(bits(partner), dtype))


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
            bits(out[block])[:] = _pattern(encoding, dtype, items[block], under)


def _pattern(encoding: Encoding, dtype: str, items: Array, partner: Array | None) -> Array:
    """Return the bits of the values."""
    if encoding is Encoding.SHORT_VALUE:
        wide = items.astype("<u4")
        pattern = wide << np.uint32(31)
        pattern |= (wide >> np.uint32(1) << np.uint32(SHORT_VALUE_BITS)) & np.uint32(0x7FFFFFFF)
        return pattern
    if encoding is Encoding.EXACT or partner is None:
        return items
    if encoding is Encoding.SHORT_DIFFERENCE:
        integers = planes.ordered(bits(partner)) >> SHORT_DIFFERENCE_BITS
        integers += planes.unzigzag(items)
        return _shifted(integers, SHORT_DIFFERENCE_BITS)
    if encoding is Encoding.ROUNDED_DIFFERENCE:
        integers = planes.ordered(bits(round_mantissa(partner))) >> DROPPED_BITS
        integers += planes.unzigzag(items)
        return _shifted(integers, DROPPED_BITS)
    differing = _integers(bits(partner), dtype) + planes.unzigzag(items)
    return planes.unordered(differing) if dtype in FLOATS else bits(differing)


def _shifted(integers: Array, dropped: int) -> Array:
    """Return the bits of floats whose ordered integers lack the low ``dropped`` bits."""
    pattern = planes.unordered(integers << dropped)
    pattern &= np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    return pattern


def _integers(pattern: Array, dtype: str) -> Array:
    """Return signed integers in the order of the numbers (of unsigned integers: the same bits)."""
    return planes.ordered(pattern) if dtype in FLOATS else pattern.view(f"<i{pattern.dtype.itemsize}")
