"""The power of a verification: how likely a forged run would have been caught, and what a wanted power costs.

Pure arithmetic on numbers of segments. Only segments that a nonce drew count: a forger knows the others beforehand, or
chooses them by what he writes into his records. Implements specs/verification.md, section "Power".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from polstore.errors import UsageError

__all__ = ["SHARES", "Plan", "Power", "caught", "forged_segments", "plan"]

SHARES = (Fraction(1, 100), Fraction(5, 100), Fraction(10, 100))  # forged parts of a run that every verdict speaks of
EXACT = 20_000  # drawn or forged segments, whichever are fewer, up to which binomials stay cheap (half a second)


def forged_segments(segments: int, share: Fraction) -> int:
    """Return how many segments a forged share of a run is: rounded up, at least 1."""
    return max(1, math.ceil(segments * share))


def caught(population: int, forged: int, drawn: int) -> float:
    """Return the probability that ``drawn`` of ``population`` segments, without replacement, hit one that is forged.

    Hypergeometric: 1 - C(population - forged, drawn) / C(population, drawn). Correctly rounded, but for numbers that
    both exceed `EXACT`: then a lower bound, 1 - (1 - forged / population)^drawn, above 1 - 5e-11 for all runs that a
    bundle can hold.

    Raises:
        UsageError: numbers that do not go together.
    """
    if not (0 <= forged <= population and 0 <= drawn <= population):
        raise UsageError("forged and drawn segments", expected=f"0 to {population} each", got=(forged, drawn))
    if forged and drawn > population - forged:
        return 1.0
    if min(forged, drawn) > EXACT:
        return -math.expm1(drawn * math.log1p(-forged / population)) if forged < population else 1.0
    missed, every = _missed(population, forged, drawn)
    return (every - missed) / every


def _missed(population: int, forged: int, drawn: int) -> tuple[int, int]:
    """Return how many draws of how many miss all forged segments; forged and drawn may change places."""
    few, many = min(forged, drawn), max(forged, drawn)
    return math.comb(population - many, few), math.comb(population, few)


@dataclass(frozen=True)
class Power:
    """What a verification would have caught, and how much of the run it looked at.

    Attributes:
        segments: of the run.
        fixed: opened and replayed segments that the forger could know before he signed, or choose by his records.
        drawn: those that a nonce drew, and that were replayed.
        population: segments that were not fixed, so among which the nonce drew.
        top: largest updates of every epoch that were opened, under each distance; 0 for none.
        audited: whether all norms were computed again from the snapshots.
        nonce_from: source of the challenge's nonce; "nobody" without a challenge.
        steps_replayed: optimizer steps.
        steps_trained: optimizer steps of the run.
        bytes_moved: length of the bundle; of a static archive, what was fetched.
        tolerated: of the fixed and drawn ones, those whose replay is within a measured tolerance and not bit for bit;
            there only forgeries beyond the tolerance are caught.
    """

    segments: int
    fixed: int
    drawn: int
    population: int
    top: int
    audited: bool
    nonce_from: str
    steps_replayed: int
    steps_trained: int
    bytes_moved: int
    tolerated: int = 0

    def against(self, forged: int) -> float:
        """Return the probability that a run with so many forged segments would have been caught.

        The forger puts them where the nonce has to find them; what does not fit there lies in a fixed segment.
        """
        if forged > self.population:
            return 1.0
        return caught(self.population, forged, self.drawn)

    @property
    def top_counts(self) -> bool:
        """Whether top-Q catches a concatenation: the largest updates are facts, and were opened."""
        return self.top > 0 and self.audited

    def against_concatenation(self) -> float:
        """Return the probability that one jump, much larger than any honest update, would have been caught.

        The jump is what is false. Where the state before it is, and makes the optimizer jump, that is `against` (1):
        the segment with the largest update replays, and the forged one has a norm like any other.
        """
        return 1.0 if self.top_counts else self.against(1)

    def as_json(self) -> dict[str, Any]:
        """Return the statement as plain data."""
        shares = [
            {
                "share": float(share),
                "segments": (count := forged_segments(self.segments, share)),
                "p": self.against(count),
            }
            for share in SHARES
        ]
        return {
            "segments": self.segments,
            "fixed": self.fixed,
            "drawn": self.drawn,
            "population": self.population,
            "nonce_from": self.nonce_from,
            "detection": shares,
            "one_bad_segment": self.against(1),
            "concatenation": {
                "top": self.top,
                "norms": "facts" if self.audited else "claims",
                "by_drawing": self.against(1),
                "with_top": self.against_concatenation(),
            },
            "steps_replayed": self.steps_replayed,
            "steps_trained": self.steps_trained,
            "bytes_moved": self.bytes_moved,
            "tolerated": self.tolerated,
        }

    def lines(self) -> list[str]:
        """Return the statement in a few lines of text."""
        shares = ", ".join(
            f"{percent(self.against(forged_segments(self.segments, share)))} with {100 * float(share):g} % forged"
            for share in SHARES
        )
        one, part = percent(self.against(1)), self.steps_replayed / max(self.steps_trained, 1)
        drawn = f"{self.drawn} of {self.population} drawn"
        within = f"{self.tolerated} of the replayed segments catch only what exceeds the tolerance measured for them"
        return [
            f"a forged run is caught with probability {shares}, {one} with one bad segment ({drawn})",
            self._about_top(),
            f"{self.steps_replayed} of {self.steps_trained} steps replayed ({percent(part)})",
            f"{self.bytes_moved} bytes moved",
            *([within] if self.tolerated else []),
        ]

    def _about_top(self) -> str:
        whole = percent(self.against_concatenation())
        if self.top_counts:
            return (
                f"a concatenation is caught with probability {whole}: the largest updates (Q = {self.top}) are facts; "
                "where a forged optimizer state carries the jump out, which replays, it is caught as one bad segment "
                f"is, with {percent(self.against(1))}"
            )
        if self.top:
            return (
                f"a concatenation is caught with probability {whole}: the largest updates (Q = {self.top}) are claims, "
                "and add nothing against a forger who writes a small norm for his jump"
            )
        return f"a concatenation is caught with probability {whole}: largest updates were not asked for"


def percent(part: float) -> str:
    """Return a probability for reading, never rounded up to certainty: 26.5 %, 99.99 %, 100 %."""
    if part >= 1 or part <= 0:
        return "100 %" if part >= 1 else "0 %"
    digits = 1 if 0.001 <= part <= 0.999 else 2
    shown = min(max(100 * part, 0.01), 99.99)
    return f"{shown:.{digits}f} %"


@dataclass(frozen=True)
class Plan:
    """How many segments a wanted power takes.

    Attributes:
        segments: of the run.
        forged: segments that a forged run of the wanted share has.
        drawn: segments for the nonce to draw.
        opened: all segments to open: those, the first and the last.
        p: the probability that comes out, at least the wanted one.
    """

    segments: int
    forged: int
    drawn: int
    opened: int
    p: float

    def as_json(self, steps: int | None, step_seconds: float | None, segment_bytes: int | None) -> dict[str, Any]:
        """Return the plan as plain data with its cost, as far as steps of a segment, seconds and bytes are given."""
        cost: dict[str, Any] = {"share_of_training": self.opened / self.segments}
        if steps is not None:
            cost["steps"] = self.opened * steps
            if step_seconds is not None:
                cost["seconds"] = self.opened * steps * step_seconds
        if segment_bytes is not None:
            cost["bytes"] = self.opened * segment_bytes
        return {
            "segments": self.segments,
            "forged": self.forged,
            "random": self.drawn,
            "opened": self.opened,
            "p": self.p,
            "cost": cost,
        }

    def lines(self, result: dict[str, Any]) -> list[str]:
        """Return what `as_json` gave in a few lines of text."""
        cost = result["cost"]
        parts = [f"{percent(cost['share_of_training'])} of the training"]
        parts += [f"{cost['steps']} steps"] if "steps" in cost else []
        parts += [f"{cost['seconds']:.0f} s"] if "seconds" in cost else []
        parts += [f"{cost['bytes']} bytes"] if "bytes" in cost else []
        return [
            f"random segments: {self.drawn}",
            f"segments to open: {self.opened} of {self.segments}, the first and the last among them",
            f"probability of catching {self.forged} forged ones: {percent(self.p)}",
            f"cost: {', '.join(parts)}",
        ]


def plan(segments: int, share: Fraction, confidence: Fraction) -> Plan:
    """Return the fewest random segments that catch a forged share with a probability of at least ``confidence``.

    Args:
        segments: of the run.
        share: forged part of the segments, above 0 and at most 1; the forger spares the first and the last.
        confidence: above 0, at most 1.

    Raises:
        UsageError: a number out of range.
    """
    if segments < 1:
        raise UsageError("number of segments", expected="1 or more", got=segments)
    if not 0 < share <= 1:
        raise UsageError("forged share", expected="above 0 and at most 1", got=float(share))
    if not 0 < confidence <= 1:
        raise UsageError("confidence", expected="above 0 and at most 1", got=float(confidence))
    fixed = min(segments, 2)
    population, forged = segments - fixed, forged_segments(segments, share)
    if forged > population:
        return Plan(segments, forged, 0, fixed, 1.0)

    certain = population - forged + 1  # one more than the sound ones, and no fewer

    def enough(drawn: int) -> bool:
        missed, every = _missed(population, forged, drawn)
        return every - missed >= confidence * every

    high = certain if confidence == 1 else 1
    while high < certain and not enough(high):
        high = min(2 * high, certain)
    low = high - 1 if confidence == 1 else high // 2  # not enough, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return Plan(segments, forged, high, high + fixed, caught(population, forged, high))
