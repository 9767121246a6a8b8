"""The verification: numbered checks in one place, in the order of specs/verification.md.

Each check raises a `ProofError` when the proof is at fault, which rejects it; a fault of the verifier's own side (a
missing file, too little memory) is a `CallerError` and passes through. Nothing that a proof says selects, skips or
loosens a check. Torch is loaded at check 5, once everything that can be known without it is known.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polstore.codec.quantise import FIDELITIES
from polstore.errors import (
    ChallengeError,
    MalformedError,
    MerkleError,
    ProofError,
    RecipeError,
    SignatureError,
)
from polstore.wire import canonical, merkle
from polstore.wire.challenge import FRESH
from polstore.wire.checkpoint import open_root, run_origin
from polstore.wire.manifest import Manifest
from polstore.wire.policy import log_keys
from polstore.wire.steps import MAX_HYPERPARAMETERS, parse_groups
from polverify.adding_up import chosen_by, decided, power_of, steps_replayed
from polverify.audit import check_plausibility
from polverify.beginning import check_beginning
from polverify.bundle_file import BundleFile
from polverify.capability import narrow
from polverify.challenge import SOURCES, require_chosen
from polverify.checks import make_checks
from polverify.continuity import check_continuity, state_at
from polverify.coverage import coverage, losses
from polverify.data import check_order, check_samples, check_steps
from polverify.log import Entered, check_entry
from polverify.opened import ended, evaluated
from polverify.replaying import REPLAYING, Material
from polverify.request import Request, silent
from polverify.states import States
from polverify.time import gather
from polverify.verdict import Check, Outcome, SegmentResult, Verdict
from polverify.workers import replay_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from polstore.wire.checkpoint import Checkpoint, OpenedRoot
    from polstore.wire.keys import VerifierKey
    from polstore.wire.segment import SegmentRecord
    from polstore.wire.steps import Steps
    from polverify.replay.session import Session

__all__ = ["Request", "Verification", "prepared", "silent", "verify"]


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
    audited: set[int] = field(default_factory=set)  # segments whose norms were computed again while they were replayed
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

    @property
    def opened_segments(self) -> tuple[int, ...]:
        """Indices of the segments that the bundle opens."""
        return tuple(segment.index for segment in self.file.bundle.opened)

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
        try:
            self.checks, fault = make_checks(self.plan())
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
        self.logs = log_keys(self.request.time.policy)
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
        self.request.policy.check_origin(self.checkpoint.origin)
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
        lacking = self.request.policy.time_lacking(found, self.request.now)
        if lacking is not None:
            return Outcome.UNDECIDED, lacking
        if not found.pieces:
            return Outcome.NOT_MADE, "no cosignature by a given key, no token"
        return Outcome.PASSED, "; ".join(found.details)

    def ledger(self) -> tuple[Outcome, str]:
        """[check 3] The signed root is in an append-only log."""
        entries = self.entries()
        if not entries:
            lacking = self.request.policy.ledger_lacking()
            return (Outcome.UNDECIDED, lacking) if lacking else (Outcome.NOT_MADE, "no ledger evidence was given")
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
        declared = parse_groups(canonical.decode(hypers, limit=MAX_HYPERPARAMETERS, what="hyperparameters"))
        self.request.policy.check_manifest(manifest, declared)
        return Outcome.PASSED, f"run {manifest.run}, recipe {manifest.recipe.digest.hex()[:16]}"

    def initial_state(self) -> tuple[Outcome, str]:
        """[check 5] The initial state is what the seed gives, a parent's, or drawn as initial weights are."""
        if self.request.calibration is not None:
            self.request.calibration.require_recipe(self.request.recipe.digest)
        narrow(self.manifest.environment)
        from polverify.replay.session import Session  # loads torch, which must not happen sooner

        self.request.progress("building the recipe", 0, 1)
        self.session = Session(self.request.recipe, self.manifest, self.request.device)
        self.request.progress("building the recipe", 1, 1)
        self.states.limit(self.session.state_bytes)
        return check_beginning(
            self.session, self.manifest, self.states, self.request, self.logs, self.claim, self.warnings
        )

    def continuity(self) -> tuple[Outcome, str]:
        """[check 6] All segment records join up into one run."""
        bundle = self.file.bundle
        self.records = check_continuity(bundle.leaves, self.checkpoint.root, self.manifest)
        self.request.policy.check_records(self.manifest, self.records)
        steps = self.records[-1].end_step
        short = sum(record.end_step - record.start_step < self.manifest.every for record in self.records)
        if short > 1:
            self.warnings.append(f"{short} segments are shorter than the declared {self.manifest.every} steps")
        self.claim |= {"segments": len(self.records), "steps": steps}
        return Outcome.PASSED, f"{len(self.records)} segments, {steps} steps"

    def challenge(self) -> tuple[Outcome, str]:
        """[check 7] The bundle opens exactly the segments that were asked for."""
        opened = self.opened_segments
        if self.request.challenge is None:
            how = "the caller named" if callable(self.request.bundle) else "the prover chose"
            self.warnings.append(f"no challenge: {how} which segments to open")
            lacking = self.request.policy.challenge_lacking(None)
            return (Outcome.UNDECIDED, lacking) if lacking else (Outcome.NOT_MADE, "no challenge was given")
        challenge = self.request.challenge
        challenge.require(self.checkpoint.origin, self.checkpoint.size, self.checkpoint.root)
        require_chosen(challenge, self.records)
        if opened != challenge.segments:
            raise ChallengeError("opened segments", expected=challenge.segments, got=opened)
        if challenge.source != FRESH:
            self.warnings.append(SOURCES[challenge.source])
        lacking = self.request.policy.challenge_lacking(challenge.source)
        if lacking is not None:
            return Outcome.UNDECIDED, lacking
        return Outcome.PASSED, f"{len(opened)} segments, {challenge.random} of them at random"

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
        for steps in self.steps.values():
            self.request.policy.check_steps(steps)
        wanted: set[bytes] = set()
        for record in self.records if self.request.audit else ():
            wanted |= {record.start_state, record.end_state}
        for record in opened:
            wanted |= {record.start_state, record.end_state}
            if record.base_step is not None:
                wanted.add(state_at(self.records, record.base_step))
        if self.manifest.initial.kind != "seed":
            wanted.add(self.manifest.initial.state)  # for check 5
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
        order, warnings = check_order(self.manifest, [self.steps[record.index] for record in opened], self.session)
        self.warnings += warnings
        return (
            Outcome.PASSED,
            f"{len(used)} samples of {self.manifest.dataset.size}, {order}, {len(wanted)} snapshots",
        )

    def replay(self) -> tuple[Outcome, str]:
        """[check 10] Training each opened segment again leads to its committed end, bit for bit or within tolerance."""
        opened = [self.records[index] for index in self.opened_segments]
        if not opened:
            return Outcome.UNDECIDED, "no segment is opened, so nothing was replayed"
        total = sum(record.end_step - record.start_step for record in opened)
        for each in replay_all(
            self.material(),
            self.file,
            self.opened_segments,
            lambda done: self.request.progress(REPLAYING, done, total),
        ):
            self.results.append(each.result)
            if each.norms:
                self.audited.add(each.result.index)
        if self.request.evaluate:
            self.results = evaluated(self.results, opened, self.session, self.states, self.request.progress)
        self.claim["steps_replayed"] = steps_replayed(self.results)
        return ended(self.results, self.records[-1].end_step, self.warnings)

    def material(self) -> Material:
        """Return what replays take; checks 0 to 9 have passed."""
        return Material(self.request, self.manifest, self.records, self.steps, self.states, self.session)

    def plausibility(self) -> tuple[Outcome, str]:
        """[check 11] Norms are those of the snapshots, and moments are looked at where no replay has decided."""
        looked_at = range(len(self.records)) if self.request.audit else self.opened_segments
        replayed = {result.index for result in self.results if result.outcome is Outcome.PASSED}
        outcome, detail, warnings = check_plausibility(
            self.records,
            [index for index in looked_at if index not in self.audited],
            replayed,
            self.states,
            lambda done, total: self.request.progress("auditing", done, total),
        )
        self.warnings += warnings
        return outcome, detail or f"norms of {'all' if self.request.audit else 'the opened'} segments"

    def verdict(self, fault: str | None) -> Verdict:
        """[check 12] Add up."""
        policy, records = self.request.policy, getattr(self, "records", ())
        opened = chosen_by(self.request, self.opened_segments) if records else {}
        power = None
        if fault is None:
            power = power_of(self.request, records, self.opened_segments, self.results, self.file.size)
        lacking = None if power is None else policy.power_lacking(power)
        decision, reason = decided(self.checks, fault, lacking, self.results, len(records))
        return Verdict(
            decision,
            reason,
            tuple(self.checks),
            self.claim,
            tuple(self.results),
            tuple(self.warnings),
            power,
            coverage(records, opened, {result.index: result.outcome.value for result in self.results}),
            losses(self.steps) if hasattr(self, "steps") else (),
            None
            if policy.digest is None
            else {"sha256": policy.digest, "judged_at": self.request.now, "rules": dict(policy.rules)},
        )
