"""What a run needs: the blobs and stored snapshots that must be there for all of it to be read and proven.

Errs on the side of keeping: whatever in a manifest or segment record could be a blob's digest counts as one, extensions
that this version does not know included. A record that cannot be read stops everything. Changes nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from polstore.codec.frames import Encoding, StoredSnapshot
from polstore.errors import DamagedError, MalformedError
from polstore.run_row import RunRow
from polstore.wire import canonical
from polstore.wire.fields import DIGEST_SIZE
from polstore.wire.manifest import MAX_LEAF, Manifest
from polstore.wire.segment import SegmentRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from polstore.storage.reader import Reader
    from polstore.wire.canonical import Value

__all__ = ["Needs", "Outline", "RunNeeds", "run_needs", "store_needs", "stored_snapshot"]


@dataclass
class RunNeeds:
    """What one run refers to directly.

    Attributes:
        blobs: digests that must be blobs: step records, hyperparameters, sample hashes, a parent's inherited names.
        possible: other values of 32 bytes in its leaves that could be blobs' digests.
        snapshots: state digest by step, as the records commit to them.
    """

    blobs: set[bytes] = field(default_factory=set)
    possible: set[bytes] = field(default_factory=set)
    snapshots: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outline:
    """What is kept in memory of a stored snapshot's record, which itself is a hundred times larger.

    Attributes:
        base: state digest of the snapshot that it is stored against, or None.
        names: SHA-256 over the names of its tensors.
        logical: size of its tensors and scalars in bytes.
        record: size of its record in bytes.
        frames: encoding, digest and size of every frame.
    """

    base: bytes | None
    names: bytes
    logical: int
    record: int
    frames: tuple[tuple[Encoding, bytes, int], ...]

    @classmethod
    def read(cls, view: Reader, state_digest: bytes) -> Outline:
        """Read a record; raises `MissingError` or `DamagedError`."""
        stored = stored_snapshot(view, state_digest)
        frames = [(group.encoding, frame.digest, frame.size) for group in stored.groups for frame in group.frames]
        size = view.stored_snapshot_size(state_digest)
        names = hashlib.sha256(canonical.encode(tuple(row.entry.name for row in stored.tensors))).digest()
        return cls(stored.base, names, stored.nbytes + len(stored.scalars), size, tuple(frames))


@dataclass
class Needs:
    """All that the runs of a store need, bases of bases and frames included.

    Attributes:
        direct: digests that the runs themselves refer to; some may be of no blob.
        snapshots: stored snapshots by state digest.
    """

    direct: set[bytes] = field(default_factory=set)
    snapshots: dict[bytes, Outline] = field(default_factory=dict)

    def blobs(self) -> set[bytes]:
        """Return the digests of all blobs needed; some may not exist."""
        return self.direct.union(digest for outline in self.snapshots.values() for _, digest, _ in outline.frames)


def run_needs(view: Reader, run: str) -> RunNeeds:
    """Return what a run refers to.

    Raises:
        DamagedError: its row or one of its leaves cannot be read, or its snapshots are not those of its records.
    """
    needs = RunNeeds()
    try:
        needs.blobs.add(RunRow.parse(view.run(run)).sample_hashes)
        for index, leaf in enumerate(view.leaves(run)):
            value = canonical.decode(leaf, limit=MAX_LEAF, what=f"leaf {index}")
            needs.possible.update(_digests(value))
            if index == 0:
                manifest = Manifest.parse(leaf)
                needs.blobs.add(manifest.optimizer.hyperparameters)
                if manifest.initial.parent is not None:
                    needs.blobs.add(manifest.initial.parent.inherited)
                needs.snapshots[0] = manifest.initial.state
                extensions = manifest.extensions
            else:
                record = SegmentRecord.parse(leaf)
                needs.blobs.add(record.steps)
                needs.snapshots[record.end_step] = record.end_state
                extensions = record.extensions
            for _, data in extensions:
                needs.possible.update(data[at : at + DIGEST_SIZE] for at in range(len(data) - DIGEST_SIZE + 1))
    except MalformedError as error:
        raise DamagedError(f"run {run}: {error}") from error
    if not needs.snapshots:
        raise DamagedError(f"run {run} has lost its manifest")
    entered = {step: view.snapshot_at(run, step) for step in view.snapshot_steps(run)}
    if entered != needs.snapshots:
        wrong = min(
            step for step in entered.keys() | needs.snapshots.keys() if entered.get(step) != needs.snapshots.get(step)
        )
        raise DamagedError(
            f"run {run}, snapshot at step {wrong}", expected=needs.snapshots.get(wrong), got=entered.get(wrong)
        )
    return needs


def store_needs(view: Reader, runs: list[str], progress: Callable[[str, int, int], None]) -> Needs:
    """Return what these runs need.

    Args:
        view: the store.
        runs: names of the runs.
        progress: told (what is being read, done, in all).

    Raises:
        DamagedError: a record that cannot be read, so nothing can be said.
        MissingError: a stored snapshot that is needed is not there.
    """
    needs = Needs()
    done, total = 0, sum(len(view.snapshot_steps(run)) for run in runs)
    for run in runs:
        direct = run_needs(view, run)
        needs.direct |= direct.blobs | direct.possible
        for digest in direct.snapshots.values():
            wanted: bytes | None = digest
            while wanted is not None and wanted not in needs.snapshots:
                outline = needs.snapshots[wanted] = Outline.read(view, wanted)
                wanted = outline.base
            done += 1
            progress("reading records", done, total)
    return needs


def stored_snapshot(view: Reader, state_digest: bytes) -> StoredSnapshot:
    """Return the record of a stored snapshot; raises `MissingError` or `DamagedError`."""
    try:
        stored = StoredSnapshot.parse(view.stored_snapshot(state_digest))
    except MalformedError as error:
        raise DamagedError(f"snapshot {state_digest.hex()}: {error}") from error
    if stored.state_digest != state_digest:
        raise DamagedError(
            "stored snapshot is not the one it stands for", expected=state_digest, got=stored.state_digest
        )
    return stored


def _digests(value: Value) -> Iterator[bytes]:
    """Yield every byte string of 32 bytes in a canonical value."""
    if isinstance(value, bytes) and len(value) == DIGEST_SIZE:
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _digests(item)
