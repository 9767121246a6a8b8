"""Finding and deleting what no run needs: blobs and stored snapshots left behind by copies, repacks and failures.

What is needed is found out and the rest deleted in one transaction, under the recording lock, so nothing that a
recording under way refers to can go. A record that cannot be read stops the whole of it, since what it needs is not
known. So does a damaged page or key, which could hide a whole run.
The data file does not shrink; LMDB uses the freed pages again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from polstore.archive.references import store_needs
from polstore.errors import DamagedError
from polstore.storage.survey import survey

if TYPE_CHECKING:
    from collections.abc import Callable

    from polstore.storage.reader import Reader
    from polstore.storage.store import Store
    from polstore.storage.writer import Writer

__all__ = ["Garbage", "collect", "find"]


@dataclass(frozen=True)
class Garbage:
    """What no run needs.

    Attributes:
        blobs: digests of blobs, ascending.
        blob_bytes: their size.
        snapshots: state digests of stored snapshots, ascending.
        snapshot_bytes: size of their records.
        kept: blobs that are needed.
        deleted: whether it is gone.
    """

    blobs: tuple[bytes, ...]
    blob_bytes: int
    snapshots: tuple[bytes, ...]
    snapshot_bytes: int
    kept: int
    deleted: bool

    def as_json(self) -> dict[str, Any]:
        """Return the findings as plain data."""
        return asdict(self)


def find(store: Store, progress: Callable[[str, int, int], None]) -> Garbage:
    """Return what `collect` would delete now; changes nothing and takes no lock.

    Args:
        store: an open store; may be recorded into meanwhile.
        progress: told (what is being read, done, in all).

    Raises:
        DamagedError: a page, key or record is damaged, so it is not known what is needed.
        MissingError: a stored snapshot that a run needs is not there.
    """
    _require_sound(store)
    with store.read() as view:
        return _find(view, progress, deleted=False)


def collect(store: Store, progress: Callable[[str, int, int], None]) -> Garbage:
    """Delete what no run needs and return what that was; all of it in one transaction.

    Arguments and errors as for `find`, and:

    Raises:
        LockedError: somebody is recording into the store.
        FullError: no room on the device, which even deleting needs; nothing has changed.
    """

    def work(transaction: Writer) -> Garbage:
        garbage = _find(transaction, progress, deleted=True)
        for done, digest in enumerate(garbage.blobs, 1):
            transaction.delete_blob(digest)
            progress("deleting blobs", done, len(garbage.blobs))
        for digest in garbage.snapshots:
            transaction.delete_stored_snapshot(digest)
        return garbage

    with store.exclusive():
        _require_sound(store)
        return store.write(work)


def _require_sound(store: Store) -> None:
    """Require that every key of every run can be seen: one flipped bit can hide many, and LMDB has no checksums."""
    with survey(store) as found:
        for what, error, _ in found.faults():
            raise DamagedError(f"in a damaged store nothing is known to be garbage, see polstore fsck: {what}: {error}")


def _find(view: Reader, progress: Callable[[str, int, int], None], *, deleted: bool) -> Garbage:
    needs = store_needs(view, view.runs(), progress)
    needed = needs.blobs()
    blobs, kept, blob_bytes, snapshot_bytes = [], 0, 0, 0
    for digest in view.blob_digests():
        if digest in needed:
            kept += 1
        else:
            blobs.append(digest)
            blob_bytes += view.blob_size(digest)
    snapshots = [digest for digest in view.stored_snapshot_digests() if digest not in needs.snapshots]
    for digest in snapshots:
        snapshot_bytes += view.stored_snapshot_size(digest)
    return Garbage(tuple(blobs), blob_bytes, tuple(snapshots), snapshot_bytes, kept, deleted)
