"""Copying runs from one store into another, everything hashed and every snapshot decoded on the way.

Snapshots and blobs go first, each in a transaction of its own, and refer to nothing; then the run appears, or grows, in
one transaction. So a copy that was stopped has changed no run, and copying again takes up what is there already. What
both stores hold is not copied, and neither is the ledger: it is the log of what was signed in one store. Hashes and
state digests are checked; signatures are not: that needs a key and is polverify's part.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from polstore.archive.references import RunNeeds, run_needs, stored_snapshot
from polstore.archive.states import States, fetch_stored
from polstore.errors import DamagedError, ExistsError, MalformedError, MissingError, UsageError
from polstore.run_row import RunRow
from polstore.wire.checkpoint import parse_text
from polstore.wire.note import parse as parse_note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from polstore.storage.reader import Reader
    from polstore.storage.store import Store
    from polstore.storage.writer import Writer

__all__ = ["Copied", "copy_runs"]

BATCH = 16 << 20  # bytes of small blobs that are put in one transaction


@dataclass
class Copied:
    """What was copied of one run.

    Attributes:
        run: its name.
        segments: segments that the destination has of it now.
        added: how many of those are new there.
        snapshots: stored snapshots that were copied and decoded.
        blobs: blobs that were copied.
        bytes: their size.
        roots: signed roots that were copied.
    """

    run: str
    segments: int = 0
    added: int = 0
    snapshots: int = 0
    blobs: int = 0
    bytes: int = 0
    roots: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _Extent:
    """A run as one view of the source shows it; what is added later is left for the next copy."""

    name: str
    row: RunRow
    leaves: tuple[bytes, ...]
    tree_root: bytes
    roots: dict[int, bytes]
    needs: RunNeeds


def copy_runs(
    source: Store, destination: Store, run: str | None, progress: Callable[[str, int, int], None]
) -> list[Copied]:
    """Copy runs with all that they need.

    Args:
        source: an open store; may be recorded into meanwhile. What it holds at the first look is copied.
        destination: another store, open for writing.
        run: the run to copy; None for all.
        progress: told (what is being copied, done, in all).

    Returns:
        what was copied, run by run.

    Raises:
        UsageError: both are the same store.
        MissingError: no such run, or something that it needs is not in the source.
        DamagedError: something in the source is damaged. No run of the destination has changed, but for runs before it.
        ExistsError: the destination has another run of that name; nothing has changed.
        LockedError: somebody is recording into the destination.
        FullError: no room on the device; copy again once there is some.
    """
    if source.is_same(destination):
        raise UsageError(f"source and destination are the same store, {source.path}")
    with destination.exclusive():
        with source.read() as view:
            names = view.runs()
            if run is not None and run not in names:
                raise MissingError(f"no run {run} in the store", expected=", ".join(names) or "a run", got=run)
            extents = [_extent(view, name) for name in (names if run is None else [run])]
        with destination.read() as view:
            for extent in extents:
                _require_prefix(view, extent)
        job = _Job(source, destination, progress)
        return [job.copy(extent) for extent in extents]


def _extent(view: Reader, name: str) -> _Extent:
    """Read and check what a run is, apart from its blobs and snapshots."""
    row = _row(view, name)
    leaves = tuple(view.leaves(name))
    roots = {size: view.root(name, size) for size in view.roots(name)}
    for size, text in roots.items():
        root = view.tree_root(name, size)
        try:
            signed = parse_text(parse_note(text).text)
        except MalformedError as error:
            raise DamagedError(f"signed root of size {size} of run {name}: {error}") from error
        if (signed.size, signed.root) != (size, root):
            raise DamagedError(f"signed root of size {size} of run {name}", expected=root, got=signed.root)
    return _Extent(name, row, leaves, view.tree_root(name, len(leaves)), roots, run_needs(view, name))


def _row(view: Reader, name: str) -> RunRow:
    try:
        return RunRow.parse(view.run(name))
    except MalformedError as error:
        raise DamagedError(f"run {name}: {error}") from error


def _require_prefix(view: Reader, extent: _Extent) -> None:
    """Require that what the destination has of a run is a part of it, or that it has all of it and more."""
    name = extent.name
    if name not in view.runs():
        return
    what = f"another run {name} is in the destination already"
    row = _row(view, name)
    if (row.salt, row.sample_hashes) != (extent.row.salt, extent.row.sample_hashes):
        raise ExistsError(f"{what}, with other sample hashes or another salt")
    for index, (ours, theirs) in enumerate(zip(extent.leaves, view.leaves(name), strict=False)):
        if ours != theirs:
            raise ExistsError(f"{what}, with another {'manifest' if index == 0 else f'segment {index - 1}'}")
    for size in set(view.roots(name)) & extent.roots.keys():
        if view.root(name, size) != extent.roots[size]:
            raise ExistsError(f"{what}, with another signed root over {size} leaves")


class _Job:
    """One copy between two stores."""

    def __init__(self, source: Store, destination: Store, progress: Callable[[str, int, int], None]) -> None:
        self._source = source
        self._destination = destination
        self._progress = progress
        self._states = States(source)

    def copy(self, extent: _Extent) -> Copied:
        """Copy one run."""
        copied = Copied(extent.name)
        needs = extent.needs
        what = f"copying snapshots of {extent.name}"
        for done, digest in enumerate(dict.fromkeys(needs.snapshots.values()), 1):
            while chain := self._missing_chain(digest):
                self._copy_snapshot(chain[0], copied)
            self._progress(what, done, len(needs.snapshots))
        self._copy_blobs(needs, copied)

        def work(transaction: Writer) -> tuple[int, int]:
            return _put_run(transaction, extent)

        copied.added, copied.roots = self._destination.write(work)
        with self._destination.read() as view:
            copied.segments = max(view.leaf_count(extent.name) - 1, 0)
        return copied

    def _missing_chain(self, digest: bytes) -> list[bytes]:
        """Return what the destination lacks of a snapshot and those it is stored against, bases first."""
        chain: list[bytes] = []
        wanted: bytes | None = digest
        with self._source.read() as source, self._destination.read() as destination:
            while wanted is not None and not destination.has_snapshot(wanted):
                if wanted in chain:
                    raise DamagedError(f"snapshot {wanted.hex()} is stored against itself")
                chain.append(wanted)
                wanted = stored_snapshot(source, wanted).base
        return chain[::-1]

    def _copy_snapshot(self, digest: bytes, copied: Copied) -> None:
        """Copy a snapshot whose base the destination has; do nothing where a repack has just given it another."""
        stored, blobs = fetch_stored(self._source, digest)
        if stored.base is not None:
            with self._destination.read() as view:
                if not view.has_snapshot(stored.base):
                    return
        self._states.decode(stored, blobs)  # leads to the state digest, or raises

        def work(transaction: Writer) -> tuple[int, int]:
            added = _put_blobs(transaction, blobs)
            transaction.put_stored_snapshot(digest, stored.encode())
            return added

        count, size = self._destination.write(work)
        copied.snapshots += 1
        copied.blobs += count
        copied.bytes += size

    def _copy_blobs(self, needs: RunNeeds, copied: Copied) -> None:
        """Copy the blobs that the run itself refers to."""
        with self._source.read() as source, self._destination.read() as destination:
            wanted = [blob for blob in needs.possible - needs.blobs if source.has_blob(blob)]
            lacking = sorted(blob for blob in needs.blobs.union(wanted) if not destination.has_blob(blob))
        done = 0
        for batch in self._batches(lacking):
            count, size = self._destination.write(lambda transaction: _put_blobs(transaction, batch))  # noqa: B023 # called at once
            copied.blobs += count
            copied.bytes += size
            done += len(batch)
            self._progress(f"copying blobs of {copied.run}", done, len(lacking))

    def _batches(self, digests: Iterable[bytes]) -> Iterator[dict[bytes, bytes]]:
        batch: dict[bytes, bytes] = {}
        size = 0
        for digest in digests:
            with self._source.read() as view:
                batch[digest] = view.get_blob(digest)
            size += len(batch[digest])
            if size >= BATCH:
                yield batch
                batch, size = {}, 0
        if batch:
            yield batch


def _put_blobs(transaction: Writer, blobs: dict[bytes, bytes]) -> tuple[int, int]:
    """Put blobs and return how many were new, and their size."""
    new = [blob for digest, blob in blobs.items() if not transaction.has_blob(digest)]
    for blob in blobs.values():
        transaction.put_blob(blob)
    return len(new), sum(map(len, new))


def _put_run(transaction: Writer, extent: _Extent) -> tuple[int, int]:
    """Make the run appear or grow; return how many segments and signed roots are new."""
    name = extent.name
    _require_prefix(transaction, extent)
    have = transaction.leaf_count(name) if name in transaction.runs() else 0
    if have < len(extent.leaves):
        # A run under recording goes on where it was recorded; its copy can be resumed as well, from what it has.
        transaction.put_run(name, extent.row.encode())
    elif have == len(extent.leaves) and extent.row.complete:
        transaction.put_run(name, replace(extent.row, complete=True).encode())
    for leaf in islice(extent.leaves, have, None):
        transaction.append_leaf(name, leaf)
    for step, digest in extent.needs.snapshots.items():
        transaction.put_snapshot(name, step, digest)
    got = transaction.tree_root(name, len(extent.leaves))
    if got != extent.tree_root:
        raise DamagedError(f"tree of the copied run {name}", expected=extent.tree_root, got=got)
    roots = 0
    present = set(transaction.roots(name))
    for size, text in extent.roots.items():
        transaction.put_root(name, size, text)
        roots += size not in present
    return max(len(extent.leaves) - max(have, 1), 0), roots
