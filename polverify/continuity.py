"""Whether all segment records of a run join up, from snapshot 0 to the last one.

Needs every record and no data. Implements specs/verification.md, check 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polstore.codec.quantise import base_is_previous
from polstore.errors import ContinuityError, MerkleError
from polstore.wire import merkle
from polstore.wire.segment import SegmentRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.wire.manifest import Manifest

__all__ = ["check_continuity", "state_at"]

MAX_BASE_DISTANCE = 64  # segments between a snapshot and the one it is quantised against: rounding grows with the way


def check_continuity(leaves: Sequence[bytes], root: bytes, manifest: Manifest) -> tuple[SegmentRecord, ...]:
    """Parse all segment records and require that they make one run.

    Args:
        leaves: the manifest's bytes, then every segment record's.
        root: the signed root over exactly these leaves.
        manifest: leaf 0, parsed.

    Raises:
        MerkleError: the leaves do not hash to the root.
        MalformedError: a leaf is no segment record.
        ContinuityError: the records do not join up.
    """
    got = merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])
    if got != root:
        raise MerkleError("leaves of the bundle do not hash to the signed root", expected=root, got=got)
    records: list[SegmentRecord] = []
    step, state = 0, manifest.initial.state
    ends = {0: 0}  # step of a snapshot -> its number
    for index, leaf in enumerate(leaves[1:]):
        record = SegmentRecord.parse(leaf)
        name = f"segment {index}"
        _same(f"{name}: index", index, record.index)
        _same(f"{name}: first step", step, record.start_step)
        _same(f"{name}: state it starts from", state, record.start_state)
        due = (step // manifest.every + 1) * manifest.every
        if record.end_step > due:
            raise ContinuityError(f"{name}: step of its end", expected=f"at most {due}", got=record.end_step)
        if record.base_step is not None:
            if manifest.fidelity == "lossless":
                raise ContinuityError(f"{name}: base of a lossless snapshot", expected=None, got=record.base_step)
            if base_is_previous(manifest.fidelity) and record.base_step != step:
                raise ContinuityError(f"{name}: base", expected=f"the snapshot before, {step}", got=record.base_step)
            number = ends.get(record.base_step)
            if number is None or index - number >= MAX_BASE_DISTANCE:
                raise ContinuityError(
                    f"{name}: base", expected=f"one of the {MAX_BASE_DISTANCE} snapshots before", got=record.base_step
                )
        step, state = record.end_step, record.end_state
        ends[step] = index + 1
        records.append(record)
    return tuple(records)


def state_at(records: Sequence[SegmentRecord], step: int) -> bytes:
    """Return the state digest of the snapshot at ``step``, which `check_continuity` has found to be one."""
    if step == records[0].start_step:
        return records[0].start_state
    return next(record.end_state for record in records if record.end_step == step)


def _same(what: str, expected: object, got: object) -> None:
    if expected != got:
        raise ContinuityError(what, expected=expected, got=got)
