"""Snapshots to frames and back: what a store keeps and a bundle carries.

The names that the rest of the program uses; the work is done in `polstore.codec.encoding`, `polstore.codec.decoding`
and `polstore.codec.stored`. Implements "Stored snapshot" of specs/codec.md. Does no I/O.
"""

from __future__ import annotations

from polstore.codec.decoding import DEFAULT_MAX_BYTES, decode, decode_tensor
from polstore.codec.encoding import encode, encode_exactly, encode_parts
from polstore.codec.framing import RAW, ZSTD
from polstore.codec.stored import Encoding, StoredFrame, StoredGroup, StoredSnapshot, StoredTensor

__all__ = [
    "DEFAULT_MAX_BYTES",
    "RAW",
    "ZSTD",
    "Encoding",
    "StoredFrame",
    "StoredGroup",
    "StoredSnapshot",
    "StoredTensor",
    "decode",
    "decode_tensor",
    "encode",
    "encode_exactly",
    "encode_parts",
]
