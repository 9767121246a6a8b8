"""Decoding many snapshots of one store, one after the other, without decoding their common bases each time."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from polstore.archive.references import stored_snapshot
from polstore.codec import frames
from polstore.codec.chain import Chain
from polstore.errors import DamagedError, MalformedError

if TYPE_CHECKING:
    from polstore.codec.snapshot import Snapshot
    from polstore.storage.reader import Reader
    from polstore.storage.store import Store

__all__ = ["States", "fetch_stored"]

KEPT = 2  # decoded snapshots that are held: the base in use and the one before it


class States:
    """Decoded snapshots of a store; every one was checked against its state digest."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = Lock()
        self._view: Reader | None = None  # one view per base, so that its records and blobs fit together
        self._chain = Chain(
            lambda digest: stored_snapshot(self._open(), digest),
            self._blob,
            kept=KEPT,
        )

    def base(self, digest: bytes) -> Snapshot:
        """Return a snapshot that others are stored against, and keep it for a while.

        Raises:
            MissingError: it, one of its bases or one of their blobs is not there.
            DamagedError: it does not decode to what it should.
        """
        with self._store.read() as self._view:
            try:
                return self._chain.get(digest)
            except MalformedError as error:
                raise DamagedError(f"snapshot {digest.hex()}: {error}") from error
            finally:
                self._view = None

    def decode(self, stored: frames.StoredSnapshot, blobs: dict[bytes, bytes]) -> Snapshot:
        """Decode a record with these blobs, whatever the store holds for it; raises as `base` does."""
        base = None if stored.base is None else self.base(stored.base)
        try:
            return frames.decode(stored, base, blobs.__getitem__)
        except MalformedError as error:
            raise DamagedError(f"snapshot {stored.state_digest.hex()}: {error}") from error

    def _blob(self, digest: bytes) -> bytes:
        with self._lock:  # a view is for one thread at a time, and the codec fetches frames from several
            return self._open().get_blob(digest)

    def _open(self) -> Reader:
        assert self._view is not None  # noqa: S101  (the chain is used by `base` alone)
        return self._view


def fetch_stored(store: Store, digest: bytes) -> tuple[frames.StoredSnapshot, dict[bytes, bytes]]:
    """Return a stored snapshot's record and its blobs, hashed, from one view; raises `MissingError`, `DamagedError`."""
    with store.read() as view:
        stored = stored_snapshot(view, digest)
        return stored, {blob: view.get_blob(blob) for blob in stored.blobs}
