"""Check 12: what all checks together come to, who chose what was opened, and what it would have caught.

Adds nothing to what the checks found. Implements specs/verification.md, check 12 and section "Power".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polverify.power import Power
from polverify.verdict import Decision, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.wire.segment import SegmentRecord
    from polverify.request import Request
    from polverify.verdict import Check, SegmentResult

__all__ = ["chosen_by", "decided", "power_of", "steps_replayed"]


def decided(
    checks: Sequence[Check], fault: str | None, lacking: str | None, results: Sequence[SegmentResult], segments: int
) -> tuple[Decision, str]:
    """Return the decision and its reason, one line.

    Args:
        checks: all checks made.
        fault: what the first check that failed found, or None.
        lacking: what the verifier's policy finds the power to lack, or None.
        results: the replays.
        segments: of the whole run.
    """
    if fault is not None:
        return Decision.REJECT, fault
    for check in checks:
        if check.outcome is Outcome.UNDECIDED:
            return Decision.INCONCLUSIVE, f"check {check.number} ({check.name}): {check.detail}"
    if lacking is not None:
        return Decision.INCONCLUSIVE, f"check 12 (verdict): {lacking}"
    tolerated = sum(result.tolerated for result in results)
    how = f"within tolerance ({len(results) - tolerated} bit for bit)" if tolerated else "bit for bit"
    return Decision.ACCEPT, f"{len(results)} of {segments} segments replayed {how}"


def power_of(
    request: Request,
    records: Sequence[SegmentRecord],
    opened: Sequence[int],
    results: Sequence[SegmentResult],
    bytes_moved: int,
) -> Power:
    """Say what the checks would have caught.

    Args:
        request: with the challenge.
        records: all of the run.
        opened: the opened segments.
        results: their replays.
        bytes_moved: length of the bundle.
    """
    challenge, passed = request.challenge, _passed(results)
    # Else the prover chose, by the environment classes that he named, what was not replayed.
    whole = len(passed) == len(opened)
    drawn = challenge.random if challenge is not None and whole else 0
    return Power(
        segments=len(records),
        fixed=len(passed) - drawn,
        drawn=drawn,
        population=len(records) - (len(passed) - drawn),
        top=challenge.rules.top if challenge is not None and whole else 0,
        audited=request.audit,
        nonce_from="nobody" if challenge is None else challenge.source,
        steps_replayed=steps_replayed(results),
        steps_trained=records[-1].end_step,
        bytes_moved=bytes_moved,
        tolerated=sum(result.tolerated for result in passed),
    )


def steps_replayed(results: Sequence[SegmentResult]) -> int:
    """Return the steps of the segments that a replay has confirmed."""
    return sum(result.end_step - result.start_step for result in _passed(results))


def chosen_by(request: Request, opened: Sequence[int]) -> dict[int, str]:
    """Say of each opened segment who chose it (`polverify.coverage.CHOSEN`)."""
    challenge = request.challenge
    if challenge is None:
        return dict.fromkeys(opened, "caller" if callable(request.bundle) else "prover")
    return (
        dict.fromkeys(opened, "random")
        | dict.fromkeys(challenge.named, "named")
        | dict.fromkeys(challenge.picked, "picked")
    )


def _passed(results: Sequence[SegmentResult]) -> list[SegmentResult]:
    return [result for result in results if result.outcome is Outcome.PASSED]
