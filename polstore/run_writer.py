"""Writing one run into a store: its manifest, its snapshots and its segments, each in one transaction.

Knows the codec and the store, no torch: it takes captured snapshots and returns committed ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from polstore.codec import frames
from polstore.codec.norms import distances
from polstore.errors import ExistsError, MalformedError, TrainingError, UsageError
from polstore.reader import Run
from polstore.wire.segment import SegmentRecord

if TYPE_CHECKING:
    from polstore.codec.snapshot import Snapshot
    from polstore.run_row import RunRow
    from polstore.storage.store import Store
    from polstore.storage.writer import Writer
    from polstore.wire.environment import Environment
    from polstore.wire.manifest import Manifest
    from polstore.wire.steps import Steps

__all__ = ["RunWriter"]

KEYFRAME_EVERY = 64  # snapshots to a keyframe: as small as a chain of deltas (2.32 against 2.31), two blobs deep


@dataclass(frozen=True)
class _Key:
    """The keyframe that snapshots are stored against: its number among the run's snapshots, its step, and itself."""

    number: int
    step: int
    snapshot: Snapshot

    def serves(self, number: int, snapshot: Snapshot) -> bool:
        """Say whether snapshot ``number`` is stored against this keyframe, or becomes one.

        What has no partner in the base is stored exactly. So when the optimizer makes its state, in its first step as a
        rule, a keyframe is due: against the initial snapshot, all moments of the snapshots to come would be exact.
        """
        return number - self.number < KEYFRAME_EVERY and snapshot.names == self.snapshot.names


class RunWriter:
    """Writes one run. Made by `create` or `resume`; the caller holds the store's recording lock."""

    def __init__(self, store: Store, manifest: Manifest, row: RunRow) -> None:
        self._store = store
        self.manifest = manifest
        self.row = row
        self._count = 0  # segments so far
        self._step = 0
        self._previous: Snapshot | None = None
        self._key: _Key | None = None

    @classmethod
    def create(cls, store: Store, manifest: Manifest, row: RunRow, initial: Snapshot, blobs: list[bytes]) -> RunWriter:
        """Begin a run: its manifest, its snapshot 0 and the ``blobs`` that both refer to.

        Raises:
            ExistsError: the store has a run of that name.
            TrainingError: something in the manifest is beyond what a record can hold.
        """
        writer = cls(store, manifest, row)
        stored, frame_blobs, committed = frames.encode(initial, None, manifest.fidelity)
        leaf = _encoded(manifest)

        def work(transaction: Writer) -> None:
            if manifest.run in transaction.runs():
                raise ExistsError(f"run {manifest.run} exists already; go on with --resume or choose another name")
            transaction.put_run(manifest.run, row.encode())
            for blob in blobs:
                transaction.put_blob(blob)
            _put_snapshot(transaction, manifest.run, 0, stored, frame_blobs)
            transaction.append_leaf(manifest.run, leaf)

        store.write(work)
        writer._previous, writer._key = committed, _Key(0, 0, committed)
        return writer

    @classmethod
    def resume(cls, store: Store, name: str) -> tuple[RunWriter, Snapshot, int]:
        """Go on with a run; returns the writer, the last snapshot and its step. Raises `MissingError`."""
        run = Run(store, name)
        writer = cls(store, run.manifest, run.row)
        segments = run.segments
        writer._count = len(segments)
        writer._step = segments[-1].end_step if segments else 0
        snapshot = run.state(writer._step)
        base_step = segments[-1].base_step if segments else None
        key_step = writer._step if base_step is None else base_step
        number = run.snapshots.index(key_step)
        writer._previous = snapshot
        writer._key = _Key(number, key_step, snapshot if key_step == writer._step else run.state(key_step))
        return writer, snapshot, writer._step

    def add_segment(
        self, end_step: int, captured: Snapshot, steps: Steps, environment: Environment, row: RunRow
    ) -> Snapshot:
        """Write the segment that ends with ``captured`` and return the committed snapshot.

        Everything that belongs to it goes into the store in one transaction, so a crash leaves all of it or nothing.
        Raises `TrainingError` for what a record cannot hold, a negative sample index for instance.
        """
        if self._previous is None or self._key is None:
            raise UsageError("this run was neither created nor resumed")
        base = self._key.snapshot if self._key.serves(self._count + 1, captured) else None
        stored, blobs, committed = frames.encode(captured, base, self.manifest.fidelity)
        steps_blob = _encoded(steps)
        record = SegmentRecord(
            index=self._count,
            start_step=self._step,
            end_step=end_step,
            start_state=self._previous.digest(),
            end_state=stored.state_digest,
            base_step=None if base is None or self.manifest.fidelity == "lossless" else self._key.step,
            steps=hashlib.sha256(steps_blob).digest(),
            environment=environment,
            norms=distances(self._previous, committed),
        )
        leaf, name = _encoded(record), self.manifest.run

        def work(transaction: Writer) -> None:
            transaction.put_run(name, row.encode())
            transaction.put_blob(steps_blob)
            _put_snapshot(transaction, name, end_step, stored, blobs)
            transaction.append_leaf(name, leaf)

        self._store.write(work)
        self.row = row
        self._count += 1
        self._step = end_step
        self._previous = committed
        if base is None:
            self._key = _Key(self._count, end_step, committed)
        return committed

    def finish(self) -> None:
        """Mark the run as complete."""
        self.row = replace(self.row, complete=True)
        row = self.row.encode()
        self._store.write(lambda transaction: transaction.put_run(self.manifest.run, row))


def _encoded(record: Manifest | SegmentRecord | Steps) -> bytes:
    """Return a record's bytes, having parsed them: what is written here is never refused by a reader."""
    try:
        data = record.encode()
        type(record).parse(data)
    except MalformedError as error:
        raise TrainingError(f"this training cannot be recorded: {error}") from error
    return data


def _put_snapshot(
    transaction: Writer, run: str, step: int, stored: frames.StoredSnapshot, blobs: dict[bytes, bytes]
) -> None:
    """Store a snapshot unless the store has it already, from this run or another, and enter it at ``step``."""
    if not transaction.has_snapshot(stored.state_digest):
        for blob in blobs.values():
            transaction.put_blob(blob)
        transaction.put_stored_snapshot(stored.state_digest, stored.encode())
    transaction.put_snapshot(run, step, stored.state_digest)
