"""Items of an encoding: what stands for each element in a stream, and the element that an item stands for.

Both directions, range by range of a tensor's elements and block by block inside, so that all temporaries stay in the
cache. Which encoding a tensor gets is decided in `polstore.codec.encoding`; the arithmetic of the lossy ones is in
`polstore.codec.values`. Implements the table of encodings in specs/codec.md. Does no I/O.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from polstore.codec import native, planes
from polstore.codec.snapshot import BLOCK, bits
from polstore.codec.stored import FLOATS, TWO_BYTES, Encoding
from polstore.codec.values import SHORT_DIFFERENCE_BITS, UPPER_BITS, add_halves, add_steps, from_upper

if TYPE_CHECKING:
    from polstore.codec.snapshot import Array

__all__ = ["read_values", "write_items"]

_AS_IT_IS = frozenset({Encoding.EXACT, Encoding.SCALED_DELTA})  # the source's bits are the items
_COMPILED = TWO_BYTES - _AS_IT_IS  # with loops of their own; so has DIFFERENCE, of float32


def write_items(encoding: Encoding, dtype: str, source: Array, partner: Array | None, out: Array) -> bool:
    """Make the items of a range of elements.

    Args:
        encoding: any but SAME.
        dtype: of the tensor.
        source: the items of `polstore.codec.quantise.Quantised` for the encodings that are for float32 alone, else the
            committed values; 1-D.
        partner: the base's values of the same range, for the two differences.
        out: 1-D unsigned integers, as many as there are elements.

    Returns:
        Whether the items lead back to the source; if not, it has bits that the encoding drops.
    """
    write = _write_compiled if _has_loops(encoding, dtype, partner) else partial(_write, dtype)
    good = True
    for start in range(0, source.size, BLOCK):
        block = slice(start, start + BLOCK)
        under = None if partner is None else partner[block]
        good &= write(encoding, source[block], under, out[block])
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
    read = _read_compiled if _has_loops(encoding, dtype, partner) else partial(_read, dtype)
    for start in range(0, items.size, BLOCK):
        block = slice(start, start + BLOCK)
        under = None if partner is None else partner[block]
        read(encoding, exponent, items[block], under, out[block])


def _has_loops(encoding: Encoding, dtype: str, partner: Array | None) -> bool:
    """Say whether compiled loops do the work."""
    if native.compiled is None or (partner is None and encoding is not Encoding.BFLOAT16):
        return False
    return encoding in _COMPILED or (encoding is Encoding.DIFFERENCE and dtype == "float32")


def _write_compiled(encoding: Encoding, source: Array, partner: Array | None, out: Array) -> bool:
    if encoding is Encoding.STEPPED_DELTA:
        native.compiled.zigzag_steps(source, out)
        return True
    if encoding is Encoding.BFLOAT16 or partner is None:
        native.compiled.rotate_left(source, out)
        return True
    back = np.empty(source.size, "<u4")
    if encoding is Encoding.SHORT_DIFFERENCE:
        native.compiled.short_difference(source, partner, out)
        native.compiled.from_short_difference(out, partner, back)
        return np.array_equal(back, source.astype("<u4") << UPPER_BITS)
    native.compiled.difference(source, partner, out)
    native.compiled.from_difference(out, partner, back)
    return np.array_equal(back, bits(source))


def _read_compiled(encoding: Encoding, exponent: int, items: Array, partner: Array | None, out: Array) -> None:
    if encoding is Encoding.BFLOAT16 or partner is None:
        native.compiled.from_rotated(items, out)
    elif encoding is Encoding.STEPPED_DELTA:
        steps = np.empty(items.size, "<i2")
        native.compiled.unzigzag_steps(items, steps)
        add_steps(partner, steps, exponent, out)
    elif encoding is Encoding.SHORT_DIFFERENCE:
        native.compiled.from_short_difference(items, partner, out)
    else:
        native.compiled.from_difference(items, partner, out)


def _read(dtype: str, encoding: Encoding, exponent: int, items: Array, partner: Array | None, out: Array) -> None:
    if encoding is Encoding.BFLOAT16:
        from_upper(_rotated(items, 15), out)
    elif partner is None or encoding is Encoding.EXACT:
        bits(out)[:] = items
    elif encoding is Encoding.SCALED_DELTA:
        add_halves(partner, items, exponent, out)
    elif encoding is Encoding.STEPPED_DELTA:
        add_steps(partner, planes.unzigzag(items), exponent, out)
    else:
        bits(out)[:] = _pattern(encoding, dtype, items, _predicted(encoding, dtype, partner))


def _write(dtype: str, encoding: Encoding, source: Array, partner: Array | None, out: Array) -> bool:
    if encoding is Encoding.STEPPED_DELTA:
        out[:] = planes.zigzag(source)
        return True
    if encoding is Encoding.BFLOAT16:
        out[:] = _rotated(source, 1)
        return True
    if partner is None or encoding in _AS_IT_IS:
        out[:] = bits(source)
        return True
    predicted = _predicted(encoding, dtype, partner)
    integers = _integers(bits(source), dtype)
    if encoding is Encoding.SHORT_DIFFERENCE:
        left = SHORT_DIFFERENCE_BITS - UPPER_BITS
        if np.bitwise_or.reduce(source) & ((1 << left) - 1):
            return False
        integers = integers >> left
    difference = integers - predicted
    out[:] = planes.zigzag(difference.astype(f"<i{out.dtype.itemsize}", copy=False))
    return np.array_equal(predicted + planes.unzigzag(out), integers)


def _rotated(words: Array, count: int) -> Array:
    """Return 16-bit words rotated left: by 1 the exponent is a byte by itself, and the sign comes last."""
    out = words << count
    out |= words >> (16 - count)
    return out


def _predicted(encoding: Encoding, dtype: str, partner: Array) -> Array:
    """Return the signed integers that items are differences from."""
    integers = _integers(bits(partner), dtype)
    return integers >> SHORT_DIFFERENCE_BITS if encoding is Encoding.SHORT_DIFFERENCE else integers


def _pattern(encoding: Encoding, dtype: str, items: Array, predicted: Array) -> Array:
    """Return the bits of the values."""
    integers = predicted + planes.unzigzag(items)
    short = encoding is Encoding.SHORT_DIFFERENCE
    if short:
        integers <<= SHORT_DIFFERENCE_BITS
    pattern = planes.unordered(integers) if dtype in FLOATS else bits(integers)
    if short:  # unordered() has set the low bits of negative numbers
        pattern &= np.uint32(0xFFFFFFFF << SHORT_DIFFERENCE_BITS & 0xFFFFFFFF)
    return pattern


def _integers(pattern: Array, dtype: str) -> Array:
    """Return signed integers in the order of the numbers (of unsigned integers: the same bits)."""
    return planes.ordered(pattern) if dtype in FLOATS else pattern.view(f"<i{pattern.dtype.itemsize}")
