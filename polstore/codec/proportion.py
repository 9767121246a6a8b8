"""Rounding in proportion: up as often as the number is near the next one, so that on the average nothing is lost.

Rounding to nearest loses whatever changes by less than half a step in every snapshot, a small steady decay above all.
Here what a number has above its lower neighbour is compared with a threshold. The thresholds of a tensor are spread
evenly, element after element, by multiples of the golden ratio; where they begin follows from the tensor's name and the
snapshot's scalars, among them the step. So each element meets another threshold in every snapshot, and yet the same one
on every machine. Plain IEEE float32 and integer operations. Normative: implements specs/codec.md, section "Rounding in
proportion". Does no I/O.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from polstore.codec.snapshot import BLOCK, Array, bits
from polstore.codec.values import MIN_EXPONENT, UPPER_BITS

__all__ = [
    "FINE_BITS",
    "PLACE",
    "exponent_of_steps",
    "round_steps",
    "round_upper",
    "salt_of",
    "step_exponent",
    "tensor_key",
]

PLACE = 0x9E3779B1  # from one element's threshold to the next one's: odd, near 2^32 over the golden ratio
FINE_BITS = 12  # magnitudes are summed up as multiples of 2^-12 of the power of two above the largest
STEPS_PER_SPREAD = 4  # log2 of how many steps make up the root mean square of the deltas
MOST_STEPS = 14  # log2 of the steps that the largest delta may take: an item is 16 bits, sign included

_PLACES = (np.arange(BLOCK, dtype="<u8") * PLACE).astype("<u4")


def salt_of(scalars: bytes) -> bytes:
    """Return what makes the keys of one live snapshot: the SHA-256 of its canonical scalars, which hold the step."""
    return hashlib.sha256(scalars).digest()


def tensor_key(name: str, salt: bytes) -> int:
    """Return the key of a tensor: the first four bytes of the SHA-256 of salt and name, little-endian."""
    return int.from_bytes(hashlib.sha256(salt + name.encode()).digest()[:4], "little")


def step_exponent(delta: Array) -> int:
    """Return the exponent of a tensor's steps.

    Args:
        delta: 1-D ``<f4``, every element finite, at least one not zero.
    """
    top = math.frexp(max(float(delta.max()), -float(delta.min())))[1]
    squares = count = 0
    for start in range(0, delta.size, BLOCK):
        block = delta[start : start + BLOCK]
        fine = np.abs(block).astype("<f8")  # which holds the products below exactly, subnormal deltas too
        fine *= 2.0 ** (FINE_BITS - top)
        np.floor(fine, out=fine)
        squares += int(np.einsum("i,i", fine, fine))  # exact in any order: integers below 2^39
        count += int(np.count_nonzero(block))
    return exponent_of_steps(top, squares, count)


def exponent_of_steps(top: int, squares: int, count: int) -> int:
    """Return the exponent of a tensor's steps, given sums over its elements.

    Args:
        top: the largest magnitude is in [2^(top-1), 2^top).
        squares: the sum of the squares of ``floor(|d| · 2^(FINE_BITS - top))``.
        count: how many elements are not zero.
    """
    spread = 0  # the largest such that 4^spread · count <= 2 · squares
    if count <= 2 * squares:
        while count << 2 * (spread + 1) <= 2 * squares:
            spread += 1
    else:
        while count > 2 * squares << -2 * spread:
            spread -= 1
    return max(top - FINE_BITS + spread - STEPS_PER_SPREAD, top - MOST_STEPS, MIN_EXPONENT)


def round_steps(delta: Array, key: int, exponent: int) -> Array:
    """Return deltas as multiples of ``2^exponent``, rounded in proportion.

    Args:
        delta: 1-D ``<f4``, every element finite.
        key: of the tensor.
        exponent: what `step_exponent` returned for the whole tensor.

    Returns:
        1-D ``<i2``, at most 2^14 in magnitude.
    """
    steps = np.empty(delta.size, "<i2")
    scale = np.float32(2.0**-exponent)
    for start in range(0, delta.size, BLOCK):
        block = delta[start : start + BLOCK]
        threshold = _thresholds(block.size, key, start)
        threshold >>= np.uint32(8)  # 24 bits, which float32 holds
        between = threshold.astype("<f4")
        between *= np.float32(2.0**-24)
        magnitude = np.abs(block)
        magnitude *= scale
        magnitude += between
        whole = magnitude.astype("<i2")  # towards zero
        np.negative(whole, out=whole, where=block < 0)
        steps[start : start + BLOCK] = whole
    return steps


def round_upper(values: Array, key: int, dropped: int, *, keep_nonzero: bool) -> Array:
    """Round float32 in proportion to what is left without the low ``dropped`` bits.

    Args:
        values: 1-D ``<f4``. What comes out for NaN and infinities means nothing; finite values may become infinite.
        key: of the tensor.
        dropped: 16 or more.
        keep_nonzero: whether nothing but zero may become zero. Signs are kept in any case, that of zero too.

    Returns:
        The upper 16 bits of the words, the lower ones being 0; 1-D ``<u2``.
    """
    out = np.empty(values.size, "<u2")
    for start in range(0, values.size, BLOCK):
        word = bits(values[start : start + BLOCK])
        rounded = _thresholds(word.size, key, start)
        rounded >>= np.uint32(32 - dropped)
        rounded += word  # which reaches no finite number's sign
        rounded >>= np.uint32(dropped)
        if keep_nonzero:
            magnitude = np.uint32(0x7FFFFFFF)
            rounded |= (rounded & (magnitude >> np.uint32(dropped)) == 0) & (word & magnitude != 0)
        rounded <<= np.uint32(dropped - UPPER_BITS)
        out[start : start + BLOCK] = rounded
    return out


def _thresholds(count: int, key: int, start: int) -> Array:
    """Return the 32-bit thresholds of at most `BLOCK` elements, the first of which is element ``start``."""
    return _PLACES[:count] + np.uint32((key + start * PLACE) & 0xFFFFFFFF)
