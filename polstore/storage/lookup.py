"""What reading a store needs of whatever holds its keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["Lookup"]


class Lookup(Protocol):
    """Finding values by their keys: in an LMDB transaction, or in its data file read without LMDB."""

    path: Path

    def get(self, key: bytes) -> bytes | None:
        """Return a copy of a value, or None."""

    def get_many(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return copies of the values of many keys, in their order, up to the first key that is missing."""

    def size(self, key: bytes) -> int | None:
        """Return the length of a value in bytes, without reading it, or None."""

    def last(self, prefix: bytes) -> bytes | None:
        """Return the last key that begins with ``prefix``, or None."""

    def last_before(self, end: bytes, prefix: bytes) -> bytes | None:
        """Return the last key below ``end`` that begins with ``prefix``, or None."""

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield all keys that begin with ``prefix``, in order."""
