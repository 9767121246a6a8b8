"""The full audit: the norms of every segment, and what is odd about its states, from all snapshots and without replay.

Walks the run in order and holds a few decoded snapshots at a time, whatever its length. Opens no samples and loads no
torch. Implements specs/verification.md, section "Full audit".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from polstore.codec.norms import distances
from polstore.errors import ReplayError
from polverify.continuity import state_at
from polverify.plausibility import Movement, movement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from polstore.codec.snapshot import Snapshot
    from polstore.wire.segment import SegmentRecord
    from polverify.states import States

__all__ = ["audit", "check_norms"]

NORM_TOLERANCE = 1e-9  # relative: float64 sums of the same numbers in another order


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
        ReplayError: a norm is not that of the snapshots.
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
        check_norms(record, start, end)
        yield index, movement(start, end, record.end_step - record.start_step)
        progress(done, len(wanted))
    del base


def check_norms(record: SegmentRecord, start: Snapshot, end: Snapshot) -> None:
    """Require that a record's norms are those between its snapshots; raises `ReplayError`."""
    got = distances(start, end)
    for name in ("l1", "l2", "linf", "cos"):
        ours, theirs = getattr(got, name), getattr(record.norms, name)
        same = math.isclose(ours, theirs, rel_tol=NORM_TOLERANCE, abs_tol=NORM_TOLERANCE * max(got.l1, 1e-300))
        if not (same or (math.isnan(ours) and math.isnan(theirs))):
            raise ReplayError(f"segment {record.index}: norm {name}", expected=ours, got=theirs)
