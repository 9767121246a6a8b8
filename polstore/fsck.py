"""Checking a whole store: every page, blob, record, node, snapshot and signed root, the ledger, and what damage costs.

LMDB is kept out of it, since it may crash on a damaged page: the data file is read by `polstore.storage.survey`.
Changes nothing. Signatures are checked under the keys that are given; without any, hashes and shapes alone are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from polstore.codec.frames import StoredSnapshot
from polstore.errors import DamagedError, MalformedError, MissingError, SignatureError
from polstore.ledger_audit import audit
from polstore.reader import Run
from polstore.storage.survey import survey
from polstore.wire import merkle
from polstore.wire.checkpoint import open_root
from polstore.wire.note import parse as parse_note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from polstore.storage.reader import Reader
    from polstore.storage.store import Store
    from polstore.wire.keys import VerifierKey
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
    """What a check of a store found.

    Attributes:
        blobs: how many there are, damaged ones included; likewise the next three.
        snapshots: of all runs.
        runs: that are listed.
        ledger: leaves of the ledger.
        signatures: signed roots and heads of the ledger that a given key has signed.
        other_signers: signed roots and heads that no given key has signed; empty without keys. No damage.
        not_entered: signed roots that the ledger lacks. No damage.
        damages: what is wrong.
    """

    blobs: int = 0
    snapshots: int = 0
    runs: int = 0
    ledger: int = 0
    signatures: int = 0
    other_signers: list[str] = field(default_factory=list)
    not_entered: list[str] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "blobs": self.blobs,
            "snapshots": self.snapshots,
            "runs": self.runs,
            "ledger": self.ledger,
            "signatures": self.signatures,
            "other_signers": self.other_signers,
            "not_entered": self.not_entered,
            "damages": [vars(damage) for damage in self.damages],
        }


def check_store(store: Store, progress: Callable[[str, int, int], None], keys: Sequence[VerifierKey] = ()) -> Report:
    """Check everything in a store.

    Args:
        store: an open store; may be recorded into meanwhile, and is checked as it was when this began.
        progress: told (what is being checked, done, in all).
        keys: under which signatures are checked. What others have signed is listed, not judged.

    Raises:
        CallerError: the data file cannot be read, or has a layout that is not known here.
    """
    with survey(store) as found:
        report = Report()
        for fault in found.faults():
            _damage(report, *fault)
        _check_contents(report, found, progress)
        if keys:
            with found.read() as view:
                _check_signatures(report, view, keys)
    return report


def _check_contents(report: Report, store: Store, progress: Callable[[str, int, int], None]) -> None:
    with store.read() as view:
        digests = list(view.blob_digests())
        records = list(view.stored_snapshot_digests())
        names = view.runs()
    for done, digest in enumerate(digests, 1):
        with store.read() as view:
            _attempt(report, f"blob {digest.hex()}", "what is named below", lambda: view.get_blob(digest))  # noqa: B023 # called at once
        progress("blobs", done, len(digests))
    report.blobs = len(digests)
    for done, digest in enumerate(records, 1):
        with store.read() as view:
            _attempt(
                report,
                f"record of snapshot {digest.hex()}",
                "what is named below",
                lambda: _check_record(view, digest),  # noqa: B023 # called at once
            )
        progress("records", done, len(records))
    for name in names:
        _check_run(report, store, name, progress)
    report.runs = len(names)
    with store.read() as view:
        found = audit(view, progress)
    report.ledger, report.not_entered = found.leaves, found.not_entered
    for what, error, cost in found.damages:
        _damage(report, what, error, cost)


def _check_record(view: Reader, digest: bytes) -> None:
    """Check a stored snapshot's record by itself, for no run may need it; its frames come when it is decoded."""
    try:
        stored = StoredSnapshot.parse(view.stored_snapshot(digest))
    except MalformedError as error:
        raise DamagedError(str(error)) from error
    if stored.state_digest != digest:
        raise DamagedError("is not the one it stands for", expected=digest, got=stored.state_digest)


