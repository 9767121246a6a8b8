"""The files of a static archive: their names, and the two small formats that only they use.

An archive is a directory that any web server can serve: for each run its signed root and tiles, and shared by all runs
the stored snapshots and blobs. Salts are secret until they are published. Implements specs/archive-files.md; tiles are
`polstore.wire.tiles`. Does no I/O.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from polstore.errors import MalformedError
from polstore.wire import canonical
from polstore.wire.fields import Fields
from polstore.wire.manifest import RUN_NAME
from polstore.wire.text import from_decimal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DATASET",
    "HEAD",
    "MAX_SIZE_FILE",
    "SIZE",
    "blob_name",
    "decode_salts",
    "decode_size",
    "encode_salts",
    "encode_size",
    "longest_salts",
    "run_folder",
    "salts_name",
    "snapshot_name",
]

HEAD = "checkpoint"  # C2SP's name of the file that holds a log's signed head; here a run's signed root, too
DATASET = "dataset"  # folder of the dataset's tree, in a run's folder
SIZE = "size"
MAX_SIZE_FILE = 20  # bytes: 19 digits and a newline
_MAX_BYTES = 10**19 - 1
_SALTS_TAG = "polstore/salts/v1"
_MAX_SALTS = 2**24  # of one segment; its step records could not name many more within their own limit
_SALT_BYTES = 1 + 9 + 2 + 32  # array, index, header of the salt, salt: what a pair takes at most
_FRAME_BYTES = 1 + 1 + len(_SALTS_TAG) + 5  # array, tag, header of the array of pairs


def run_folder(run: str) -> str:
    """Return the folder of a run; raises `MalformedError` for a name that no run can have."""
    if re.fullmatch(RUN_NAME, run, re.ASCII) is None:
        raise MalformedError("name of a run", expected=f"text that matches {RUN_NAME}", got=run)
    return f"run/{run}"


def salts_name(segment: int) -> str:
    """Return the name, in a run's folder, of the salts of the samples that a segment used."""
    return f"salts/{segment}"


def snapshot_name(state_digest: bytes) -> str:
    """Return the name of a stored snapshot's record (specs/codec.md)."""
    return f"snapshot/{state_digest.hex()}"


def blob_name(digest: bytes) -> str:
    """Return the name of a blob."""
    return f"blob/{digest.hex()[:2]}/{digest.hex()}"


def longest_salts(count: int) -> int:
    """Return the most bytes that the salts of ``count`` samples take."""
    return _FRAME_BYTES + _SALT_BYTES * count


def encode_salts(salts: Sequence[tuple[int, bytes]]) -> bytes:
    """Return the bytes of salts as pairs of sample index and 32 bytes, ascending; raises `MalformedError`."""
    data = canonical.encode((_SALTS_TAG, tuple((index, salt) for index, salt in salts)))
    decode_salts(data)
    return data


def decode_salts(data: bytes) -> tuple[tuple[int, bytes], ...]:
    """Parse salts; raises `MalformedError`, also where their order is not strictly ascending."""
    fields = Fields(canonical.decode(data, limit=longest_salts(_MAX_SALTS), what="salts"), "salts", 2)
    fields.tag(_SALTS_TAG)
    salts = []
    for item in fields.array("salts", _MAX_SALTS):
        pair = Fields(item, "salt of a sample", 2)
        salts.append((pair.integer("index"), pair.digest("salt")))
    for (before, _), (after, _) in pairwise(salts):
        if before >= after:
            raise MalformedError("salts are not in ascending order, or not unique", got=after)
    return tuple(salts)


def encode_size(count: int) -> bytes:
    """Return the bytes of a size file: how many bytes a run takes in the archive."""
    return b"%d\n" % count


def decode_size(data: bytes) -> int:
    """Parse a size file; raises `MalformedError`."""
    if len(data) > MAX_SIZE_FILE or not data.endswith(b"\n") or not data.isascii():
        raise MalformedError("size of a run", expected="a decimal number and a newline", got=data[:MAX_SIZE_FILE])
    return from_decimal(data[:-1].decode("ascii"), "size of a run", _MAX_BYTES)
