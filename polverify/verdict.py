"""The verdict: what was decided, by which checks, on how much of the run.

A value with no truth: ``if verdict`` is an error, so INCONCLUSIVE can never pass for either answer. Implements
specs/verification.md, section "Verdict".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from polverify.coverage import Coverage
    from polverify.power import Power

__all__ = ["MAX_VERDICT", "Check", "Decision", "Outcome", "SegmentResult", "Verdict"]

SCHEMA = "polverify/verdict/v2"
MAX_VERDICT = 64 * 2**20  # bytes of a saved one; rows of a table and one entry for each opened segment


class Decision(Enum):
    """What a verdict says; the value is the exit code."""

    ACCEPT = 0
    REJECT = 1
    INCONCLUSIVE = 3


class Outcome(Enum):
    """What one check came to."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"  # it was tried and cannot tell
    NOT_MADE = "not made"  # nothing to make it with, or a check before it failed


@dataclass(frozen=True)
class Check:
    """One numbered check of specs/verification.md and what it found."""

    number: int
    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class SegmentResult:
    """What the replay of one segment came to.

    Attributes:
        index: number of the segment.
        start_step: its first step.
        end_step: the step after its last one.
        outcome: what it came to.
        detail: one line.
        measured: figures as plain data, each where it was measured: ``epsilon``, ``tolerance``, ``evaluation``
            (specs/tolerance.md).
    """

    index: int
    start_step: int
    end_step: int
    outcome: Outcome
    detail: str
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def tolerated(self) -> bool:
        """Whether it passed, but not bit for bit."""
        return self.outcome is Outcome.PASSED and "tolerance" in self.measured

    def values(self) -> list[tuple[str, float]]:
        """Return what the recipe's own evaluation gave, at both ends."""
        ends = self.measured.get("evaluation", {})
        return [pair for end in ends.values() for pair in end.items()]


@dataclass(frozen=True)
class Verdict:
    """The verdict on one proof.

    Attributes:
        decision: ACCEPT, REJECT or INCONCLUSIVE.
        reason: one line; for REJECT the check that failed, with what was expected and got.
        checks: every check, in order.
        claim: what the proof claims, as far as it could be read: origin, size, root and so on.
        segments: the replays.
        warnings: what limits the verdict's worth.
        power: what would have been caught; None for REJECT.
        coverage: the whole run, segment by segment, with what was opened; empty if it was not reached.
        losses: (step, loss) in the opened segments.
        policy: the policy that it was judged by, as plain data; None without one.
    """

    decision: Decision
    reason: str
    checks: tuple[Check, ...]
    claim: dict[str, Any] = field(default_factory=dict)
    segments: tuple[SegmentResult, ...] = ()
    warnings: tuple[str, ...] = ()
    power: Power | None = None
    coverage: tuple[Coverage, ...] = ()
    losses: tuple[tuple[int, float], ...] = ()
    policy: dict[str, Any] | None = None

    def __bool__(self) -> NoReturn:
        raise TypeError("a verdict has no truth value; compare its decision")

    @property
    def exit_code(self) -> int:
        """0 for ACCEPT, 1 for REJECT, 3 for INCONCLUSIVE."""
        return self.decision.value

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as plain data; the schema is named in it."""
        return {
            "schema": SCHEMA,
            "decision": self.decision.name,
            "reason": self.reason,
            "claim": self.claim,
            "checks": [
                {"number": check.number, "name": check.name, "outcome": check.outcome.value, "detail": check.detail}
                for check in self.checks
            ],
            "segments": [
                {
                    "index": segment.index,
                    "start_step": segment.start_step,
                    "end_step": segment.end_step,
                    "outcome": segment.outcome.value,
                    "detail": segment.detail,
                    **segment.measured,
                }
                for segment in self.segments
            ],
            "warnings": list(self.warnings),
            "power": None if self.power is None else self.power.as_json(),
            "coverage": [row.as_json() for row in self.coverage],
            "losses": [list(pair) for pair in self.losses],
            "policy": self.policy,
        }
