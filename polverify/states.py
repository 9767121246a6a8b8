"""The snapshots that a bundle carries, found by state digest and decoded from their bases.

Each is checked against its digest when it is decoded; the few that were used last are kept. Implements
specs/verification.md, check 9, part "snapshots".
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from polstore.codec.frames import DEFAULT_MAX_BYTES, StoredSnapshot, decode
from polstore.errors import MalformedError
from polstore.wire.bundle import MAX_STORED_SNAPSHOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from polstore.codec.snapshot import Snapshot

__all__ = ["States"]

MAX_CHAIN = 1024  # bases behind one snapshot; a recorder makes chains of one
KEPT = 3  # decoded snapshots: a segment's base, start and end


class States:
    """The stored snapshots of one bundle.

    Args:
        stored: their records.
        fetch: returns a frame by its SHA-256.

    Raises:
        MalformedError: a record that does not parse, or records out of order.
    """

    def __init__(self, stored: Iterable[bytes], fetch: Callable[[bytes], bytes]) -> None:
        self._fetch = fetch
        self._stored: dict[bytes, StoredSnapshot] = {}
        self._decoded: OrderedDict[bytes, Snapshot] = OrderedDict()
        self._max_bytes = DEFAULT_MAX_BYTES
        last = b""
        for data in stored:
            if len(data) > MAX_STORED_SNAPSHOT:
                raise MalformedError("stored snapshot is too long", expected=MAX_STORED_SNAPSHOT, got=len(data))
            snapshot = StoredSnapshot.parse(data)
            if snapshot.state_digest <= last:
                raise MalformedError(
                    "stored snapshots are not in ascending order, or not unique", got=snapshot.state_digest
                )
            last = snapshot.state_digest
            self._stored[last] = snapshot

    def limit(self, max_bytes: int) -> None:
        """Refuse from now on to decode snapshots of more than ``max_bytes`` bytes."""
        self._max_bytes = max_bytes

    def closure(self, wanted: set[bytes]) -> set[bytes]:
        """Require exactly the snapshots ``wanted`` with their bases and return the digests of all their frames.

        Raises:
            MalformedError: one is missing, one is of no use, or bases form a circle.
        """
        seen: set[bytes] = set()
        for digest in sorted(wanted):
            seen.update(stored.state_digest for stored in self._chain(digest))
        unused = self._stored.keys() - seen
        if unused:
            raise MalformedError("bundle carries a snapshot that nothing needs", expected=None, got=min(unused))
        return {frame for digest in seen for frame in self._stored[digest].blobs}

    def get(self, digest: bytes) -> Snapshot:
        """Return the snapshot with this state digest; raises `MalformedError`."""
        if digest in self._decoded:
            self._decoded.move_to_end(digest)
            return self._decoded[digest]
        snapshot: Snapshot | None = None
        for stored in reversed(self._chain(digest)):
            ready = self._decoded.get(stored.state_digest)
            snapshot = ready if ready is not None else self._decode(stored, snapshot)
            self._decoded[stored.state_digest] = snapshot
            self._decoded.move_to_end(stored.state_digest)
            while len(self._decoded) > KEPT:
                self._decoded.popitem(last=False)
        return self._decoded[digest]

    def _decode(self, stored: StoredSnapshot, base: Snapshot | None) -> Snapshot:
        return decode(stored, base, self._fetch, max_bytes=self._max_bytes)

    def _chain(self, digest: bytes) -> list[StoredSnapshot]:
        chain: list[StoredSnapshot] = []
        wanted: bytes | None = digest
        while wanted is not None:
            if wanted not in self._stored:
                raise MalformedError("bundle lacks a snapshot", expected=wanted, got=None)
            if len(chain) == MAX_CHAIN:
                raise MalformedError("too many bases behind a snapshot", expected=f"at most {MAX_CHAIN}", got=digest)
            chain.append(self._stored[wanted])
            wanted = chain[-1].base
        return chain
