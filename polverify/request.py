"""What a verifier hands to the verification: the proof, and everything of his own that it is judged by.

A value that neither reads nor judges anything; specs/verification.md says what each check does with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from polverify.policy import VerifierPolicy
from polverify.time import Sources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from polstore.codec.live.recipe import RecipeFile
    from polstore.wire.challenge import Challenge
    from polstore.wire.keys import VerifierKey
    from polverify.calibration import Calibration
    from polverify.distance import Criterion

__all__ = ["Request", "silent"]


def silent(what: str, done: int, total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Request:
    """What the verifier holds and wants to know.

    Attributes:
        signed_root: bytes of the signed root.
        keys: the keys that all must have signed it; may be empty where the policy of ``time`` lists logs, of which one
            must have.
        bundle: path of the bundle, or a function that makes one and returns its path, called in check 0.
        recipe: the verifier's own recipe file.
        challenge: the verifier's challenge, or None to look at whatever the prover opened.
        ledger: bytes of the proof that the signed root is in a ledger (a .tlog-proof file), or None.
        audit: whether the bundle has to carry every snapshot, from which all norms are computed again.
        device: where to replay.
        lineage: the evidence for the run's parent (specs/lineage.md), or None.
        parent_keys: the keys that all must have signed the parent's root; if empty, it takes those that this one takes.
        parent_root: the verifier's own copy of the parent's signed root, or None.
        parent_proof: bytes of the proof that the parent's signed root is in a ledger, or None.
        time: whom the verifier believes about times.
        policy: what the verifier allows and requires besides.
        now: the verifier's clock, seconds since 1970, for a policy that limits the age of evidence; or None.
        tolerant: whether to measure the noise of segments whose replay cannot be bit-exact here, and compare within it.
        calibration: noise that was measured before, on this machine.
        d_ref: the paper's reference distance by metric, as far as it is known.
        criterion: the paper's criterion, to be applied as well.
        jobs: how many segments to replay at once, each in a process of its own, all on ``device``.
        evaluate: whether to run the recipe's own evaluation on the opened snapshots.
        progress: told (what is being done, done, in all).
    """

    signed_root: bytes
    keys: Sequence[VerifierKey]
    bundle: Path | str | Callable[[], Path]
    recipe: RecipeFile
    challenge: Challenge | None = None
    ledger: bytes | None = None
    audit: bool = False
    device: str = "cpu"
    lineage: bytes | None = None
    parent_keys: Sequence[VerifierKey] = ()
    parent_root: bytes | None = None
    parent_proof: bytes | None = None
    time: Sources = field(default_factory=Sources)
    policy: VerifierPolicy = field(default_factory=VerifierPolicy)
    now: int | None = None
    tolerant: bool = False
    calibration: Calibration | None = None
    d_ref: Mapping[str, float] = field(default_factory=dict)
    criterion: Criterion | None = None
    jobs: int = 1
    evaluate: bool = False
    progress: Callable[[str, int, int], None] = silent
