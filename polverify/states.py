"""The snapshots that a bundle carries, found by state digest and decoded from their bases.

Each is checked against its digest when it is decoded; the few that were used last are kept. Implements
specs/verification.md, check 9, part "snapshots".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polstore.codec.chain import Chain
from polstore.codec.frames import StoredSnapshot
from polstore.errors import MalformedError
from polstore.wire.bundle import MAX_STORED_SNAPSHOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from polstore.codec.snapshot import Snapshot

__all__ = ["States"]

STATE_FACTOR = 16  # largest decoded state over the recipe's initial one, which lacks only what the optimizer adds
STATE_SLACK = 64 * 2**20  # bytes on top of that, for small models
KEPT = 4  # decoded snapshots: a segment's base, start and end, and what its start was quantised against


class States:
    """The stored snapshots of one bundle.

    Args:
        stored: their records.
        fetch: returns a frame by its SHA-256.

    Raises:
        MalformedError: a record that does not parse, or records out of order.
    """

    def __init__(self, stored: Iterable[bytes], fetch: Callable[[bytes], bytes]) -> None:
        self._chain = Chain(self._record, fetch, kept=KEPT)
        self._stored: dict[bytes, StoredSnapshot] = {}
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

    def __contains__(self, digest: bytes) -> bool:
        """Say whether the bundle carries the snapshot with this state digest."""
        return digest in self._stored

    def limit(self, initial_bytes: int) -> None:
        """Refuse from now on to decode snapshots far beyond the size of the recipe's initial state, in bytes."""
        self._chain.max_bytes = STATE_FACTOR * initial_bytes + STATE_SLACK

    def closure(self, wanted: set[bytes]) -> set[bytes]:
        """Require exactly the snapshots ``wanted`` with their bases and return the digests of all their frames.

        Raises:
            MalformedError: one is missing, one is of no use, or bases form a circle.
        """
        seen: set[bytes] = set()
        for digest in sorted(wanted):
            seen.update(stored.state_digest for stored in self._chain.records(digest))
        unused = self._stored.keys() - seen
        if unused:
            raise MalformedError("bundle carries a snapshot that nothing needs", expected=None, got=min(unused))
        return {frame for digest in seen for frame in self._stored[digest].blobs}

    def get(self, digest: bytes) -> Snapshot:
        """Return the snapshot with this state digest; raises `MalformedError`."""
        return self._chain.get(digest)

    def _record(self, digest: bytes) -> StoredSnapshot:
        if digest not in self._stored:
            raise MalformedError("bundle lacks a snapshot", expected=digest, got=None)
        return self._stored[digest]
