"""Writing one run into a store: its manifest, its snapshots and its segments, each in one transaction.

Knows the codec and the store, no torch: it takes captured snapshots and returns committed ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from polstore.codec import frames
from polstore.codec.norms import distances
from polstore.codec.quantise import Scheme, base_is_previous, quantise_tensors
from polstore.codec.snapshot import Snapshot
from polstore.errors import ExistsError, MalformedError, TrainingError, UsageError
from polstore.reader import Run
from polstore.wire.segment import SegmentRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

    from polstore.codec.quantise import Quantised
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
        self._parameters: Snapshot | None = None

    @classmethod
    def create(cls, store: Store, manifest: Manifest, row: RunRow, initial: Snapshot, blobs: list[bytes]) -> RunWriter:
        """Begin a run: its manifest, its snapshot 0 and the ``blobs`` that both refer to.

        The initial snapshot is committed as it is: quantising it must change nothing.

        Raises:
            ExistsError: the store has a run of that name.
            TrainingError: something in the manifest is beyond what a record can hold.
        """
        writer = cls(store, manifest, row)
        stored, frame_blobs, _ = frames.encode(initial, None, manifest.fidelity)
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
        writer._note(initial)
        writer._serve(initial)
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
        writer._note(snapshot)
        writer._serve(snapshot if previous else run.state(steps[key]))
        return writer, snapshot, steps[-1]

    def plan(self, end_step: int, names: tuple[str, ...]) -> Plan:
        """Decide what the next snapshot, with tensors of these names, is stored against.

        What has no partner in the base is stored exactly. So when the optimizer makes its state, in its first step as a
        rule, a keyframe is due: against the initial snapshot, all moments of the snapshots to come would be exact.
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
        parts = quantise_tensors(captured, plan.base, self.manifest.fidelity)
        self.write(plan, parts, captured.scalars, steps, environment, row)

    def write(
        self,
        plan: Plan,
        parts: Iterable[Quantised],
        scalars: bytes,
        steps: Steps,
        environment: Environment,
        row: RunRow,
    ) -> None:
        """Write a planned segment and the committed snapshot that ends it.

        Everything that belongs to it goes into the store in one transaction, so a crash leaves all of it or nothing.
        Raises `TrainingError` for what a record cannot hold, a negative sample index for instance.
        """
        if self._parameters is None:
            raise UsageError("this run was neither created nor resumed")
        fidelity, name = self.manifest.fidelity, self.manifest.run
        base = plan.base is None or base_is_previous(fidelity)
        keep = _serves if base else _is_parameter
        stored, blobs, kept = frames.encode_parts(parts, scalars, plan.base_digest, keep)
        steps_blob = _encoded(steps)
        record = SegmentRecord(
            index=plan.index,
            start_step=plan.start_step,
            end_step=plan.end_step,
            start_state=self._state,
            end_state=stored.state_digest,
            base_step=None if plan.base is None or fidelity == "lossless" else plan.base_step,
            steps=hashlib.sha256(steps_blob).digest(),
            environment=environment,
            norms=distances(self._parameters, kept),
        )
        leaf = _encoded(record)

        def work(transaction: Writer) -> None:
            transaction.put_run(name, row.encode())
            transaction.put_blob(steps_blob)
            _put_snapshot(transaction, name, plan.end_step, stored, blobs)
            transaction.append_leaf(name, leaf)

        self._store.write(work)
        self.row = row
        self._state, self._parameters = stored.state_digest, _parameters(kept)
        if base:
            self._base, self._base_digest = kept, stored.state_digest
            self._names = tuple(row.entry.name for row in stored.tensors)

    def _note(self, last: Snapshot) -> None:
        """Remember of the snapshot written last what the next segment's record needs."""
        self._state, self._parameters = last.digest(), _parameters(last)

    def _serve(self, base: Snapshot) -> None:
        """Remember of a committed snapshot what others are quantised against."""
        parts = quantise_tensors(base, None, self.manifest.fidelity)
        kept = tuple(tensor for tensor, part in zip(base.tensors, parts, strict=True) if _serves(part))
        self._base, self._base_digest, self._names = Snapshot(kept, b""), base.digest(), base.names

    def finish(self) -> None:
        """Mark the run as complete."""
        self.row = replace(self.row, complete=True)
        row = self.row.encode()
        self._store.write(lambda transaction: transaction.put_run(self.manifest.run, row))


def _serves(part: Quantised) -> bool:
    """Say whether later snapshots have a use for a tensor of their base; those of moments alone do without."""
    return part.scheme is not Scheme.BFLOAT16


def _is_parameter(part: Quantised) -> bool:
    return part.name.startswith("parameter/")


def _parameters(snapshot: Snapshot) -> Snapshot:
    return Snapshot(tuple(tensor for tensor in snapshot.tensors if tensor.name.startswith("parameter/")), b"")


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
        for digest, blob in blobs.items():
            transaction.put_blob(blob, digest)
        transaction.put_stored_snapshot(stored.state_digest, stored.encode())
    transaction.put_snapshot(run, step, stored.state_digest)
