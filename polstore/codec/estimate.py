"""Whether a tensor is stored smaller as it is or as differences from its partner, estimated from a sample.

Differences are small where values change little from snapshot to snapshot, as weights do. Two first moments ten steps
apart have little in common, and then the difference has more bits to it than the value. Only the size of what is stored
depends on this, never what it decodes to. Does no I/O.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from polstore.codec import planes
from polstore.codec.items import write_items
from polstore.codec.snapshot import bits
from polstore.codec.stored import Encoding

if TYPE_CHECKING:
    from polstore.codec.snapshot import Array

__all__ = ["SAMPLE", "smaller_as_difference"]

SAMPLE = 1024  # elements looked at; tensors with fewer take so little that looking would cost more

# Where in a tensor they stand. Steps of one size could hit the same column of a matrix in every row.
_SHARES = np.arange(SAMPLE) * ((math.sqrt(5) - 1) / 2) % 1


def smaller_as_difference(dtype: str, values: Array, partner: Array) -> bool:
    """Say whether the planes of DIFFERENCE promise to be no larger than those of EXACT.

    Args:
        dtype: of the tensor, one that has differences.
        values: of the tensor, 1-D in the carrier's dtype.
        partner: the base's values, likewise, as many.
    """
    if values.size < SAMPLE:
        return True
    places = (_SHARES * values.size).astype(np.intp)
    own, base = values[places], partner[places]
    difference = np.empty_like(bits(own))
    write_items(Encoding.DIFFERENCE, dtype, own, base, difference)
    return _entropy(difference) <= _entropy(bits(own))


def _entropy(items: Array) -> float:
    """Return the entropy of an item in bits, taking its bytes for independent."""
    found = 0.0
    for plane in planes.split(items):
        counts = np.bincount(plane, minlength=256)
        share = counts[counts > 0] / plane.size
        found -= float(np.dot(share, np.log2(share)))
    return found
