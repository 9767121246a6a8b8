"""How much a store holds, and what the bytes are: per run and for the store as a whole.

Reads records and the lengths of blobs, not the blobs. Changes nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from polstore.archive.references import store_needs
from polstore.errors import MissingError
from polstore.storage.opening import DATA_FILE

if TYPE_CHECKING:
    from collections.abc import Callable

    from polstore.archive.references import Needs
    from polstore.storage.reader import Reader
    from polstore.storage.store import Store

__all__ = ["RunStats", "StoreStats", "stats"]


@dataclass
class RunStats:
    """One run in numbers; all sizes in bytes.

    Attributes:
        run: its name.
        snapshots: how many it has.
        segments: how many it has.
        keyframes: those of its stored snapshots that need no base.
        logical: size of its snapshots' tensors and scalars, as so many files without compression would hold.
        stored: blobs and snapshot records that it needs, each once.
        ratio: logical by stored.
        blobs: how many it needs.
        shared: how many of those another run needs, too.
        shared_bytes: their size.
        encodings: size of the frames by encoding; a frame that two encodings share counts for both.
    """

    run: str
    snapshots: int = 0
    segments: int = 0
    keyframes: int = 0
    logical: int = 0
    stored: int = 0
    ratio: float = 0.0
    blobs: int = 0
    shared: int = 0
    shared_bytes: int = 0
    encodings: dict[str, int] = field(default_factory=dict)


@dataclass
class StoreStats:
    """A store in numbers; all sizes in bytes.

    Attributes:
        runs: each run.
        logical: of all runs together, as in `RunStats`.
        stored: blobs and snapshot records that some run needs, each once.
        ratio: logical by stored.
        blobs: all blobs.
        blob_bytes: their size.
        unreferenced: blobs that no run needs; `polstore gc` deletes them.
        unreferenced_bytes: their size.
        ledger: signed roots in the store's ledger.
        file: length of the data file; pages that were freed are used again and never given back.
    """

    runs: list[RunStats] = field(default_factory=list)
    logical: int = 0
    stored: int = 0
    ratio: float = 0.0
    blobs: int = 0
    blob_bytes: int = 0
    unreferenced: int = 0
    unreferenced_bytes: int = 0
    ledger: int = 0
    file: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        return asdict(self)


def stats(store: Store, run: str | None, progress: Callable[[str, int, int], None]) -> StoreStats:
    """Count what a store holds.

    Args:
        store: an open store; may be recorded into meanwhile.
        run: show this run only; the numbers of the store are those of all of it.
        progress: told (what is being read, done, in all).

    Raises:
        MissingError: no such run, or something that a run needs is not there.
        DamagedError: a record that cannot be read.
    """
    with store.read() as view:
        names = view.runs()
        if run is not None and run not in names:
            raise MissingError(f"no run {run} in the store", expected=", ".join(names) or "a run", got=run)
        sizes = {digest: view.blob_size(digest) for digest in view.blob_digests()}
        users: dict[bytes, int] = {}  # blob -> runs that need it
        needs = {}
        for name in names:
            needs[name] = store_needs(view, [name], progress)
            for digest in needs[name].blobs() & sizes.keys():
                users[digest] = users.get(digest, 0) + 1
        result = StoreStats(ledger=view.ledger.size(), file=(store.path / DATA_FILE).stat().st_size)
        records: dict[bytes, int] = {}
        for name in names:
            records |= {digest: outline.record for digest, outline in needs[name].snapshots.items()}
            counted = _run(view, name, needs[name], sizes, users)
            result.logical += counted.logical
            if run in (None, name):
                result.runs.append(counted)
        result.stored = sum(sizes[digest] for digest in users) + sum(records.values())
    result.ratio = _ratio(result.logical, result.stored)
    result.blobs, result.blob_bytes = len(sizes), sum(sizes.values())
    result.unreferenced = len(sizes) - len(users)
    result.unreferenced_bytes = sum(size for digest, size in sizes.items() if digest not in users)
    return result


def _run(view: Reader, name: str, needs: Needs, sizes: dict[bytes, int], users: dict[bytes, int]) -> RunStats:
    counted = RunStats(name)
    steps = view.snapshot_steps(name)
    counted.snapshots, counted.segments = len(steps), max(view.leaf_count(name) - 1, 0)
    for step in steps:
        counted.logical += needs.snapshots[view.snapshot_at(name, step)].logical
    own = needs.blobs() & sizes.keys()
    counted.blobs = len(own)
    records = sum(outline.record for outline in needs.snapshots.values())
    counted.stored = sum(sizes[digest] for digest in own) + records
    counted.ratio = _ratio(counted.logical, counted.stored)
    shared = [digest for digest in own if users[digest] > 1]
    counted.shared, counted.shared_bytes = len(shared), sum(sizes[digest] for digest in shared)
    counted.keyframes = sum(outline.base is None for outline in needs.snapshots.values())
    frames: dict[str, dict[bytes, int]] = {}
    for outline in needs.snapshots.values():
        for encoding, digest, size in outline.frames:
            frames.setdefault(encoding.name.lower().replace("_", " "), {})[digest] = size
    counted.encodings = {encoding: sum(found.values()) for encoding, found in sorted(frames.items())}
    return counted


def _ratio(logical: int, stored: int) -> float:
    return logical / stored if stored else 0.0