def _check_run(report: Report, store: Store, name: str, progress: Callable[[str, int, int], None]) -> None:
    run = _attempt(report, f"run {name}", "the whole run", lambda: Run(store, name))
    if run is None:
        return
    manifest = _attempt(report, f"run {name}, manifest", "the whole run", lambda: run.manifest)
    if manifest is None:
        return
    size = _attempt(report, f"run {name}, tree", f"all proofs of run {name}", run.size)
    records: list[SegmentRecord | None] = (
        [None] if size is None else [_check_segment(report, run, index) for index in range(size - 1)]
    )
    _check_joints(report, run, manifest, records)
    _attempt(report, f"run {name}, data for proofs", "all its proofs", lambda: _check_private(run, manifest))
    states: dict[int, bytes] | None = None
    if None not in records:
        states = {0: manifest.initial.state} | {record.end_step: record.end_state for record in records if record}
    _check_snapshots(report, run, states, progress)
    if states is not None:
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
    report: Report, run: Run, states: dict[int, bytes] | None, progress: Callable[[str, int, int], None]
) -> None:
    """Decode every snapshot; ``states`` are those that the records name, by step, None where some cannot be read."""
    present = run.snapshots
    places = {step: number for number, step in enumerate(present if states is None else states)}
    steps = sorted({*present, *places})
    for done, step in enumerate(steps, 1):
        what = f"snapshot at step {step} of run {run.name}"
        if step in places:
            cost = _cost(run, places[step], len(places) - 1)
            _attempt(report, what, cost, lambda: _check_state(run, step, (states or {}).get(step)))  # noqa: B023 # called at once
        else:
            _damage(report, what, "belongs to no segment", f"the end of run {run.name}")
        progress("snapshots", done, len(steps))
    report.snapshots += len(present)


def _check_state(run: Run, step: int, expected: bytes | None) -> None:
    digest = run.state(step).digest()
    if expected is not None and digest != expected:
        raise DamagedError("is not the one that the segment records name", expected=expected, got=digest)


def _cost(run: Run, number: int, segments: int) -> str:
    """Say which of a run's segments begin or end with snapshot ``number``."""
    around = [f"{index}" for index in (number - 1, number) if 0 <= index < segments]
    kind = "segments" if len(around) > 1 else "segment"
    return f"{kind} {' and '.join(around)} of run {run.name}" if around else f"run {run.name}"


def _check_private(run: Run, manifest: Manifest) -> None:
    hashes = run.blob(run.row.sample_hashes)
    root = merkle.root([hashes[start : start + 32] for start in range(0, len(hashes), 32)])
    if root != manifest.dataset.root:
        raise DamagedError("sample hashes do not lead to the dataset's root", expected=manifest.dataset.root, got=root)
    run.blob(manifest.optimizer.hyperparameters)
    if manifest.initial.parent is not None:
        run.blob(manifest.initial.parent.inherited)


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


def _check_signatures(report: Report, view: Reader, keys: Sequence[VerifierKey]) -> None:
    """Check what the given keys have signed; what cannot be read is damaged, and was named before."""
    for what, read in _signed(view):
        try:
            data = read()
            by = {(signature.name, signature.key_id) for signature in parse_note(data).signatures}
        except (DamagedError, MissingError, MalformedError):
            continue
        signers = [key for key in keys if (key.name, key.key_id) in by]
        if not signers:
            report.other_signers.append(what)
            continue
        try:
            open_root(data, signers)
        except (SignatureError, MalformedError) as error:
            _damage(report, what, str(error), "that signature")
        else:
            report.signatures += 1


def _signed(view: Reader) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield everything that is signed: what it is, and how to read it."""
    for name in view.runs():
        for size in view.roots(name):
            yield f"run {name}, signed root of size {size}", partial(view.root, name, size)
    for size in view.ledger.heads():
        yield f"head of the ledger over {size} leaves", partial(view.ledger.head, size)


def _attempt(report: Report, what: str, cost: str, check: Callable[[], T]) -> T | None:
    try:
        return check()
    except (DamagedError, MissingError) as error:
        _damage(report, what, str(error), cost)
        return None


def _damage(report: Report, what: str, error: str, cost: str) -> None:
    report.damages.append(Damage(what, error, cost))
