"""How much of a run was looked at: its segments with their norms, which were opened and why, and the losses of those.

What the report draws. A run may have half a million segments, so neighbours share a row where there are too many; the
row then holds the largest norm of each kind, since a jump must stay in sight. Implements specs/verification.md, section
"Verdict". Judges nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from polstore.wire.segment import SegmentRecord
    from polstore.wire.steps import Steps

__all__ = ["CHOSEN", "MAX_LOSSES", "MAX_ROWS", "Coverage", "coverage", "losses"]

MAX_ROWS = 2048  # rows that opened segments, and others, take at most each: some 400 KB of JSON
MAX_LOSSES = 2048  # losses that are kept
CHOSEN = ("random", "named", "picked", "prover", "caller")  # the last two: without a challenge


@dataclass(frozen=True)
class Coverage:
    """One segment, or ``count`` neighbouring ones that were treated alike.

    Attributes:
        index: of the first.
        count: how many; between the steps there may be others, which have rows of their own.
        start_step: of the first.
        end_step: of the last, exclusive.
        l1, l2, linf, cos: the largest norm among them, as the records state it; NaN counts as the largest.
        opened: one of `CHOSEN`, or None if not opened.
        outcome: what the replays came to, one of `polverify.verdict.Outcome`'s values; None where there was none, be it
            that it was not opened, that it failed, or that another one failed before it.
    """

    index: int
    count: int
    start_step: int
    end_step: int
    l1: float
    l2: float
    linf: float
    cos: float
    opened: str | None = None
    outcome: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


def coverage(
    records: Sequence[SegmentRecord], opened: Mapping[int, str], outcomes: Mapping[int, str]
) -> tuple[Coverage, ...]:
    """Return rows that cover a run.

    At most `MAX_ROWS` of them, times the ways in which segments were treated: in a longer run, neighbouring segments
    that were treated alike share a row.

    Args:
        records: all segment records, in order.
        opened: how each opened segment was chosen.
        outcomes: what the replays came to.
    """
    width = max(1, -(-len(records) // MAX_ROWS))
    rows: dict[tuple[int, str | None, str | None], Coverage] = {}
    for record in records:
        norms, chosen, outcome = record.norms, opened.get(record.index), outcomes.get(record.index)
        row = Coverage(
            index=record.index,
            count=1,
            start_step=record.start_step,
            end_step=record.end_step,
            l1=norms.l1,
            l2=norms.l2,
            linf=norms.linf,
            cos=norms.cos,
            opened=chosen,
            outcome=outcome,
        )
        place = record.index // width, chosen, outcome
        rows[place] = _joined(rows[place], row) if place in rows else row
    return tuple(rows.values())


def losses(steps: Mapping[int, Steps]) -> tuple[tuple[int, float], ...]:
    """Return (step, loss) of the opened segments, evenly thinned out to `MAX_LOSSES`; steps without one have none."""
    found = [
        (number, step.loss)
        for index in sorted(steps)
        for number, step in enumerate(steps[index].steps, steps[index].start_step)
        if step.loss is not None
    ]
    every = max(1, -(-len(found) // MAX_LOSSES))
    return tuple(found[::every])


def _joined(one: Coverage, other: Coverage) -> Coverage:
    return replace(
        one,
        count=one.count + other.count,
        end_step=other.end_step,
        l1=_larger(one.l1, other.l1),
        l2=_larger(one.l2, other.l2),
        linf=_larger(one.linf, other.linf),
        cos=_larger(one.cos, other.cos),
    )


def _larger(one: float, other: float) -> float:
    return one if math.isnan(one) or one >= other else other
