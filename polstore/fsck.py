"""Checking a whole store: every page, blob, record, node, snapshot and signed root, the ledger, and what damage costs.

LMDB is kept out of it, since it may crash on a damaged page: the data file is read by `polstore.storage.survey`.
Changes nothing. Hashes are checked, signatures are not: that needs a key and is polverify's part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from polstore.errors import DamagedError, MissingError
from polstore.ledger_audit import audit
from polstore.reader import Run
from polstore.storage.survey import survey
from polstore.wire import merkle

if TYPE_CHECKING:
    from collections.abc import Callable

    from polstore.storage.store import Store
    from polstore.wire.manifest import Manifest
    from polstore.wire.segment import SegmentRecord

__all__ = ["Damage", "Report", "check_store"]

T = TypeVar("T")


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong: what, how it showed, and what can no longer be proven because of it."""

    what: str
    error: str
    cost: str


@dataclass
class Report:
    """What a check of a store found; ``not_entered`` are signed roots that its ledger lacks, which is no damage."""

    blobs: int = 0
    snapshots: int = 0
    runs: int = 0
    ledger: int = 0
    not_entered: list[str] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "blobs": self.blobs,
            "snapshots": self.snapshots,
            "runs": self.runs,
            "ledger": self.ledger,
            "not_entered": self.not_entered,
            "damages": [vars(damage) for damage in self.damages],
        }


def check_store(store: Store, progress: Callable[[str, int, int], None]) -> Report:
    """Check everything in a store.

    Args:
        store: an open store; may be recorded into meanwhile, and is checked as it was when this began.
        progress: told (what is being checked, done, in all).

    Raises:
        CallerError: the data file cannot be read, or has a layout that is not known here.
    """
    with survey(store) as found:
        report = Report()
        for page, error in found.damages:
            _damage(report, f"page {page} of the data file", error, "what is named below, or whole runs")
        for key in found.foreign:
            _damage(report, f"key {key.hex()}", "none that a store has", "what is named below, or a whole run")
        for name in found.lost:
            _damage(report, f"run {name}", "its row is lost", "the whole run")
        _check_contents(report, found, progress)
    return report


def _check_contents(report: Report, store: Store, progress: Callable[[str, int, int], None]) -> None:
    with store.read() as view:
        digests = list(view.blob_digests())
        names = view.runs()
    for done, digest in enumerate(digests, 1):
        with store.read() as view:
            _attempt(report, f"blob {digest.hex()}", "what is named below", lambda: view.get_blob(digest))  # noqa: B023 # called at once
        progress("blobs", done, len(digests))
    report.blobs = len(digests)
    for name in names:
        _check_run(report, store, name, progress)
    report.runs = len(names)
    with store.read() as view:
        found = audit(view, progress)
    report.ledger, report.not_entered = found.leaves, found.not_entered
    for what, error, cost in found.damages:
        _damage(report, what, error, cost)


def _check_run(report: Report, store: Store, name: str, progress: Callable[[str, int, int], None]) -> None:
    run = _attempt(report, f"run {name}", "the whole run", lambda: Run(store, name))
    if run is None:
        return
    manifest = _attempt(report, f"run {name}, manifest", "the whole run", lambda: run.manifest)
    if manifest is None:
        return
    records = [_check_segment(report, run, index) for index in range(run.size() - 1)]
    _check_joints(report, run, manifest, records)
    _attempt(report, f"run {name}, data for proofs", "all its proofs", lambda: _check_private(run, manifest))
    ends = None if None in records else [0, *(record.end_step for record in records if record is not None)]
    _check_snapshots(report, run, ends, progress)
    if ends is not None:
        _attempt(report, f"run {name}, tree", "its inclusion proofs", lambda: _check_tree(store, run))
    for size in run.signed_sizes():
        _attempt(report, f"run {name}, signed root of size {size}", "that root", lambda: _check_root(run, size))  # noqa: B023 # called at once


def _check_segment(report: Report, run: Run, index: int) -> SegmentRecord | None:
    what = f"segment {index} of run {run.name}"
    record = _attempt(report, what, f"all proofs of run {run.name}", lambda: run.segment(index))
    if record is not None:
        _attempt(report, f"{what}, steps", what, lambda: run.steps(index))
    return record


def _check_joints(report: Report, run: Run, manifest: Manifest, records: list[SegmentRecord | None]) -> None:
    """Check that the records join up, as far as they can be read."""
    expected: tuple[int, int, bytes] | None = (0, 0, manifest.initial.state)
    for index, record in enumerate(records):
        if record is None:
            expected = None
            continue
        if expected is not None and expected != (record.index, record.start_step, record.start_state):
            what = f"segment {index} of run {run.name}"
            _damage(report, what, "does not follow the segment before it", f"all proofs of run {run.name}")
        expected = (index + 1, record.end_step, record.end_state)


def _check_snapshots(
    report: Report, run: Run, ends: list[int] | None, progress: Callable[[str, int, int], None]
) -> None:
    """Decode every snapshot; ``ends`` are the steps that the records name, or None where some cannot be read."""
    steps = run.snapshots
    if ends is not None and steps != ends:
        wrong = min(set(steps) ^ set(ends))
        state = "is missing" if wrong in ends else "belongs to no segment"
        _damage(report, f"snapshot at step {wrong} of run {run.name}", state, f"the end of run {run.name}")
    for number, step in enumerate(steps):
        around = [f"{index}" for index in (number - 1, number) if 0 <= index < len(steps) - 1]
        kind = "segments" if len(around) > 1 else "segment"
        cost = f"{kind} {' and '.join(around)} of run {run.name}" if around else f"run {run.name}"
        _attempt(report, f"snapshot at step {step} of run {run.name}", cost, lambda: run.state(step))  # noqa: B023
        report.snapshots += 1
        progress("snapshots", number + 1, len(steps))


def _check_private(run: Run, manifest: Manifest) -> None:
    hashes = run.blob(run.row.sample_hashes)
    root = merkle.root([hashes[start : start + 32] for start in range(0, len(hashes), 32)])
    if root != manifest.dataset.root:
        raise DamagedError("sample hashes do not lead to the dataset's root", expected=manifest.dataset.root, got=root)
    run.blob(manifest.optimizer.hyperparameters)


def _check_tree(store: Store, run: Run) -> None:
    """Compare every stored node of a run's tree with one computed from the leaves."""
    _, hashes = run.hashed_leaves(run.size())
    level = 0
    with store.read() as view:
        while hashes:
            for index, expected in enumerate(hashes):
                got = view.node(run.name, level, index)
                if got != expected:
                    raise DamagedError(f"node {index} of level {level}", expected=expected, got=got)
            hashes = [merkle.node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=False)]
            level += 1


def _check_root(run: Run, size: int) -> None:
    checkpoint = run.signed_checkpoint(size)
    root = merkle.root(run.hashed_leaves(size)[1])  # not from nodes, which are checked above
    if (checkpoint.size, checkpoint.root) != (size, root):
        raise DamagedError(
            "signed root", expected=f"{size} {root.hex()}", got=f"{checkpoint.size} {checkpoint.root.hex()}"
        )


def _attempt(report: Report, what: str, cost: str, check: Callable[[], T]) -> T | None:
    try:
        return check()
    except (DamagedError, MissingError) as error:
        _damage(report, what, str(error), cost)
        return None


def _damage(report: Report, what: str, error: str, cost: str) -> None:
    report.damages.append(Damage(what, error, cost))
