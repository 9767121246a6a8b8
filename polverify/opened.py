"""The opened segments as one: what each replay needs, what the recipe's evaluation adds, and what all came to.

Decides no segment, which is the work of `polverify.replay.comparison`. Implements specs/verification.md, check 10.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from polstore.codec.quantise import MOMENTS, replays_exactly, roles_of
from polverify.continuity import state_at
from polverify.noise import Segment
from polverify.verdict import Outcome, SegmentResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polstore.wire.segment import SegmentRecord
    from polstore.wire.steps import Steps
    from polverify.replay.session import Session
    from polverify.states import States

__all__ = ["ended", "evaluated", "put_together"]


def put_together(
    record: SegmentRecord, records: Sequence[SegmentRecord], steps: Steps, states: States, fidelity: str
) -> Segment:
    """Return what a replay of one segment needs.

    Args:
        record: the segment.
        records: all of the run.
        steps: the segment's step records.
        states: gives the snapshots.
        fidelity: of the run.

    Raises:
        MalformedError: a snapshot does not decode to its state digest.
    """
    start = states.get(record.start_state)
    previous = records[record.index - 1] if record.index else None
    rounded, start_base = False, None
    if not replays_exactly(fidelity):
        roles = zip(start.tensors, roles_of(start.tensors), strict=True)
        rounded = any(role in MOMENTS and tensor.data.any() for tensor, role in roles)
        start_base = start  # the weights of a keyframe were not rounded
        if previous is not None and previous.base_step is not None:
            rounded = True
            digest = state_at(records, previous.base_step)
            start_base = states.get(digest) if digest in states else None
    base = None if record.base_step is None else states.get(state_at(records, record.base_step))
    return Segment(record, steps, start, base, rounded, start_base, fidelity)


def evaluated(
    results: Sequence[SegmentResult],
    opened: Sequence[SegmentRecord],
    session: Session,
    states: States,
    progress: Callable[[str, int, int], None],
) -> list[SegmentResult]:
    """Run the recipe's own evaluation on the opened snapshots, once each, and add what it gives to the results.

    Nothing can be replayed in the session afterwards.

    Raises:
        UsageError, ReplayError, TrainingError: as `polverify.replay.session.Session.evaluate`.
    """
    places = {record.start_step: record.start_state for record in opened}
    places |= {record.end_step: record.end_state for record in opened}
    values: dict[int, dict[str, float]] = {}
    for done, (step, digest) in enumerate(sorted(places.items())):
        progress("evaluating", done, len(places))
        values[step] = session.evaluate(step, states.get(digest))
    return [
        replace(result, measured=result.measured | {"evaluation": {"start": values[start], "end": values[end]}})
        for result in results
        for start, end in [(result.start_step, result.end_step)]
    ]


def ended(results: Sequence[SegmentResult], steps: int, warnings: list[str]) -> tuple[Outcome, str]:
    """Return what check 10 came to on ``results`` of a run of ``steps`` steps, and add to the warnings."""
    for result in results:
        if result.outcome is Outcome.UNDECIDED:
            return Outcome.UNDECIDED, f"segment {result.index}: {result.detail}"
    for result in results:
        for name, value in result.values():
            if math.isnan(value):
                return Outcome.UNDECIDED, f"segment {result.index}: the recipe's evaluation gives {name} NaN"
    tolerated = sum(result.tolerated for result in results)
    if tolerated:
        warnings.append(
            f"{tolerated} segments are within a tolerance measured here, which is weaker than bit for bit: "
            "a forgery that moves less than the tolerance passes, and one huge value in a tensor makes that large for "
            "all others in it"
        )
    how = f"{tolerated} of them within tolerance, the rest bit for bit" if tolerated else "bit for bit"
    replayed = sum(result.end_step - result.start_step for result in results)
    return Outcome.PASSED, f"{len(results)} segments, {replayed} steps of {steps}, {how}"
