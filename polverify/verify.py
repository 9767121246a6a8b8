"""The verification: numbered checks in one place, in the order of specs/verification.md.

Each check raises a `ProofError` when the proof is at fault, which rejects it; a fault of the verifier's own side (a
missing file, too little memory) is a `CallerError` and passes through. Nothing that a proof says selects, skips or
loosens a check. Torch is loaded at check 5, once everything that can be known without it is known.
"""

from __future__ import annotations

import math
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from polstore.codec.norms import distances
from polstore.codec.quantise import FIDELITIES, replays_exactly
from polstore.errors import (
    ChallengeError,
    MalformedError,
    MerkleError,
    ProofError,
    RecipeError,
    ReplayError,
    SignatureError,
)
from polstore.wire import canonical, merkle
from polstore.wire.checkpoint import open_root, run_origin
from polstore.wire.manifest import Manifest
from polstore.wire.steps import MAX_HYPERPARAMETERS, parse_groups
from polverify.bundle_file import BundleFile
from polverify.capability import narrow
from polverify.continuity import check_continuity, state_at
from polverify.data import check_samples, check_steps
from polverify.log import Entered, check_entry
from polverify.noise import Segment
from polverify.states import States
from polverify.time import Sources, gather
from polverify.verdict import Check, Decision, Outcome, SegmentResult, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from polstore.codec.live.recipe import RecipeFile
    from polstore.wire.challenge import Challenge
    from polstore.wire.checkpoint import Checkpoint, OpenedRoot
    from polstore.wire.keys import VerifierKey
    from polstore.wire.segment import SegmentRecord
    from polstore.wire.steps import Steps
    from polverify.calibration import Calibration
    from polverify.distance import Criterion
    from polverify.replay.session import Session

__all__ = ["Request", "Verification", "prepared", "silent", "verify"]

