"""The ledger as a verifier sees it: is a signed root in it, and is it still the log that was seen before.

`check_entry` is check 3 of specs/verification.md. `check_log` compares a head with the one that the verifier kept; what
contradicts that one stays as evidence: two notes under the same keys that cannot both be true of an append-only log.
Implements the verification of specs/ledger.md.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from polstore.errors import (
    CallerError,
    ExistsError,
    LedgerError,
    MalformedError,
    MerkleError,
    MissingError,
    ProofError,
    SignatureError,
)
from polstore.files import file_error, read_file, write_atomic
from polstore.wire import merkle
from polstore.wire.checkpoint import Checkpoint, OpenedRoot, parse_text
from polstore.wire.ledger import LedgerLeaf, open_head, parse_consistency
from polstore.wire.note import MAX_NOTE
from polstore.wire.note import parse as parse_note
from polstore.wire.note import verify as verify_note
from polstore.wire.tlog_proof import TlogProof
from polverify.checks import make_checks
from polverify.verdict import Decision, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from polstore.wire.keys import VerifierKey
    from polstore.wire.manifest import Manifest

__all__ = ["EVIDENCE", "Entered", "Kept", "check_entry", "check_extension", "check_log"]

EVIDENCE = ".evidence"  # what is added to the name of the state file


@dataclass(frozen=True)
class Entered:
    """A signed root that is in a ledger: as leaf ``index`` under ``head``."""

    index: int
    head: OpenedRoot


def check_entry(
    data: bytes,
    keys: Sequence[VerifierKey],
    signed: Checkpoint,
    manifest: Manifest,
    timestamp: int | None,
    *,
    any_of: Sequence[VerifierKey] = (),
) -> Entered:
    """Check that a signed root is in the ledger of its signer.

    Args:
        data: a .tlog-proof file.
        keys: the verifier's keys; every one of them must have signed the ledger's head.
        signed: what the signed root states.
        manifest: leaf 0 of the run, which names its parents.
        timestamp: time of the signed root, seconds since 1970, or None.
        any_of: one of these must have, if there are any.

    Raises:
        MalformedError: not such a file, or extra data that is no leaf of a ledger.
        SignatureError: a given key has not signed the head, or it is not the head of this signer's ledger.
        MerkleError: the signed root is not in the ledger at that place.
        LedgerError: the file is about another signed root, or the head is older than the root that it has.
    """
    proof = TlogProof.parse(data)
    head = open_head(proof.signed_root, keys, any_of=any_of)
    leaf = LedgerLeaf.of(signed, manifest)
    if proof.extra is not None:  # a leaf with extensions, which cannot be known here; the rest must be as it should
        given = LedgerLeaf.parse(proof.extra)
        if (given.origin, given.size, given.root, given.parents) != (leaf.origin, leaf.size, leaf.root, leaf.parents):
            raise LedgerError(
                "the ledger's leaf is of another signed root", expected=_leaf_text(leaf), got=_leaf_text(given)
            )
        leaf = given
    merkle.verify_inclusion(leaf.leaf_hash(), proof.index, head.checkpoint.size, proof.proof, head.checkpoint.root)
    if head.timestamp is not None and timestamp is not None and head.timestamp < timestamp:
        raise LedgerError("time of a head that has this root", expected=f"{timestamp} or later", got=head.timestamp)
    return Entered(proof.index, head)


@dataclass(frozen=True)
class Kept:
    """The verifier's own last head, whose signatures were checked when it was kept: the note and what it states."""

    data: bytes
    checkpoint: Checkpoint

    @classmethod
    def parse(cls, data: bytes) -> Kept:
        """Parse a note; raises `MalformedError`."""
        return cls(data, parse_text(parse_note(data).text))

    def time(self, keys: Sequence[VerifierKey]) -> int | None:
        """Return the time that these keys gave it; None if other keys have signed it."""
        try:
            verified = verify_note(parse_note(self.data), keys)
        except SignatureError:
            return None
        return max((item.timestamp for item in verified if item.timestamp is not None), default=None)


def check_extension(kept: Kept, head: OpenedRoot, keys: Sequence[VerifierKey], consistency: bytes | None) -> None:
    """Check that a head other than the kept one is of the same log, which has only grown since.

    Args:
        kept: the head that the verifier kept.
        head: the other one, its signatures checked.
        keys: the verifier's keys, under which the times of both are compared.
        consistency: lines of the consistency proof; not needed where the kept log is empty.

    Raises:
        LedgerError: rollback, split view, or a larger head with an earlier time.
        MalformedError: the proof is not in its format.
        MerkleError: the proof does not lead to both roots.
    """
    old, new = kept.checkpoint, head.checkpoint
    if new.size < old.size:
        raise LedgerError("rollback: leaves of the head", expected=f"{old.size} or more", got=new.size)
    if new.size == old.size:
        raise LedgerError(f"split view: two roots over {new.size} leaves", expected=old.root, got=new.root)
    if old.size:  # an empty log is a prefix of every other
        proof = parse_consistency(consistency or b"")
        try:
            merkle.verify_consistency(old.size, old.root, new.size, new.root, proof)
        except MerkleError as error:
            raise MerkleError(f"not shown to extend the head that was kept: {error}") from error
    before, after = kept.time(keys), head.timestamp
    if before is not None and after is not None and after < before:
        raise LedgerError("backdated: time of a larger head", expected=f"{before} or later", got=after)


