"""One byte plane as one frame, and back.

A frame is a byte that says how, then the plane as it is or as one zstd frame. What is packed is unpacked and compared
at once, so a frame that leaves this file leads back to its plane. Unpacking takes hostile bytes: a frame's header is
read before anything is allocated. Implements specs/codec.md, the part on frames. Does no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import zstandard

from polstore.codec.snapshot import Array
from polstore.errors import DamagedError, MalformedError

if TYPE_CHECKING:
    from polstore.codec.stored import StoredFrame

__all__ = ["RAW", "ZSTD", "Packer", "Unpacker"]

RAW, ZSTD = 0, 1  # a frame's first byte
LEVEL = 1  # of zstd: 3 gains nothing on these planes, 9 takes ten times as long


class Packer:
    """Makes frames of planes; holds the tables of one zstd compressor, for one thread."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
        self._decompressor = zstandard.ZstdDecompressor()

    def pack(self, plane: Array) -> bytes:
        """Return a plane (1-D ``u1``) as a frame, compressed if that is smaller.

        Raises:
            DamagedError: decompressing did not give back what was compressed, so memory or zstd is at fault.
        """
        compressed = self._compressor.compress(plane.data)
        if len(compressed) >= plane.size:
            return b"".join((bytes((RAW,)), plane.data))
        again = np.frombuffer(self._decompressor.decompress(compressed), "|u1")
        if not np.array_equal(plane, again):
            raise DamagedError("a plane does not decompress to what was compressed: memory or zstd is at fault")
        return b"".join((bytes((ZSTD,)), compressed))


class Unpacker:
    """Makes planes of frames; for one thread."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()

    def unpack(self, frame: bytes, stored: StoredFrame, count: int) -> Array:
        """Return the ``count`` bytes of a frame's plane (1-D ``u1``).

        Raises:
            MalformedError: the frame has another size than the record says, or does not hold that many bytes.
        """
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
