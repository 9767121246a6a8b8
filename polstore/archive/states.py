"""Decoding many snapshots of one store, one after the other, without decoding their common bases each time."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from polstore.archive.references import stored_snapshot
from polstore.codec import frames
from polstore.errors import DamagedError, MalformedError

if TYPE_CHECKING:
    from polstore.codec.snapshot import Snapshot
    from polstore.storage.store import Store

__all__ = ["States", "fetch_stored"]

KEPT = 2  # decoded snapshots that are held: the base in use and the one before it


class States:
    """Decoded snapshots of a store; every one was checked against its state digest."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: OrderedDict[bytes, Snapshot] = OrderedDict()

    def base(self, digest: bytes) -> Snapshot:
        """Return a snapshot that others are stored against, and keep it for a while.

        Raises:
            MissingError: it, one of its bases or one of their blobs is not there.
            DamagedError: it does not decode to what it should.
        """
        chain: list[bytes] = []
        wanted: bytes | None = digest
        while wanted is not None and wanted not in self._kept:
            if wanted in chain:
                raise DamagedError(f"snapshot {wanted.hex()} is stored against itself")
            chain.append(wanted)
            with self._store.read() as view:
                wanted = stored_snapshot(view, wanted).base
        snapshot = None if wanted is None else self._kept[wanted]
        for link in reversed(chain):
            stored, blobs = fetch_stored(self._store, link)
            snapshot = decode(stored, snapshot, blobs)
        if snapshot is None:
            raise DamagedError(f"snapshot {digest.hex()} is missing")
        self._kept[digest] = snapshot
        self._kept.move_to_end(digest)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return snapshot

    def decode(self, stored: frames.StoredSnapshot, blobs: dict[bytes, bytes]) -> Snapshot:
        """Decode a record with these blobs, whatever the store holds for it; raises as `base` does."""
        return decode(stored, None if stored.base is None else self.base(stored.base), blobs)


def fetch_stored(store: Store, digest: bytes) -> tuple[frames.StoredSnapshot, dict[bytes, bytes]]:
    """Return a stored snapshot's record and its blobs, hashed, from one view; raises `MissingError`, `DamagedError`."""
    with store.read() as view:
        stored = stored_snapshot(view, digest)
        return stored, {blob: view.get_blob(blob) for blob in stored.blobs}


def decode(stored: frames.StoredSnapshot, base: Snapshot | None, blobs: dict[bytes, bytes]) -> Snapshot:
    """Decode a record; raises `DamagedError` if it does not lead to its state digest."""
    try:
        return frames.decode(stored, base, blobs.__getitem__)
    except MalformedError as error:
        raise DamagedError(f"snapshot {stored.state_digest.hex()}: {error}") from error