STATE_FACTOR = 16  # largest decoded state over the recipe's initial one, which lacks only what the optimizer adds
STATE_SLACK = 64 * 2**20  # bytes on top of that, for small models
NORM_TOLERANCE = 1e-9  # relative: float64 sums of the same numbers in another order


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
        device: where to replay.
        time: whom the verifier believes about times.
        tolerant: whether to measure the noise of segments whose replay cannot be bit-exact here, and compare within it.
        calibration: noise that was measured before, on this machine.
        d_ref: the paper's reference distance by metric, as far as it is known.
        criterion: the paper's criterion, to be applied as well.
        evaluate: whether to run the recipe's own evaluation on the opened snapshots.
        progress: told (what is being done, done, in all).
    """

    signed_root: bytes
    keys: Sequence[VerifierKey]
    bundle: Path | str | Callable[[], Path]
    recipe: RecipeFile
    challenge: Challenge | None = None
    ledger: bytes | None = None
    device: str = "cpu"
    time: Sources = field(default_factory=Sources)
    tolerant: bool = False
    calibration: Calibration | None = None
    d_ref: Mapping[str, float] = field(default_factory=dict)
    criterion: Criterion | None = None
    evaluate: bool = False
    progress: Callable[[str, int, int], None] = silent


def verify(request: Request) -> Verdict:
    """Check a proof and return the verdict on it.

    Raises:
        CallerError: the verifier's own side is at fault: a missing file, a recipe that fails here, too little memory.
    """
    return Verification(request).run()


@contextmanager
def prepared(request: Request) -> Iterator[Verification]:
    """Make checks 0 to 9, and yield what they established, for replays of the opened segments.

    Raises:
        ProofError: a check failed.
        CallerError: as for `verify`.
    """
    verification = Verification(request)
    try:
        for _, _, check in verification.plan():
            if check == verification.replay:
                break
            check()
        yield verification
    finally:
        verification.close()


@dataclass
class Verification:
    """The state of one verification, which each check adds to."""

    request: Request
    checks: list[Check] = field(default_factory=list)
    results: list[SegmentResult] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    claim: dict[str, Any] = field(default_factory=dict)
    logs: tuple[VerifierKey, ...] = ()
    opened: OpenedRoot = field(init=False)
    checkpoint: Checkpoint = field(init=False)
    file: BundleFile = field(init=False)
    states: States = field(init=False)
    manifest: Manifest = field(init=False)
    records: tuple[SegmentRecord, ...] = field(init=False)
    steps: dict[int, Steps] = field(init=False)
    session: Session = field(init=False)

    def plan(self) -> tuple[tuple[int, str, Callable[[], tuple[Outcome, str]]], ...]:
        """Return number, name and method of every check, in order."""
        return (
            (0, "well-formed bundle", self.well_formed),
            (1, "signature", self.signature),
            (2, "time", self.time),
            (3, "ledger", self.ledger),
            (4, "manifest", self.manifest_and_recipe),
            (5, "initial state", self.initial_state),
            (6, "continuity", self.continuity),
            (7, "challenge", self.challenge),
            (8, "inclusion", self.inclusion),
            (9, "data", self.data),
            (10, "replay", self.replay),
            (11, "plausibility", self.plausibility),
        )

    def run(self) -> Verdict:
        """Make the checks and add up."""
        fault: str | None = None
        try:
            for number, name, check in self.plan():
                if fault is not None:
                    self.checks.append(Check(number, name, Outcome.NOT_MADE, "a check before it failed"))
                    continue
                try:
                    outcome, detail = check()
                except ProofError as error:
                    fault = f"check {number} ({name}): {error}"
                    outcome, detail = Outcome.FAILED, str(error)
                self.checks.append(Check(number, name, outcome, detail))
        finally:
            self.close()
        return self.verdict(fault)

    def close(self) -> None:
        """Close the bundle."""
        if hasattr(self, "file"):
            self.file.close()

    def well_formed(self) -> tuple[Outcome, str]:
        """[check 0] The bundle is one, whole and nothing else."""
        bundle = self.request.bundle
        self.file = BundleFile(bundle() if callable(bundle) else bundle)
        self.file.check_blobs(lambda done, total: self.request.progress("hashing the bundle", done, total))
        index = self.file.bundle
        self.states = States(index.snapshots, self.file.blob)
        return Outcome.PASSED, f"{self.file.size} bytes, {len(index.opened)} segments opened"

    def signature(self) -> tuple[Outcome, str]:
        """[check 1] Every given key, and one of a policy's logs, has signed; the bundle was made for this root."""
        policy = self.request.time.policy
        self.logs = () if policy is None else tuple(log.key for log in policy.logs)
        self.opened = opened = open_root(self.request.signed_root, self.request.keys, any_of=self.logs)
        self.checkpoint = opened.checkpoint
        if self.checkpoint.extensions:
            raise SignatureError("extension lines of the signed root", expected=(), got=self.checkpoint.extensions)
        self.claim = {
            "origin": self.checkpoint.origin,
            "size": self.checkpoint.size,
            "root": self.checkpoint.root.hex(),
            "signed_by": sorted({key.name for key in opened.keys}),
        }
        bundle = self.file.bundle
        if (bundle.size, bundle.root) != (self.checkpoint.size, self.checkpoint.root):
            raise MerkleError(
                "bundle was made for another root",
                expected=f"{self.checkpoint.size} leaves, {self.checkpoint.root.hex()}",
                got=f"{bundle.size} leaves, {bundle.root.hex()}",
            )
        return (
            Outcome.PASSED,
            f"{self.checkpoint.origin}, {self.checkpoint.size} leaves, {len(opened.keys)} keys signed",
        )

    def time(self) -> tuple[Outcome, str]:
        """[check 2] What vouches for the time, from above and from below."""
        not_before, heads = None, []
        with suppress(MalformedError):  # check 4 says what is wrong with the manifest
            not_before = Manifest.parse(self.file.bundle.leaves[0]).not_before
        with suppress(ProofError):  # check 3 says what is wrong with the ledger
            heads = [entry.head.note for entry in self.entries()]
        found = gather(self.opened, self.request.time, not_before, heads)
        self.claim["time"] = found.pieces
        self.warnings += found.warnings
        found.require()
        if not found.pieces:
            return Outcome.NOT_MADE, "no cosignature by a given key, no token"
        return Outcome.PASSED, "; ".join(found.details)

    def ledger(self) -> tuple[Outcome, str]:
        """[check 3] The signed root is in an append-only log."""
        entries = self.entries()
        if not entries:
            return Outcome.NOT_MADE, "no ledger evidence was given"
        self.warnings.append("whether the ledger was rewritten since is what polverify log tells")
        head = entries[0].head.checkpoint
        return Outcome.PASSED, f"leaf {entries[0].index} of {head.size} of {head.origin}"

    def entries(self) -> list[Entered]:
        """Return where the root is in its ledger: once, or not at all if no proof of it was given."""
        if self.request.ledger is None:
            return []
        manifest = Manifest.parse(self.file.bundle.leaves[0])
        time = self.opened.timestamp
        keys = self.request.keys
        return [check_entry(self.request.ledger, keys, self.checkpoint, manifest, time, any_of=self.logs)]

    def manifest_and_recipe(self) -> tuple[Outcome, str]:
        """[check 4] The manifest is this run's, and the verifier has its recipe."""
        self.manifest = manifest = Manifest.parse(self.file.bundle.leaves[0])
        origins = {run_origin(key.name, manifest.run) for key in self.opened.keys}
        if origins != {self.checkpoint.origin}:
            raise MalformedError("run that the manifest names", expected=self.checkpoint.origin, got=manifest.run)
        self.claim |= {
            "run": manifest.run,
            "fidelity": manifest.fidelity,
            "every": manifest.every,
            "recipe": manifest.recipe.digest.hex(),
            "config": dict(manifest.recipe.config),
            "dataset": {"root": manifest.dataset.root.hex(), "size": manifest.dataset.size},
            "optimizer": manifest.optimizer.name,
            "initial": manifest.initial.kind,
        }
        if manifest.fidelity not in FIDELITIES:
            raise MalformedError("fidelity of the run", expected=" or ".join(FIDELITIES), got=manifest.fidelity)
        if manifest.recipe.kind != "file":
            raise RecipeError("kind of the run's recipe", expected="file", got=manifest.recipe.kind)
        if manifest.recipe.digest != self.request.recipe.digest:
            raise RecipeError("recipe file", expected=manifest.recipe.digest, got=self.request.recipe.digest)
        hypers = self.file.blob(manifest.optimizer.hyperparameters)
        parse_groups(canonical.decode(hypers, limit=MAX_HYPERPARAMETERS, what="hyperparameters"))
        return Outcome.PASSED, f"run {manifest.run}, recipe {manifest.recipe.digest.hex()[:16]}"

    def initial_state(self) -> tuple[Outcome, str]:
        """[check 5] The initial state is what the seed gives."""
        if self.request.calibration is not None:
            self.request.calibration.require_recipe(self.request.recipe.digest)
        narrow(self.manifest.environment)
        from polverify.replay.session import Session  # loads torch, which must not happen sooner

        self.request.progress("building the recipe", 0, 1)
        self.session = Session(self.request.recipe, self.manifest, self.request.device)
        self.request.progress("building the recipe", 1, 1)
        self.states.limit(STATE_FACTOR * self.session.state_bytes + STATE_SLACK)
        if self.session.optimizer_name != self.manifest.optimizer.name:
            raise RecipeError("optimizer", expected=self.manifest.optimizer.name, got=self.session.optimizer_name)
        declared = self.manifest.optimizer.hyperparameters
        if self.session.hyperparameters != declared:
            raise RecipeError("optimizer's hyperparameters", expected=declared, got=self.session.hyperparameters)
        initial = self.manifest.initial
        if initial.kind != "seed":
            return Outcome.UNDECIDED, f"declared as {initial.kind}, which cannot be checked yet"
        if self.session.initial_state == initial.state:
            return Outcome.PASSED, "rebuilt from the seed, state digests are equal"
        differences = self.session.differences(self.manifest.environment)
        if differences:
            return Outcome.UNDECIDED, "another environment class: " + "; ".join(differences)
        raise ReplayError("initial state rebuilt from the seed", expected=initial.state, got=self.session.initial_state)

    def continuity(self) -> tuple[Outcome, str]:
        """[check 6] All segment records join up into one run."""
        bundle = self.file.bundle
        self.records = check_continuity(bundle.leaves, self.checkpoint.root, self.manifest)
        steps = self.records[-1].end_step
        short = sum(record.end_step - record.start_step < self.manifest.every for record in self.records)
        if short > 1:
            self.warnings.append(f"{short} segments are shorter than the declared {self.manifest.every} steps")
        self.claim |= {"segments": len(self.records), "steps": steps}
        return Outcome.PASSED, f"{len(self.records)} segments, {steps} steps"

    def challenge(self) -> tuple[Outcome, str]:
        """[check 7] The bundle opens exactly the segments that were asked for."""
        opened = tuple(segment.index for segment in self.file.bundle.opened)
        if self.request.challenge is None:
            how = "the caller named" if callable(self.request.bundle) else "the prover chose"
            self.warnings.append(f"no challenge: {how} which segments to open")
            return Outcome.NOT_MADE, "no challenge was given"
        self.request.challenge.require(self.checkpoint.origin, self.checkpoint.size, self.checkpoint.root)
        if opened != self.request.challenge.segments:
            raise ChallengeError("opened segments", expected=self.request.challenge.segments, got=opened)
        return Outcome.PASSED, f"{len(opened)} segments, {self.request.challenge.random} of them at random"

    def inclusion(self) -> tuple[Outcome, str]:
        """[check 8] Each opened segment's record is in the signed tree."""
        bundle = self.file.bundle
        for segment in bundle.opened:
            leaf = merkle.leaf_hash(bundle.leaves[segment.index + 1])
            merkle.verify_inclusion(leaf, segment.index + 1, bundle.size, segment.proof, self.checkpoint.root)
        return Outcome.PASSED, f"{len(bundle.opened)} inclusion proofs"

    def data(self) -> tuple[Outcome, str]:
        """[check 9] Steps, snapshots and samples are the committed ones, and nothing else is carried."""
        bundle = self.file.bundle
        opened = [self.records[segment.index] for segment in bundle.opened]
        self.steps = {
            record.index: check_steps(record, self.file.blob(record.steps), self.manifest.dataset) for record in opened
        }
        wanted: set[bytes] = set()
        for record in opened:
            wanted |= {record.start_state, record.end_state}
            if record.base_step is not None:
                wanted.add(state_at(self.records, record.base_step))
        needed = self.states.closure(wanted) | {record.steps for record in opened}
        needed.add(self.manifest.optimizer.hyperparameters)
        carried = {digest for digest, _ in bundle.blobs}
        if carried != needed:
            raise MalformedError("blobs of the bundle", expected=f"{len(needed)} needed ones", got=f"{len(carried)}")
        used: set[int] = set().union(*(steps.samples() for steps in self.steps.values()))
        check_samples(
            self.manifest.dataset,
            used,
            bundle.samples,
            self.session.dataset_size,
            self.session.sample_hash,
            lambda done, total: self.request.progress("hashing samples", done, total),
        )
        return Outcome.PASSED, f"{len(used)} samples of {self.manifest.dataset.size}, {len(wanted)} snapshots"

    def replay(self) -> tuple[Outcome, str]:
        """[check 10] Training each opened segment again leads to its committed end, bit for bit or within tolerance."""
        opened = [self.records[segment.index] for segment in self.file.bundle.opened]
        total = sum(record.end_step - record.start_step for record in opened)
        before = 0
        for record in opened:
            self.results.append(self.replay_segment(record, before, total))
            before += record.end_step - record.start_step
        self.claim["steps_replayed"] = total
        if self.request.evaluate:
            self.evaluate(opened)
        undecided = [result for result in self.results if result.outcome is Outcome.UNDECIDED]
        if undecided:
            return Outcome.UNDECIDED, f"segment {undecided[0].index}: {undecided[0].detail}"
        for result in self.results:
            for name, value in result.values():
                if math.isnan(value):
                    return Outcome.UNDECIDED, f"segment {result.index}: the recipe's evaluation gives {name} NaN"
        tolerated = sum(result.tolerated for result in self.results)
        if tolerated:
            self.warnings.append(
                f"{tolerated} segments are within a tolerance measured here, which is weaker than bit for bit: "
                "a forgery that moves less than the tolerance passes"
            )
        how = f"{tolerated} of them within tolerance, the rest bit for bit" if tolerated else "bit for bit"
        return Outcome.PASSED, f"{len(opened)} segments, {total} steps of {self.records[-1].end_step}, {how}"

    def replay_segment(self, record: SegmentRecord, before: int, total: int) -> SegmentResult:
        """Replay one segment and decide it (`polverify.replay.comparison`)."""
        from polverify.replay.comparison import Comparison  # loads torch

        comparison = Comparison(self.session, self.request, self.manifest.fidelity)
        return comparison.decide(
            self.segment(record),
            lambda: self.states.get(record.end_state),
            lambda done: self.request.progress("replaying", before + done, total),
        )

    def segment(self, record: SegmentRecord) -> Segment:
        """Put together what a replay of one segment needs."""
        previous = self.records[record.index - 1] if record.index else None
        rounded, start_base = False, None  # a first snapshot and one without a base are exact
        if previous is not None and previous.base_step is not None and not replays_exactly(self.manifest.fidelity):
            rounded = True
            digest = state_at(self.records, previous.base_step)
            start_base = self.states.get(digest) if digest in self.states else None
        base = None if record.base_step is None else self.states.get(state_at(self.records, record.base_step))
        start = self.states.get(record.start_state)
        return Segment(record, self.steps[record.index], start, base, rounded, start_base)

    def evaluate(self, opened: Sequence[SegmentRecord]) -> None:
        """Run the recipe's own evaluation on the opened snapshots, once each, after the last replay."""
        places = {record.start_step: record.start_state for record in opened}
        places |= {record.end_step: record.end_state for record in opened}
        values: dict[int, dict[str, float]] = {}
        for done, (step, digest) in enumerate(sorted(places.items())):
            self.request.progress("evaluating", done, len(places))
            values[step] = self.session.evaluate(step, self.states.get(digest))
        self.results = [
            replace(result, measured=result.measured | {"evaluation": {"start": values[start], "end": values[end]}})
            for result in self.results
            for start, end in [(result.start_step, result.end_step)]
        ]

    def plausibility(self) -> tuple[Outcome, str]:
        """[check 11] The norms in the opened records are those of their snapshots."""
        for segment in self.file.bundle.opened:
            record = self.records[segment.index]
            got = distances(self.states.get(record.start_state), self.states.get(record.end_state))
            for name in ("l1", "l2", "linf", "cos"):
                ours, theirs = getattr(got, name), getattr(record.norms, name)
                same = math.isclose(ours, theirs, rel_tol=NORM_TOLERANCE, abs_tol=NORM_TOLERANCE * max(got.l1, 1e-300))
                if not (same or (math.isnan(ours) and math.isnan(theirs))):
                    raise ReplayError(f"segment {segment.index}: norm {name}", expected=ours, got=theirs)
        return Outcome.PASSED, "norms of the opened segments"

    def verdict(self, fault: str | None) -> Verdict:
        """[check 12] Add up."""
        undecided = [check for check in self.checks if check.outcome is Outcome.UNDECIDED]
        if fault is not None:
            decision, reason = Decision.REJECT, fault
        elif undecided:
            first = undecided[0]
            decision, reason = Decision.INCONCLUSIVE, f"check {first.number} ({first.name}): {first.detail}"
        else:
            decision = Decision.ACCEPT
            tolerated = sum(result.tolerated for result in self.results)
            how = f"within tolerance ({len(self.results) - tolerated} bit for bit)" if tolerated else "bit for bit"
            reason = f"{len(self.results)} of {len(self.records)} segments replayed {how}"
        return Verdict(decision, reason, tuple(self.checks), self.claim, tuple(self.results), tuple(self.warnings))
