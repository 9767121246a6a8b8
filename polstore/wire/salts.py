"""The salts of the samples that one segment used, as a static archive publishes them.

With them, and with the hash tiles of the dataset's tree, a reader can prove its own samples against the committed root.
They are secret until they are published. Implements "Salts" of specs/archive-files.md. Does no I/O.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from polstore.errors import MalformedError
from polstore.wire import canonical
from polstore.wire.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["decode_salts", "encode_salts", "longest"]

TAG = "polstore/salts/v1"
MAX_SALTS = 2**24  # of one segment, as many as its step records can name within their own limit
_SALT_BYTES = 1 + 9 + 2 + 32  # array, index, header of the salt, salt: what a pair takes at most
_FRAME_BYTES = 1 + 1 + len(TAG) + 5  # array, tag, header of the array of pairs


def longest(count: int) -> int:
    """Return the most bytes that the salts of ``count`` samples take."""
    return _FRAME_BYTES + _SALT_BYTES * count


def encode_salts(salts: Sequence[tuple[int, bytes]]) -> bytes:
    """Return the bytes of salts as pairs of sample index and 32 bytes, ascending; raises `MalformedError`."""
    data = canonical.encode((TAG, tuple((index, salt) for index, salt in salts)))
    decode_salts(data)
    return data


def decode_salts(data: bytes) -> tuple[tuple[int, bytes], ...]:
    """Parse salts; raises `MalformedError`, also where their order is not strictly ascending."""
    fields = Fields(canonical.decode(data, limit=longest(MAX_SALTS), what="salts"), "salts", 2)
    fields.tag(TAG)
    salts = []
    for item in fields.array("salts", MAX_SALTS):
        pair = Fields(item, "salt of a sample", 2)
        salts.append((pair.integer("index"), pair.digest("salt")))
    for (before, _), (after, _) in pairwise(salts):
        if before >= after:
            raise MalformedError("salts are not in ascending order, or not unique", got=after)
    return tuple(salts)
