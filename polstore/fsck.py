"""Checking a whole store: every blob, record, tree node, snapshot and signed root, and what each damage costs.

Changes nothing. Hashes are checked, signatures are not: that needs a key and is polverify's part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from polstore.errors import DamagedError, MalformedError, MissingError
from polstore.reader import Run
from polstore.wire import merkle
from polstore.wire.checkpoint import parse_text
from polstore.wire.manifest import Manifest
from polstore.wire.note import parse as parse_note
from polstore.wire.segment import SegmentRecord
from polstore.wire.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from polstore.storage.store import Store

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
    """What a check of a store found."""

    blobs: int = 0
    snapshots: int = 0
    runs: int = 0
    damages: list[Damage] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "blobs": self.blobs,
            "snapshots": self.snapshots,
            "runs": self.runs,
            "damages": [vars(damage) for damage in self.damages],
        }


def check_store(store: Store, progress: Callable[[str, int, int], None]) -> Report:
    """Check everything in a store.

    Args:
        store: an open store; may be recorded into meanwhile.
        progress: told (what is being checked, done, in all).
    """
    report = Report()
    with store.read() as view:
        digests = list(view.blob_digests())
        names = view.runs()
    for done, digest in enumerate(digests, 1):
        with store.read() as view:
            _attempt(report, f"blob {digest.hex()}", "see the snapshots below", lambda: view.get_blob(digest))  # noqa: B023 # called at once
        progress("blobs", done, len(digests))
    report.blobs = len(digests)
    for name in names:
        _check_run(report, store, name, progress)
    report.runs = len(names)
    return report


def _check_run(report: Report, store: Store, name: str, progress: Callable[[str, int, int], None]) -> None:
    run = _attempt(report, f"run {name}", "the whole run", lambda: Run(store, name))
    if run is None:
        return
    leaves = _attempt(report, f"run {name}, leaves", "the whole run", lambda: run.leaves(run.size()))
    manifest = (
        None
        if not leaves
        else _attempt(report, f"run {name}, manifest", "the whole run", lambda: Manifest.parse(leaves[0]))
    )
    if leaves is None or manifest is None:
        return
    steps = [0]
    state = manifest.initial.state
    for index, leaf in enumerate(leaves[1:]):
        cost = f"segment {index} of run {name}"
        record = _attempt(report, cost, cost, lambda: SegmentRecord.parse(leaf))  # noqa: B023 # called at once
        if record is None:
            continue
        if (record.index, record.start_step, record.start_state) != (index, steps[-1], state):
            _damage(report, cost, "does not follow the segment before it", cost)
        _attempt(report, f"{cost}, steps", cost, lambda: Steps.parse(run.blob(record.steps)))  # noqa: B023
        steps.append(record.end_step)
        state = record.end_state
    _attempt(report, f"run {name}, data for proofs", "all its proofs", lambda: _check_private(run, manifest))
    _check_snapshots(report, run, steps, progress)
    _attempt(report, f"run {name}, tree", "its inclusion proofs", lambda: _check_tree(store, name, leaves))
    for size in run.signed_sizes():
        _attempt(report, f"run {name}, signed root of size {size}", "that root", lambda: _check_root(run, size))  # noqa: B023


def _check_snapshots(report: Report, run: Run, steps: list[int], progress: Callable[[str, int, int], None]) -> None:
    if run.snapshots != steps:
        _damage(report, f"run {run.name}", "snapshots do not match its segments", "the whole run")
    for number, step in enumerate(steps):
        around = [f"{index}" for index in (number - 1, number) if 0 <= index < len(steps) - 1]
        cost = f"segments {' and '.join(around)} of run {run.name}" if around else f"run {run.name}"
        _attempt(report, f"snapshot at step {step} of run {run.name}", cost, lambda: run.state(step))  # noqa: B023
        report.snapshots += 1
        progress("snapshots", number + 1, len(steps))


def _check_private(run: Run, manifest: Manifest) -> None:
    hashes = run.blob(run.row.sample_hashes)
    root = merkle.root([hashes[start : start + 32] for start in range(0, len(hashes), 32)])
    if root != manifest.dataset.root:
        raise DamagedError("sample hashes do not lead to the dataset's root", expected=manifest.dataset.root, got=root)
    run.blob(manifest.optimizer.hyperparameters)


def _check_tree(store: Store, name: str, leaves: tuple[bytes, ...]) -> None:
    """Compare every stored node of a run's tree with one computed from the leaves."""
    hashes = [merkle.leaf_hash(leaf) for leaf in leaves]
    level = 0
    with store.read() as view:
        while hashes:
            for index, expected in enumerate(hashes):
                got = view.node(name, level, index)
                if got != expected:
                    raise DamagedError(f"node {index} of level {level}", expected=expected, got=got)
            hashes = [merkle.node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=False)]
            level += 1


def _check_root(run: Run, size: int) -> None:
    checkpoint = parse_text(parse_note(run.signed_root(size)).text)
    root = run.tree_root(size)
    if (checkpoint.size, checkpoint.root) != (size, root):
        raise DamagedError(
            "signed root", expected=f"{size} {root.hex()}", got=f"{checkpoint.size} {checkpoint.root.hex()}"
        )


def _attempt(report: Report, what: str, cost: str, check: Callable[[], T]) -> T | None:
    try:
        return check()
    except (DamagedError, MalformedError, MissingError) as error:
        _damage(report, what, str(error), cost)
        return None


def _damage(report: Report, what: str, error: str, cost: str) -> None:
    report.damages.append(Damage(what, error, cost))
