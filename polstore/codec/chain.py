"""Snapshots found by state digest and decoded from their bases, for a store and for a proof alike.

Knows no store and no bundle: it is given what finds a record and what fetches a frame. Every snapshot and tensor that
comes out was checked against its digest. Implements specs/codec.md, section "Chains". Does no I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakValueDictionary

from polstore.codec.decoding import DEFAULT_MAX_BYTES, decode_against, decode_tensor, require
from polstore.codec.stored import NEEDS_BASE
from polstore.errors import MalformedError, MissingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from polstore.codec.snapshot import Snapshot, Tensor
    from polstore.codec.stored import StoredSnapshot

__all__ = ["MAX_CHAIN", "Chain"]

MAX_CHAIN = 1024  # bases behind one snapshot; recorders make chains of 64 at most


class Chain:
    """Stored snapshots that may be encoded against one another.

    Args:
        record: returns the record of the snapshot with a state digest; what it raises passes through.
        fetch: returns a frame by its SHA-256; likewise. Called from several threads at once.
        kept: decoded snapshots that are held for the next one, bases first. Others are used again while somebody else
            holds them.

    Attributes:
        max_bytes: cap on the decoded size of a snapshot.
    """

    def __init__(
        self, record: Callable[[bytes], StoredSnapshot], fetch: Callable[[bytes], bytes], *, kept: int = 0
    ) -> None:
        self.max_bytes = DEFAULT_MAX_BYTES
        self._record = record
        self._fetch = fetch
        self._kept = kept
        self._held: OrderedDict[bytes, Snapshot] = OrderedDict()
        self._alive: WeakValueDictionary[bytes, Snapshot] = WeakValueDictionary()
        self._unchecked: WeakKeyDictionary[Snapshot, StoredSnapshot] = WeakKeyDictionary()  # bases, of these records

    def get(self, digest: bytes) -> Snapshot:
        """Return the snapshot with this state digest.

        Raises:
            MalformedError: a record or frame that does not lead to it, a circle, or too many bases.
        """
        snapshot = self._alive.get(digest)
        stored_whole = None if snapshot is None else self._unchecked.get(snapshot)
        if snapshot is not None and stored_whole is not None and len(snapshot.tensors) < len(stored_whole.tensors):
            snapshot = None  # decoded as a base, and only what was needed of it
        links: list[tuple[StoredSnapshot, frozenset[str] | None]] = []  # and the names that are wanted of each
        if snapshot is None:
            names: frozenset[str] | None = None
            for stored in self.records(digest):
                links.append((stored, names))
                rows = (row for row in stored.tensors if names is None or row.entry.name in names)
                names = frozenset(row.entry.name for row in rows if row.encoding in NEEDS_BASE)
                snapshot = None if stored.base is None else self._alive.get(stored.base)
                if snapshot is not None and names.issubset(snapshot.names):
                    break
                snapshot = None
        trusting = len(links) > 1 or snapshot in self._unchecked
        base: Snapshot | None = None
        try:
            while links:  # one by one, so that no more of them are held than are to come
                base, snapshot = snapshot, self._next(*links.pop(), snapshot, check=not links)
            if snapshot is None:
                raise MalformedError("no such snapshot", expected=digest, got=None)
            if snapshot in self._unchecked:
                require(self._unchecked[snapshot], snapshot)
                del self._unchecked[snapshot]
        except MalformedError:
            if trusting:
                self._blame(digest)
            raise
        self._hold(digest, snapshot)
        if base is not None:
            stored_base = self._unchecked.get(base)
            self._hold(base.digest() if stored_base is None else stored_base.state_digest, base)
        return snapshot

    def _next(
        self, stored: StoredSnapshot, names: frozenset[str] | None, base: Snapshot | None, *, check: bool
    ) -> Snapshot:
        """Decode a link; those that only serve as a base are not checked, since what comes out in the end is."""
        snapshot = decode_against(stored, base, self._fetch, max_bytes=self.max_bytes, check=check, only=names)
        if not check:
            self._unchecked[snapshot] = stored
        self._hold(stored.state_digest, snapshot)
        return snapshot

    def _blame(self, digest: bytes) -> None:
        """Decode a snapshot's whole chain anew, everything checked, and raise for the first link that is damaged."""
        snapshot: Snapshot | None = None
        for stored in reversed(list(self.records(digest))):
            try:
                snapshot = decode_against(stored, snapshot, self._fetch, max_bytes=self.max_bytes, check=True)
            except MalformedError as error:
                if stored.state_digest == digest:
                    raise
                raise MalformedError(
                    f"snapshot {stored.state_digest.hex()[:16]}, which it is stored against: {error}"
                ) from error

    def tensor(self, digest: bytes, name: str) -> Tensor:
        """Return one tensor of a snapshot; of the snapshot and its bases, only the frames that hold it are fetched.

        Raises:
            MissingError: the snapshot has no such tensor.
            MalformedError: as `get` does.
        """
        links: list[StoredSnapshot] = []
        for stored in self.records(digest):
            row = stored.row(name)
            if row is None and not links:
                raise MissingError(f"the snapshot has no tensor {name!r}")
            if row is None:
                break  # which decoding refuses
            links.append(stored)
            if row.encoding not in NEEDS_BASE:
                break
        found: Tensor | None = None
        while links:
            found = decode_tensor(links.pop(), name, found, self._fetch, max_bytes=self.max_bytes)
        if found is None:
            raise MalformedError("no such snapshot", expected=digest, got=None)
        return found

    def records(self, digest: bytes) -> Iterator[StoredSnapshot]:
        """Yield the record of a snapshot and those of its bases, nearest first; raises as `get` does."""
        seen: set[bytes] = set()
        wanted: bytes | None = digest
        while wanted is not None:
            if wanted in seen:
                raise MalformedError("a snapshot is stored against itself", got=wanted)
            if len(seen) > MAX_CHAIN:
                raise MalformedError("too many bases behind a snapshot", expected=f"at most {MAX_CHAIN}", got=digest)
            seen.add(wanted)
            stored = self._record(wanted)
            if stored.state_digest != wanted:
                raise MalformedError(
                    "stored snapshot is not the one it stands for", expected=wanted, got=stored.state_digest
                )
            yield stored
            wanted = stored.base

    def _hold(self, digest: bytes, snapshot: Snapshot) -> None:
        self._alive[digest] = snapshot
        self._held[digest] = snapshot
        self._held.move_to_end(digest)
        while len(self._held) > self._kept:
            self._held.popitem(last=False)
