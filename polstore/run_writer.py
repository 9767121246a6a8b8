"""Writing one run into a store: its manifest, its snapshots and its segments, each in one transaction.

Knows the codec and the store, no torch: it takes captured snapshots and returns committed ones.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from polstore.codec import frames
from polstore.codec.quantise import base_is_previous, quantise_tensors
from polstore.errors import ExistsError, MalformedError, TrainingError, UsageError
from polstore.kept import Kept
from polstore.reader import Run
from polstore.wire.segment import SegmentRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from polstore.codec.frames import StoredSnapshot
    from polstore.codec.quantised import Quantised
    from polstore.codec.snapshot import Snapshot
    from polstore.run_row import RunRow
    from polstore.storage.store import Store
    from polstore.storage.writer import Writer
    from polstore.wire.environment import Environment
    from polstore.wire.manifest import Manifest
    from polstore.wire.steps import Steps

__all__ = ["Plan", "RunWriter"]

KEYFRAME_EVERY = 64  # snapshots to a keyframe: as small as a chain of deltas (2.32 against 2.31), two blobs deep


@dataclass(frozen=True)
class Plan:
    """A segment that is about to be written.

    Attributes:
        index: of the segment, from 0.
        start_step: its first step.
        end_step: the step of the snapshot that ends it.
        base: of the committed snapshot that this one is quantised and stored against, the tensors that it needs; None
            makes a keyframe.
        base_digest: state digest of that snapshot.
        base_step: the step of that snapshot.
    """

    index: int
    start_step: int
    end_step: int
    base: Snapshot | None
    base_digest: bytes | None
    base_step: int


class RunWriter:
    """Writes one run. Made by `create` or `resume`; the caller holds the store's recording lock.

    A segment is planned, captured and then written, perhaps by another thread; the one before it must be through by
    the time a segment is planned.
    """

    def __init__(self, store: Store, manifest: Manifest, row: RunRow) -> None:
        self._store = store
        self.manifest = manifest
        self.row = row
        self._planned = 0  # segments so far
        self._planned_step = 0
        self._key = 0  # the keyframe's number among the run's snapshots
        self._key_step = 0
        # The keyframe, or the last snapshot where that is the base: what of it others are quantised against.
        self._base: Snapshot | None = None
        self._base_digest = b""
        self._names: tuple[str, ...] = ()  # of its tensors, all of them
        self._state = b""  # digest of the last snapshot written, and its parameters
        self._previous: dict[str, Quantised] = {}

    @classmethod
    def create(cls, store: Store, manifest: Manifest, row: RunRow, initial: Snapshot, blobs: list[bytes]) -> RunWriter:
        """Begin a run with an initial snapshot that quantising leaves as it is; raises as `begin` does."""
        parts = tuple(quantise_tensors(initial, None, manifest.fidelity))
        return cls.begin(store, manifest, row, parts, initial.scalars, blobs)

    @classmethod
    def begin(
        cls,
        store: Store,
        manifest: Manifest,
        row: RunRow,
        parts: Sequence[Quantised],
        scalars: bytes,
        blobs: Sequence[bytes],
    ) -> RunWriter:
        """Begin a run: its manifest, its snapshot 0 as quantised without a base, and the ``blobs`` both refer to.

        Raises:
            ExistsError: the store has a run of that name.
            TrainingError: something in the manifest is beyond what a record can hold.
            UsageError: the manifest names another initial state.
        """
        writer = cls(store, manifest, row)
        leaf = _encoded(manifest)

        def rest(transaction: Writer, stored: StoredSnapshot, _kept: Kept) -> None:
            if manifest.run in transaction.runs():
                raise ExistsError(f"run {manifest.run} exists already; go on with --resume or choose another name")
            transaction.put_run(manifest.run, row.encode())
            if stored.state_digest != manifest.initial.state:
                raise UsageError("snapshot 0 of a run", expected=manifest.initial.state, got=stored.state_digest)
            for blob in blobs:
                transaction.put_blob(blob)
            transaction.put_snapshot(manifest.run, 0, stored.state_digest)
            transaction.append_leaf(manifest.run, leaf)

        writer._put(lambda: parts, scalars, None, rest)
        return writer

    @classmethod
    def resume(cls, store: Store, name: str) -> tuple[RunWriter, Snapshot, int]:
        """Go on with a run; returns the writer, the last snapshot and its step. Raises `MissingError`."""
        run = Run(store, name)
        writer = cls(store, run.manifest, run.row)
        segments, steps = run.segments, run.snapshots
        writer._planned = len(segments)
        writer._planned_step = steps[-1]
        snapshot = run.state(steps[-1])
        previous = base_is_previous(writer.manifest.fidelity)
        key = len(segments)
        if previous:
            while key and segments[key - 1].base_step is not None:
                key -= 1
        elif segments and (base_step := segments[-1].base_step) is not None:
            key = steps.index(base_step)
        writer._key, writer._key_step = key, steps[key]
        base = snapshot if previous else run.state(steps[key])
        writer._state, writer._previous = snapshot.digest(), writer._kept(snapshot).parameters
        writer._base, writer._base_digest, writer._names = writer._kept(base).base, base.digest(), base.names
        return writer, snapshot, steps[-1]

    def plan(self, end_step: int, names: tuple[str, ...]) -> Plan:
        """Decide what the next snapshot, with tensors of these names, is stored against.

        What needs a partner in the base and has none is stored as it is. So when the optimizer makes its state, in its
        first step as a rule, a keyframe is due: it may have tensors that the snapshots to come need there.
        """
        if self._base is None:
            raise UsageError("this run was neither created nor resumed")
        number = self._planned + 1
        serves = number - self._key < KEYFRAME_EVERY and names == self._names
        base_step = self._planned_step if base_is_previous(self.manifest.fidelity) else self._key_step
        base, digest = (self._base, self._base_digest) if serves else (None, None)
        plan = Plan(self._planned, self._planned_step, end_step, base, digest, base_step)
        self._planned, self._planned_step = number, end_step
        if not serves:
            self._key, self._key_step = number, end_step
        return plan

    def add_segment(
        self, end_step: int, captured: Snapshot, steps: Steps, environment: Environment, row: RunRow
    ) -> None:
        """Write the segment that ends with ``captured``; raises as `write` does."""
        plan = self.plan(end_step, captured.names)

        def parts() -> Iterator[Quantised]:
            return quantise_tensors(captured, plan.base, self.manifest.fidelity)

        self.write(plan, parts, captured.scalars, steps, environment, row)

    def write(
        self,
        plan: Plan,
        parts: Callable[[], Iterable[Quantised]],
        scalars: bytes,
        steps: Steps,
        environment: Environment,
        row: RunRow,
    ) -> None:
        """Write a planned segment and the committed snapshot that ends it.

        Everything that belongs to it goes into the store in one transaction, so a crash leaves all of it or nothing.
        Frames go there as they are made, and nothing but the transaction holds them; where it has to begin anew, so
        that ``parts`` is called again, they are made anew. The parts' arrays must stay as they are until the next
        segment is written. Raises `TrainingError` for what a record cannot hold, a negative sample index for instance.
        """
        fidelity, name = self.manifest.fidelity, self.manifest.run
        steps_blob = _encoded(steps)

        def rest(transaction: Writer, stored: StoredSnapshot, kept: Kept) -> None:
            record = SegmentRecord(
                index=plan.index,
                start_step=plan.start_step,
                end_step=plan.end_step,
                start_state=self._state,
                end_state=stored.state_digest,
                base_step=None if plan.base is None or fidelity == "lossless" else plan.base_step,
                steps=hashlib.sha256(steps_blob).digest(),
                environment=environment,
                norms=kept.norms(),
            )
            transaction.put_run(name, row.encode())
            transaction.put_blob(steps_blob)
            transaction.put_snapshot(name, plan.end_step, stored.state_digest)
            transaction.append_leaf(name, _encoded(record))

        self._put(parts, scalars, plan.base_digest, rest, beside=_may_pack_beside(environment.threads))
        self.row = row

    def _put(
        self,
        parts: Callable[[], Iterable[Quantised]],
        scalars: bytes,
        base: bytes | None,
        rest: Callable[[Writer, StoredSnapshot, Kept], None],
        *,
        beside: bool = False,
    ) -> None:
        """Store a snapshot and what ``rest`` adds in one transaction, and remember what the next one needs of it."""
        serves = base is None or base_is_previous(self.manifest.fidelity)
        known = False  # whether the store has the snapshot already, from this run or another

        def work(transaction: Writer) -> tuple[StoredSnapshot, Kept]:
            def put(digest: bytes, frame: bytes) -> None:
                if not known:
                    transaction.put_blob(frame, digest)

            kept = Kept(self._previous, serves=serves)
            stored = frames.encode_parts(parts(), scalars, base, put, kept.add, beside=beside)
            if not known:
                if transaction.has_snapshot(stored.state_digest):
                    raise _KnownError
                transaction.put_stored_snapshot(stored.state_digest, stored.encode())
            rest(transaction, stored, kept)
            return stored, kept

        try:
            stored, kept = self._store.write(work)
        except _KnownError:  # stored in other frames, perhaps: nothing of what was just put is to stay
            known = True
            stored, kept = self._store.write(work)
        self._state, self._previous = stored.state_digest, kept.parameters
        if serves:
            self._base, self._base_digest = kept.base, stored.state_digest
            self._names = tuple(row.entry.name for row in stored.tensors)

    def _kept(self, committed: Snapshot) -> Kept:
        """Return what is kept of a snapshot that was committed before."""
        kept = Kept({}, serves=True)
        for part in quantise_tensors(committed, None, self.manifest.fidelity):
            kept.add(part)
        return kept

    def finish(self) -> None:
        """Mark the run as complete."""
        self.row = replace(self.row, complete=True)
        row = self.row.encode()
        self._store.write(lambda transaction: transaction.put_run(self.manifest.run, row))


class _KnownError(Exception):
    """The store has the snapshot that is being written."""


def _may_pack_beside(threads: int) -> bool:
    """Say whether two threads should encode, beside a training in so many threads.

    One that trains on all processors waits for the slowest of its threads, so it is best over soon; but one processor
    that it leaves alone is enough.
    """
    processors = os.cpu_count() or 1
    return processors > 1 and processors - threads != 1


def _encoded(record: Manifest | SegmentRecord | Steps) -> bytes:
    """Return a record's bytes, having parsed them: what is written here is never refused by a reader."""
    try:
        data = record.encode()
        type(record).parse(data)
    except MalformedError as error:
        raise TrainingError(f"this training cannot be recorded: {error}") from error
    return data
