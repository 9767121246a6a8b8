"""Records of stored snapshots as they lie in the store: one zstd frame each.

Names and shapes of a model's tensors come again in every record and compress well; a record is 2 % of a small snapshot.
A record that an earlier version stored as it is begins like no zstd frame and is returned as it is. Does no I/O.
"""

from __future__ import annotations

import zstandard

from polstore.errors import DamagedError
from polstore.wire.bundle import MAX_STORED_SNAPSHOT

__all__ = ["pack_record", "unpack_record"]

LEVEL = 3  # of zstd: its own default; digests do not compress at any level
MAGIC = b"\x28\xb5\x2f\xfd"  # RFC 8878; canonical msgpack begins with 0x96 here


def pack_record(record: bytes) -> bytes:
    """Return a record as it is stored."""
    return zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(record)


def unpack_record(value: bytes, what: str) -> bytes:
    """Return the record that was stored.

    Args:
        value: what `pack_record` made, or a record itself.
        what: the thing being read, for the message.

    Raises:
        DamagedError: no sound zstd frame, or one of more than 256 MiB, which is seen before anything is allocated.
    """
    if not value.startswith(MAGIC):
        return value
    try:
        size = zstandard.get_frame_parameters(value).content_size
        if size > MAX_STORED_SNAPSHOT:  # a frame that does not state its size states the largest number there is
            raise DamagedError(f"{what} is damaged", expected=f"at most {MAX_STORED_SNAPSHOT} bytes", got=size)
        record = zstandard.ZstdDecompressor().decompress(value, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedError(f"{what} is damaged: {error}") from error
    if len(record) != size:
        raise DamagedError(f"{what} is damaged", expected=f"{size} bytes", got=f"{len(record)} bytes")
    return record