def check_log(
    head: bytes,
    keys: Sequence[VerifierKey],
    state: Path,
    *,
    any_of: Sequence[VerifierKey] = (),
    consistency: bytes | None = None,
    not_before: int | None = None,
) -> Verdict:
    """Compare a head with the one kept in a file, and keep the larger one from now on.

    ACCEPT: it is the kept head, or extends it, or is the first one seen. REJECT: it is not signed, smaller than the
    kept one, no extension of it, or too old; where it contradicts the kept one, both notes stay beside ``state``.
    INCONCLUSIVE: it is larger and no consistency proof was given. The file changes after ACCEPT only.

    Args:
        head: bytes of the signed head.
        keys: every one of them must have signed it.
        any_of: one of these must have, if there are any.
        state: file of the verifier's own with the last head seen; made by the first call.
        consistency: lines of a consistency proof from the kept head to this one.
        not_before: the least time that the head may state, seconds since 1970, or None for any.

    Raises:
        CallerError: the state cannot be read or written, or is that of another log.
    """
    with _alone(state):
        return _Comparison(head, keys, any_of, state, consistency, not_before).run()


class _Comparison:
    """One comparison; the numbers are those of specs/ledger.md, section "Verification: the log"."""

    def __init__(
        self,
        head: bytes,
        keys: Sequence[VerifierKey],
        any_of: Sequence[VerifierKey],
        state: Path,
        consistency: bytes | None,
        not_before: int | None,
    ) -> None:
        self.head = head
        self.keys = keys
        self.any_of = any_of
        self.state = state
        self.consistency = consistency
        self.not_before = not_before
        self.kept = _kept(state)
        self.warnings: list[str] = []
        self.claim: dict[str, Any] = {}

    def run(self) -> Verdict:
        checks, fault = make_checks(
            ((1, "signature", self.signature), (2, "ledger", self.ledger), (3, "time", self.time))
        )
        compared = checks[1]
        if fault is not None:
            decision, reason = Decision.REJECT, fault
        elif compared.outcome is Outcome.UNDECIDED:
            decision, reason = Decision.INCONCLUSIVE, f"check 2 (ledger): {compared.detail}"
        else:
            decision, reason = Decision.ACCEPT, compared.detail
            if self.kept is None or self.kept.checkpoint != self.new:
                write_atomic(self.state, self.head)
        return Verdict(decision, reason, tuple(checks), self.claim, warnings=tuple(self.warnings))

    def signature(self) -> tuple[Outcome, str]:
        """[check 1] Every given key has signed the head, and it is the head of their ledger."""
        self.opened = open_head(self.head, self.keys, any_of=self.any_of)
        self.new = new = self.opened.checkpoint
        self.claim = {
            "origin": new.origin,
            "size": new.size,
            "root": new.root.hex(),
            "signed_by": sorted({key.name for key in self.opened.keys}),
            "time": self.opened.timestamp,
        }
        if self.kept is not None and self.kept.checkpoint.origin != new.origin:
            raise CallerError(f"{self.state} keeps another log", expected=new.origin, got=self.kept.checkpoint.origin)
        return Outcome.PASSED, f"{new.origin}, {new.size} leaves, {len(self.opened.keys)} keys signed"

    def ledger(self) -> tuple[Outcome, str]:
        """[check 2] The head is that of the log which was seen before, and nothing was taken from it."""
        if self.kept is None:
            self.warnings.append("nothing was kept to compare this head with: it is trusted on first use")
            return Outcome.PASSED, f"the first head seen, {self.new.size} leaves"
        old, new = self.kept.checkpoint, self.new
        if (new.size, new.root) == (old.size, old.root):
            return Outcome.PASSED, f"the head seen before, {new.size} leaves"
        if new.size > old.size and old.size and self.consistency is None:
            return Outcome.UNDECIDED, f"no consistency proof from {old.size} to {new.size} leaves was given"
        try:
            check_extension(self.kept, self.opened, self.opened.keys, self.consistency)
        except ProofError:
            self._keep_evidence()
            raise
        return Outcome.PASSED, f"{new.size} leaves, the first {old.size} are those seen before"

    def time(self) -> tuple[Outcome, str]:
        """[check 3] The head is not too old, as far as that was asked."""
        stated = self.opened.timestamp
        if self.not_before is None:
            return Outcome.NOT_MADE, "no time was asked for"
        if stated is None or stated < self.not_before:
            raise LedgerError("stale head: its time", expected=f"{self.not_before} or later", got=stated)
        return Outcome.PASSED, f"{stated}, self-asserted"

    def _keep_evidence(self) -> None:
        """Keep both notes beside the state; what is there already is never overwritten."""
        folder = self.state.with_name(self.state.name + EVIDENCE)
        kept = self.kept.data if self.kept is not None else b""
        name = sha256(sha256(kept).digest() + sha256(self.head).digest()).hexdigest()[:16]
        files = {f"{name}-kept": kept, f"{name}-seen": self.head}
        if self.consistency is not None:
            files[f"{name}-proof-{sha256(self.consistency).hexdigest()[:16]}"] = self.consistency
        try:
            folder.mkdir(exist_ok=True)
            for file, data in files.items():
                with suppress(ExistsError):  # the name says what is in it: this was seen before
                    write_atomic(folder / file, data, overwrite=False)
        except (CallerError, OSError) as error:  # the head is rejected all the same
            self.warnings.append(f"the evidence could not be kept: {error}")
        else:
            self.warnings.append(f"both notes are kept as evidence: {folder / name}-kept and -seen")


def _kept(state: Path) -> Kept | None:
    try:
        return Kept.parse(read_file(state, MAX_NOTE))
    except MissingError:
        return None
    except MalformedError as error:
        raise CallerError(f"state {state}: {error}") from error


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Let one comparison at a time use a state: of two, the one with the smaller head must not write last."""
    path = state.with_name(f".{state.name}.lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise file_error(error, f"{path} cannot be opened") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _leaf_text(leaf: LedgerLeaf) -> str:
    return f"{leaf.origin}, {leaf.size} leaves, {leaf.root.hex()}, {len(leaf.parents)} parents"
