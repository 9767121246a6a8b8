"""Storing a run's snapshot 0 against the last one of its parent, so that inherited tensors are stored once.

Where both runs are in one store, that is; a store needs no other. It changes how the snapshot is stored, and nothing
that is committed: snapshot 0 is quantised without a base as ever. Whoever needs a snapshot of the child then needs its
snapshot 0, the parent's last and whatever that is stored against.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polstore.codec import frames
from polstore.errors import DamagedError, MalformedError

if TYPE_CHECKING:
    from polstore.codec.snapshot import Snapshot
    from polstore.storage.reader import Reader
    from polstore.storage.store import Store
    from polstore.storage.writer import Writer

__all__ = ["MAX_BEHIND", "store_inherited"]

# Snapshots behind the parent's last; with more, a child stands by itself, so that lines of runs stay readable.
MAX_BEHIND = 64


def store_inherited(store: Store, initial: Snapshot, parent: Snapshot) -> bool:
    """Store ``initial`` against ``parent`` if the store has that; return whether it did.

    To be called before the run is begun, which finds the snapshot there and leaves it as it is. What a crash in between
    leaves behind is garbage that `polstore gc` collects. The caller holds the recording lock.

    Raises:
        DamagedError: a record that cannot be read.
        FullError: no room on the device.
    """
    with store.read() as view:
        if view.has_snapshot(initial.digest()) or not _serves(view, parent.digest()):
            return False
    stored, blobs = frames.encode_exactly(initial, parent)

    def work(transaction: Writer) -> None:
        for digest, frame in blobs.items():
            transaction.put_blob(frame, digest)
        transaction.put_stored_snapshot(stored.state_digest, stored.encode())

    store.write(work)
    return True


def _serves(view: Reader, digest: bytes) -> bool:
    """Return whether a snapshot is there, with few others behind it."""
    wanted: bytes | None = digest
    for _ in range(MAX_BEHIND + 1):
        if wanted is None:
            break
        if not view.has_snapshot(wanted):
            return False
        wanted = _base(view, wanted)
    return wanted is None


def _base(view: Reader, digest: bytes) -> bytes | None:
    try:
        return frames.StoredSnapshot.parse(view.stored_snapshot(digest)).base
    except MalformedError as error:
        raise DamagedError(f"record of snapshot {digest.hex()}: {error}") from error
