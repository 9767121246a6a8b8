"""Byte planes, and integer differences that compress well: reversible rearrangements of bits.

A plane holds byte *i* of every element; the bytes of one plane resemble each other more than the bytes of one element.
The integer difference of two floating-point numbers is taken between *ordered* integers, whose order is that of the
numbers, so that close numbers have close integers. Everything here is a bijection on all bit patterns and wraps
around modulo 2^width. Implements the physical part of specs/codec.md. Does no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polstore.codec import native
from polstore.codec.snapshot import Array, bits

if TYPE_CHECKING:
    from collections.abc import Sequence

PEEK = 64  # numbers looked at before all are; where some are negative, one of these is as a rule

__all__ = ["join", "ordered", "split", "unordered", "unzigzag", "zigzag"]


def split(values: Array) -> list[Array]:
    """Return the byte planes of a 1-D array, lowest byte first; each a contiguous ``u1`` array."""
    size = values.dtype.itemsize
    if native.compiled is not None and size in (2, 4):
        room = np.empty(values.nbytes, "|u1")
        native.compiled.split(values, room, size)
        return list(room.reshape(size, -1))
    if size == 2:  # four times as fast as what follows
        return [values.astype("|u1"), (values >> 8).astype("|u1")]
    octets = values.view("|u1").reshape(-1, size)
    return [np.ascontiguousarray(octets[:, i]) for i in range(size)]


def join(planes: Sequence[Array]) -> Array:
    """Return the unsigned integers (1-D) whose byte planes, lowest first, are ``planes`` of equal size."""
    if native.compiled is not None and len(planes) in (2, 4):
        items = np.empty(planes[0].size, f"<u{len(planes)}")
        native.compiled.join(*planes, items)
        return items
    if len(planes) == 2:  # twice as fast as what follows
        out = planes[1].astype("<u2")
        out <<= 8
        out |= planes[0]
        return out
    octets = np.empty((planes[0].size, len(planes)), "|u1")
    for i, plane in enumerate(planes):
        octets[:, i] = plane
    return octets.reshape(-1).view(f"<u{len(planes)}")


def ordered(pattern: Array) -> Array:
    """Map the bits of IEEE floats to signed integers in the order of the numbers; -0.0 comes right before 0.0.

    Args:
        pattern: 1-D unsigned bits of float16, bfloat16, float32 or float64.

    Returns:
        1-D signed integers of the same width, which may share the memory of ``pattern``.
    """
    width = pattern.dtype.itemsize * 8
    signed = pattern.view(f"<i{pattern.dtype.itemsize}")
    if signed.size and signed[:PEEK].min() >= 0 and signed.min() >= 0:
        return signed  # second moments are never negative, and looking is cheaper than the rest
    mask = signed >> (width - 1)  # all ones for a negative number
    mask &= (1 << (width - 1)) - 1
    mask ^= signed
    return mask


def unordered(integers: Array) -> Array:
    """Undo `ordered`: return the unsigned bits."""
    return bits(ordered(bits(integers)))


def zigzag(difference: Array) -> Array:
    """Map signed integers 0, -1, 1, -2, … to unsigned 0, 1, 2, 3, …: small in either direction has high planes of 0."""
    out = difference >> (difference.dtype.itemsize * 8 - 1)
    out ^= difference << 1
    return bits(out)


def unzigzag(codes: Array) -> Array:
    """Undo `zigzag`: return the signed integers."""
    out = codes & 1
    np.negative(out, out=out)
    out ^= codes >> 1
    return out.view(f"<i{codes.dtype.itemsize}")
