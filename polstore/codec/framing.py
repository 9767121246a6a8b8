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
LEVEL = 1  # of zstd: 3 gains nothing on these planes, 9 takes ten times as long


class Packer:
    """Makes frames of items; holds the tables of one zstd compressor, for one thread."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
        self._decompressor = zstandard.ZstdDecompressor()

    def pack(self, items: Array) -> list[bytes]:
        """Return unsigned integers (1-D) as one frame per byte plane, each compressed if that is smaller.

        Raises:
            DamagedError: a compressed plane does not decompress to itself, so memory or zstd is at fault.
        """
        found = []
        for plane in planes.split(items):
            data = plane.tobytes()
            compressed = self._compressor.compress(data)
            if len(compressed) < len(data):
                if self._decompressor.decompress(compressed) != data:
                    raise DamagedError("frame does not hold what was put into it: memory or zstd is at fault")
                found.append(b"".join((bytes((ZSTD,)), compressed)))
            else:
                found.append(b"".join((bytes((RAW,)), data)))
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
