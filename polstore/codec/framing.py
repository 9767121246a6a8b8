"""The items of one group as frames, and back.

A frame is one byte plane: a byte that says how, then the plane as it is or as one zstd frame. What is compressed is
decompressed and compared at once, so no fault of zstd leaves this file. Unpacking takes hostile bytes: a frame's header
is read before anything is allocated. Implements specs/codec.md, the part on frames. Does no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import zstandard

from polstore.codec import planes
from polstore.errors import DamagedError, MalformedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from polstore.codec.snapshot import Array
    from polstore.codec.stored import StoredFrame, StoredGroup

__all__ = ["RAW", "ZSTD", "Packer", "Unpacker"]

RAW, ZSTD = 0, 1  # a frame's first byte
# What these planes hold is entropy and runs of zeros. Short matches, which zstd's level 1 looks for, come about by
# chance there, cost more than they save, and take three times as long to find.
_PARAMETERS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=8, chain_log=6, search_log=1, window_log=20,
    target_length=0, write_content_size=True,
)  # fmt: skip


class Packer:
    """Makes frames of items; holds the tables of one zstd compressor, for one thread."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(compression_params=_PARAMETERS)
        self._decompressor = zstandard.ZstdDecompressor()

    def pack(self, items: Array) -> list[bytes]:
        """Return unsigned integers (1-D) as one frame per byte plane, each compressed if that is smaller.

        Raises:
            DamagedError: a compressed plane does not decompress to itself, so memory or zstd is at fault.
        """
        found = []
        for plane in planes.split(items):
            compressed = self._compressor.compress(plane.data)
            if len(compressed) < plane.size:
                if not np.array_equal(np.frombuffer(self._decompressor.decompress(compressed), "|u1"), plane):
                    raise DamagedError("frame does not hold what was put into it: memory or zstd is at fault")
                found.append(b"".join((bytes((ZSTD,)), compressed)))
            else:
                found.append(b"".join((bytes((RAW,)), plane.data)))
        return found


class Unpacker:
    """Makes items of frames; for one thread."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()

    def unpack(self, group: StoredGroup, fetch: Callable[[bytes], bytes]) -> Array:
        """Return the items of a group (1-D unsigned integers), given what returns a frame by its SHA-256.

        Raises:
            MalformedError: a frame has another size than the record says, or does not hold one byte of every item.
        """
        return planes.join([self._plane(fetch(frame.digest), frame, group.count) for frame in group.frames])

    def _plane(self, frame: bytes, stored: StoredFrame, count: int) -> Array:
        if len(frame) != stored.size:
            raise MalformedError("size of a frame", expected=f"{stored.size} bytes", got=f"{len(frame)} bytes")
        body = memoryview(frame)[1:]
        if frame[0] == RAW:
            if len(body) != count:
                raise MalformedError("size of a raw frame", expected=f"{count} bytes", got=f"{len(body)} bytes")
            return np.frombuffer(body, "|u1")
        if frame[0] != ZSTD:
            raise MalformedError("first byte of a frame", expected=f"{RAW} or {ZSTD}", got=frame[0])
        try:
            declared = zstandard.get_frame_parameters(body).content_size
            if declared != count:
                raise MalformedError("content of a zstd frame", expected=f"{count} bytes", got=f"{declared} bytes")
            plane = self._decompressor.decompress(body, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise MalformedError(f"frame is not one zstd frame: {error}") from error
        if len(plane) != count:
            raise MalformedError("content of a zstd frame", expected=f"{count} bytes", got=f"{len(plane)} bytes")
        return np.frombuffer(plane, "|u1")
