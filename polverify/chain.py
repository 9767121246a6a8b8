"""The chain of trust: links of a lineage joined up to its root, and what all their verdicts together are worth.

Every link is verified here, signatures and proofs included. The verdicts are the caller's own files, as his
`polverify check --json` wrote them: they are believed, so one that somebody else sent is worth nothing. Implements
specs/lineage.md, section "Chains". Replays nothing and does no I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from polstore.errors import CallerError, ContinuityError, ProofError, UsageError
from polstore.wire.challenge import ROOT
from polstore.wire.lineage import Lineage
from polverify.lineage import check_link_alone
from polverify.power import SHARES, caught, forged_segments, percent
from polverify.verdict import Decision

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    from polstore.wire.checkpoint import Checkpoint
    from polstore.wire.keys import VerifierKey
    from polverify.lineage import Link

__all__ = ["Chain", "OwnVerdict", "Run", "any_caught", "check_chain", "drawn_for", "every_caught", "share_of_each"]

MAX_LINKS = 1024
SCHEMA = "polverify/verdict/"
LENGTHS = (1, 2, 4, 8, 16)  # of chains, for the table of how it decays


def every_caught(parts: Sequence[float]) -> float:
    """Return the probability that forgeries in all runs are all found: what the whole chain is trusted with."""
    return math.prod(parts)


def any_caught(parts: Sequence[float]) -> float:
    """Return the probability that a chain is rejected in which every run is forged."""
    return 1 - math.prod(1 - part for part in parts)


def share_of_each(confidence: float, runs: int) -> float:
    """Return the probability that each of ``runs`` has to reach so that their product is ``confidence``."""
    return float(confidence ** (1 / runs))


def drawn_for(population: int, forged: int, confidence: float) -> int:
    """Return the fewest segments to draw so that one of ``forged`` is among them with that probability.

    Raises:
        UsageError: numbers that do not go together.
    """
    if not 0 < forged <= population or not 0 < confidence <= 1:
        raise UsageError("forged segments and confidence", expected=f"1 to {population}, above 0 to 1", got=forged)
    low, high = 0, population - forged + 1  # so many always hit one
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if caught(population, forged, middle) >= confidence else (middle, high)
    return high


@dataclass(frozen=True)
class OwnVerdict:
    """What the chain takes from a verdict of the caller's own.

    Attributes:
        decision: what it says.
        origin, size, root: of the signed root that it is about.
        segments: of the run.
        drawn: replayed segments that a nonce drew.
        population: segments among which it drew.
        nonce_from: where the nonce came from; empty if it does not say.
        tolerated: replayed segments that are within a tolerance, and not bit for bit.
        policy: SHA-256 of the policy that it was judged by, in hex; empty without one.
    """

    decision: Decision
    origin: str
    size: int
    root: str
    segments: int
    drawn: int
    population: int
    nonce_from: str = ""
    tolerated: int = 0
    policy: str = ""

    @classmethod
    def from_json(cls, value: Any, what: str) -> OwnVerdict:
        """Take a verdict from what `polverify check --json` printed; raises `CallerError`."""
        try:
            if not str(value["schema"]).startswith(SCHEMA):
                raise ValueError(f"schema {value['schema']!r}")
            claim, power = value["claim"], value.get("power") or {}
            segments = int(claim.get("segments", 0))
            drawn, population = int(power.get("drawn", 0)), int(power.get("population", segments))
            if not 0 <= drawn <= population <= segments:
                raise ValueError(f"{drawn} drawn of {population} of {segments} segments")
            return cls(
                Decision[value["decision"]],
                str(claim["origin"]),
                int(claim["size"]),
                str(claim["root"]),
                segments,
                drawn,
                population,
                str(power.get("nonce_from", "")),
                int(power.get("tolerated", 0)),
                str((value.get("policy") or {}).get("sha256", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CallerError(f"{what} is no verdict of polverify check --json: {error}") from error

    def against(self, forged: int) -> float:
        """Return the probability that so many forged segments were caught, put where the nonce has to find them."""
        return 1.0 if forged > self.population else caught(self.population, forged, self.drawn)


@dataclass(frozen=True)
class Run:
    """One run of the lineage: the signed root that the chain goes through, how it began, and the verdict on it."""

    origin: str
    size: int
    root: bytes
    initial: str
    inherited: int | None
    verdict: OwnVerdict | None


@dataclass(frozen=True)
class Chain:
    """What came of a chain.

    Attributes:
        decision: ACCEPT, REJECT or INCONCLUSIVE.
        reason: one line.
        runs: the youngest first, the root of the lineage last.
        confidence: that the whole chain was to keep.
        warnings: what limits its worth.
    """

    decision: Decision
    reason: str
    runs: tuple[Run, ...] = ()
    confidence: float = 0.99
    warnings: tuple[str, ...] = field(default=())

    @property
    def whole(self) -> bool:
        """Whether every run has a verdict, so that numbers mean something."""
        return bool(self.runs) and all(run.verdict is not None and run.verdict.segments for run in self.runs)

    def parts(self, share: Fraction | None) -> list[float]:
        """Return for each run the probability that a forged share of it was caught; None for one bad segment."""
        verdicts = [run.verdict for run in self.runs if run.verdict is not None]
        return [
            verdict.against(1 if share is None else forged_segments(verdict.segments, share)) for verdict in verdicts
        ]

    def needed(self, share: Fraction | None) -> list[int]:
        """Return for each run how many segments a nonce has to draw so that the chain keeps its confidence."""
        each = share_of_each(self.confidence, len(self.runs))
        found = []
        for verdict in (run.verdict for run in self.runs if run.verdict is not None):
            forged = 1 if share is None else forged_segments(verdict.segments, share)
            found.append(0 if forged > verdict.population else drawn_for(verdict.population, forged, each))
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        rows = []
        for share in (None, *SHARES) if self.whole else ():
            parts = self.parts(share)
            rows.append(
                {
                    "share": None if share is None else float(share),
                    "each": parts,
                    "weakest": min(parts),
                    "chain": every_caught(parts),
                    "any": any_caught(parts),
                    "drawn": [run.verdict.drawn for run in self.runs if run.verdict is not None],
                    "needed": self.needed(share),
                    "decay": {str(length): min(parts) ** length for length in LENGTHS},
                }
            )
        return {
            "schema": "polverify/chain/v1",
            "decision": self.decision.name,
            "reason": self.reason,
            "confidence": self.confidence,
            "runs": [
                {
                    "origin": run.origin,
                    "size": run.size,
                    "root": run.root.hex(),
                    "initial": run.initial,
                    "inherited": run.inherited,
                    "verdict": None if run.verdict is None else run.verdict.decision.name,
                }
                for run in self.runs
            ],
            "probability": rows,
            "warnings": list(self.warnings),
        }

    def lines(self) -> list[str]:
        """Return the report in a few lines of text."""
        lines = []
        for place, run in enumerate(self.runs):
            verdict = "no verdict" if run.verdict is None else run.verdict.decision.name
            how = f"{run.inherited} tensors from the next" if run.inherited is not None else f"by {run.initial}"
            lines.append(f"{place:2} {run.origin}, {run.size} leaves: {verdict}, begins {how}")
        for share in (None, *SHARES) if self.whole else ():
            parts = self.parts(share)
            what = "one bad segment" if share is None else f"{100 * float(share):g} % forged"
            lines.append(
                f"{what}: weakest run {percent(min(parts))}, whole chain {percent(every_caught(parts))}; "
                f"{percent(self.confidence)} takes {', '.join(map(str, self.needed(share)))} drawn segments"
            )
        return lines


def check_chain(
    lineages: Sequence[bytes],
    keys: Sequence[VerifierKey],
    verdicts: Sequence[OwnVerdict] = (),
    *,
    any_of: Sequence[VerifierKey] = (),
    confidence: float = 0.99,
    policy: str | None = None,
) -> Chain:
    """Verify links, join them up, and say what the chain is worth.

    Args:
        lineages: the evidence for each link, in any order.
        keys: keys of all signers; each signed root needs every one whose name its origin begins with.
        verdicts: the caller's own verdicts on the runs.
        any_of: log keys of a policy; see `polverify.lineage.check_link_alone`.
        confidence: what the whole chain is to keep.
        policy: SHA-256 of the caller's policy, in hex, by which he would have each verdict judged; None for any.

    Raises:
        UsageError: nothing to check, too many links, a verdict on a run that is not in the chain, or two on one run.
    """
    if not 1 <= len(lineages) <= MAX_LINKS:
        raise UsageError("links of a chain", expected=f"1 to {MAX_LINKS}", got=len(lineages))
    if not 0 < confidence < 1:
        raise UsageError("confidence", expected="above 0 and below 1", got=confidence)
    try:
        links = _ordered([check_link_alone(Lineage.parse(data), keys, any_of=any_of) for data in lineages])
    except ProofError as error:
        return Chain(Decision.REJECT, str(error), confidence=confidence)
    runs = _runs(links, verdicts)
    known = {(run.origin, run.size, run.root.hex()) for run in runs}
    for verdict in verdicts:
        if (verdict.origin, verdict.size, verdict.root) not in known:
            raise UsageError(
                "verdict on a signed root that is not in the chain",
                expected="; ".join(f"{run.origin}, {run.size} leaves, {run.root.hex()}" for run in runs),
                got=f"{verdict.origin}, {verdict.size} leaves, {verdict.root}",
            )
    about = {(verdict.origin, verdict.size, verdict.root) for verdict in verdicts}
    if len(about) != len(verdicts):
        raise UsageError("verdicts on one signed root", expected="one each", got=f"{len(verdicts)} on {len(about)}")
    decision, reason = _decided(runs)
    return Chain(decision, reason, runs, confidence, _warnings(runs, policy))


def _ordered(found: list[tuple[Link, Checkpoint]]) -> list[tuple[Link, Checkpoint]]:
    """Return the links, the youngest first; raises `ContinuityError` if they are not one line.

    Two roots of different size belong to one run if the same manifest is proven to be the first leaf of both.
    """
    by_child: dict[bytes, tuple[Link, Checkpoint]] = {}
    for link, root in found:
        leaf = link.child.encode()
        if leaf in by_child:
            raise ContinuityError("two links of one child", expected="one", got=root.origin)
        by_child[leaf] = (link, root)
    parents = {link.parent_leaf for link, _ in found}
    starts = [leaf for leaf in by_child if leaf not in parents]
    if len(starts) != 1:
        origins = ", ".join(by_child[leaf][1].origin for leaf in starts)
        raise ContinuityError("runs of the chain without a child in it", expected="one", got=origins or "none")
    ordered: list[tuple[Link, Checkpoint]] = []
    leaf = starts[0]
    while leaf in by_child:
        ordered.append(by_child.pop(leaf))
        leaf = ordered[-1][0].parent_leaf
    if by_child:
        raise ContinuityError("links that lead elsewhere", expected=0, got=len(by_child))
    for (link, _), (_, root) in pairwise(ordered):
        if link.root.checkpoint.origin != root.origin:
            raise ContinuityError("origin of a parent", expected=link.root.checkpoint.origin, got=root.origin)
    return ordered


def _runs(links: list[tuple[Link, Checkpoint]], verdicts: Sequence[OwnVerdict]) -> tuple[Run, ...]:
    by_root = {(verdict.origin, verdict.size, verdict.root): verdict for verdict in verdicts}
    roots = [links[0][1], *(link.root.checkpoint for link, _ in links)]
    manifests = [links[0][0].child, *(link.parent for link, _ in links)]
    inherited = [*(len(link.inherited) for link, _ in links), None]
    return tuple(
        Run(
            root.origin,
            root.size,
            root.root,
            manifest.initial.kind,
            count,
            by_root.get((root.origin, root.size, root.root.hex())),
        )
        for root, manifest, count in zip(roots, manifests, inherited, strict=True)
    )


def _decided(runs: tuple[Run, ...]) -> tuple[Decision, str]:
    rejected = [run for run in runs if run.verdict is not None and run.verdict.decision is Decision.REJECT]
    if rejected:
        return Decision.REJECT, f"{rejected[0].origin} was rejected"
    if runs[-1].initial == "parent":
        return Decision.INCONCLUSIVE, f"{runs[-1].origin} has a parent, and no link to it was given"
    for run in runs:
        if run.verdict is None:
            return Decision.INCONCLUSIVE, f"no verdict on {run.origin} over {run.size} leaves was given"
        if run.verdict.decision is not Decision.ACCEPT:
            return Decision.INCONCLUSIVE, f"the verdict on {run.origin} is inconclusive"
    return Decision.ACCEPT, f"{len(runs) - 1} links hold, and {len(runs)} runs were accepted, back to {runs[-1].origin}"


def _warnings(runs: tuple[Run, ...], policy: str | None) -> tuple[str, ...]:
    found = []
    if any(run.verdict is not None for run in runs):
        found.append("the verdicts were believed as they are: use your own only")
    if runs[-1].initial == "distribution":
        found.append("the lineage begins with a drawn initial state, the weakest evidence there is")
    unknown = [run.origin for run in runs if run.verdict is not None and not run.verdict.drawn]
    if unknown:
        found.append(f"no segment of {unknown[0]} was drawn by a nonce, so nothing adds up for the chain")
    weak = [run.origin for run in runs if run.verdict is not None and run.verdict.nonce_from == ROOT]
    if weak:
        found.append(f"weak: the segments of {weak[0]} were drawn from its own root, so a prover can try roots")
    for run in runs:
        if run.verdict is None:
            continue
        if run.verdict.tolerated:
            number = f"{run.verdict.tolerated} segments of {run.origin}"
            found.append(f"{number} are within a tolerance only, where no forgery within it is caught")
        if policy is not None and run.verdict.policy != policy:
            found.append(f"the verdict on {run.origin} was not judged by this policy, whose rules are not applied here")
    return tuple(found)
