"""Norms computed again, and what is odd about a segment's states, from the snapshots and without replay.

Over the opened segments, or over all of them in a full audit: walks the run in order and holds a few decoded snapshots
at a time, whatever its length. Opens no samples and loads no torch. Implements specs/verification.md, check 11 and
section "Full audit".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from polstore.codec.norms import distances
from polstore.errors import ReplayError
from polverify.continuity import state_at
from polverify.plausibility import Movement, movement
from polverify.verdict import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from polstore.codec.snapshot import Snapshot
    from polstore.wire.segment import SegmentRecord
    from polverify.states import States

__all__ = ["audit", "check_norms", "check_plausibility"]

# Float64 sums of the same numbers in another order: relative, but absolute for cos, a difference of numbers near 1.
NORM_TOLERANCE = 1e-9
MAX_NAMED = 8  # segments that a line lists; the rest is counted


def check_plausibility(
    records: Sequence[SegmentRecord],
    wanted: Iterable[int],
    replayed: Collection[int],
    states: States,
    progress: Callable[[int, int], None],
) -> tuple[Outcome, str, tuple[str, ...]]:
    """Audit segments, and judge what is odd about those that no replay has decided.

    Returns:
        The outcome, what is odd in one line (or nothing), and warnings.

    Raises: as `audit`.
    """
    against: list[int] = []
    decayed: list[int] = []
    for index, found in audit(records, wanted, states, progress):
        if index in replayed:
            continue
        if found.against:
            against.append(index)
        if found.decayed is not None:
            decayed.append(index)
    warnings: tuple[str, ...] = ()
    if against:
        warnings = (f"the weights moved against their moments in {_listed(against)}; open them to be sure",)
    if decayed:
        odd = f"second moments fell faster than beta2 lets them in {_listed(decayed)}; open them"
        return Outcome.UNDECIDED, odd, warnings
    return Outcome.PASSED, "", warnings


def audit(
    records: Sequence[SegmentRecord],
    wanted: Iterable[int],
    states: States,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Iterator[tuple[int, Movement]]:
    """Compute the norms of segments again, and yield what each one's states show.

    Args:
        records: all of the run.
        wanted: the segments to look at, ascending.
        states: gives the snapshots; every one of them is checked against its digest.
        progress: told (segments done, segments in all).

    Raises:
        ReplayError: a norm is not that of the snapshots, or a base lies farther off than the norms say.
        MalformedError: a snapshot does not decode to its state digest.
    """
    wanted = tuple(wanted)
    base: Snapshot | None = None  # held so that the snapshots taken against it need not decode it again and again
    base_step: int | None = None
    for done, index in enumerate(wanted, 1):
        record = records[index]
        if record.base_step != base_step:
            base_step = record.base_step
            base = None if base_step is None else states.get(state_at(records, base_step))
        start, end = states.get(record.start_state), states.get(record.end_state)
        check_norms(records, record, start, base, end)
        yield index, movement(start, end, record.end_step - record.start_step)
        progress(done, len(wanted))
    del base


def check_norms(
    records: Sequence[SegmentRecord], record: SegmentRecord, start: Snapshot, base: Snapshot | None, end: Snapshot
) -> None:
    """Require that a record's norms are those between its snapshots, and that they explain how far off its base is.

    Args:
        records: all of the run.
        record: the segment.
        start: the snapshot that it starts from.
        base: the snapshot that its end is quantised against, or None.
        end: the snapshot that it ends in.

    Raises:
        ReplayError: a norm is another, or the norms between base and end do not add up to their distance.
    """
    got = distances(start, end)
    for name in ("l1", "l2", "linf", "cos"):
        ours, theirs = getattr(got, name), getattr(record.norms, name)
        relative, absolute = (0.0, NORM_TOLERANCE) if name == "cos" else (NORM_TOLERANCE, 0.0)
        same = math.isclose(ours, theirs, rel_tol=relative, abs_tol=absolute)
        if not (same or (math.isnan(ours) and math.isnan(theirs))):
            raise ReplayError(f"segment {record.index}: norm {name}", expected=ours, got=theirs)
    _check_base(records, record, base, end)


def _check_base(records: Sequence[SegmentRecord], record: SegmentRecord, base: Snapshot | None, end: Snapshot) -> None:
    """Require that the base of a segment's end lies no farther from it than the records between the two can explain.

    Rounding is as coarse as the base is far off, so a forger would like one that no training led away from; the
    records on the way have to own up to that jump, by the triangle inequality. Where one of them has a norm that is no
    number, it has done so.
    """
    if base is None or record.base_step is None or record.base_step == record.start_step:
        return  # none, or the norm of the segment itself
    first = next(n for n in range(record.index, -1, -1) if records[n].start_step == record.base_step)
    got = distances(base, end)
    for name in ("l1", "l2", "linf"):
        most = sum(getattr(between.norms, name) for between in records[first : record.index + 1])
        if math.isfinite(most) and not getattr(got, name) <= most * (1 + NORM_TOLERANCE):
            raise ReplayError(
                f"segment {record.index}: {name} from the base of its end, over segments {first} to {record.index}",
                expected=f"at most {most:.6g}, the sum of their norms",
                got=f"{getattr(got, name):.6g}",
            )


def _listed(segments: Sequence[int]) -> str:
    """Name a few segments and count the rest."""
    shown = ", ".join(map(str, segments[:MAX_NAMED]))
    more = len(segments) - MAX_NAMED
    return f"segment {shown}" if len(segments) == 1 else f"segments {shown}" + (f" and {more} more" if more > 0 else "")
