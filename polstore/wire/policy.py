"""Policies, and what witnesses say of a time: C2SP tlog-policy.

A policy file lists log keys, witness keys, groups of witnesses, and the quorum that a checkpoint needs. `evidence`
holds against it whatever cosignatures a checkpoint note carries. Implements specs/time.md, sections "Policy" and
"Witnesses". Does no I/O and reads no clock; that a policy is the verifier's own is up to the caller.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.errors import MalformedError
from polstore.wire import note as notes
from polstore.wire.keys import KeyKind, VerifierKey
from polstore.wire.text import from_decimal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from polstore.wire.note import Note

__all__ = ["MAX_POLICY", "Cosigned", "Group", "Log", "Policy", "TimeEvidence", "Witness", "evidence", "log_keys"]

MAX_POLICY = 2**18  # bytes; room for the lines below with long names and addresses
MAX_LINES = 256  # of each kind; C2SP asks for 32 at least
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
_SPACE = re.compile(r"[ \t]+")
_NONE = "none"  # predefined name of the quorum that asks for nothing


@dataclass(frozen=True)
class Log:
    """A log that the policy accepts: its Ed25519 key, and its address where the file gives one."""

    key: VerifierKey
    url: str | None = None


@dataclass(frozen=True)
class Witness:
    """A witness: its name in the policy, its cosignature key, and its address where the file gives one."""

    name: str
    key: VerifierKey
    url: str | None = None


@dataclass(frozen=True)
class Group:
    """A group: it has witnessed what at least ``threshold`` of its members, witnesses or groups, have witnessed."""

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Policy:
    """A policy file.

    Attributes:
        logs: any one of these has to sign.
        witnesses: who may cosign.
        groups: in the order of the file, so that each one's members come before it.
        quorum: the witness or group that has to have witnessed a checkpoint; None where nobody has to.
    """

    logs: tuple[Log, ...]
    witnesses: tuple[Witness, ...]
    groups: tuple[Group, ...]
    quorum: str | None

    def met(self, cosigners: Collection[str]) -> bool:
        """Say whether these witnesses, by their names in the policy, are a quorum."""
        witnessed = {witness.name for witness in self.witnesses} & set(cosigners)
        for group in self.groups:
            if len(witnessed.intersection(group.members)) >= group.threshold:
                witnessed.add(group.name)
        return self.quorum is None or self.quorum in witnessed

    @classmethod
    def parse(cls, data: bytes) -> Policy:
        """Parse a policy file.

        Raises:
            MalformedError: more than `MAX_POLICY` bytes or `MAX_LINES` lines of one kind, a control character, a last
                line without its end, a line that is none of the known ones, a key of another type or twice, a name
                defined twice or not yet, a member of two groups, a threshold out of range, or not just one quorum.
        """
        if len(data) > MAX_POLICY:
            raise MalformedError("policy is too long", expected=f"at most {MAX_POLICY} bytes", got=f"{len(data)} bytes")
        control = _CONTROL.search(data)
        if control is not None:
            raise MalformedError("control character in a policy", expected="tabs and newlines", got=control.group())
        if data and not data.endswith(b"\n"):
            raise MalformedError(
                "last line of a policy", expected="an end of line: the file may be cut", got=data[-40:]
            )
        parser = _Parser()
        # Names are octets: whatever is no UTF-8 is kept as it is.
        for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
            stripped = line.strip(" \t")
            if stripped and not stripped.startswith("#"):
                try:
                    parser.line(*_SPACE.split(stripped))
                except MalformedError as error:
                    raise MalformedError(f"policy, line {number}: {error}") from error
        return parser.policy()


@dataclass(frozen=True)
class Cosigned:
    """A cosignature that was checked: who, and when by the witness's own clock, in seconds since 1970."""

    witness: Witness
    timestamp: int


@dataclass(frozen=True)
class TimeEvidence:
    """What a policy's witnesses say of one checkpoint.

    Attributes:
        cosigned: who has cosigned it, the earliest first.
        missing: witnesses of the policy that have not.
        quorum_met: whether that is a quorum.
        existed_by: seconds since 1970 by which a quorum had seen it, so it existed then; None where there is no quorum,
            or the policy asks for none.
        not_before: seconds since 1970 after which a quorum has still cosigned it: whoever commits to the note with its
            cosignatures did so later. None as for ``existed_by``.
    """

    cosigned: tuple[Cosigned, ...]
    missing: tuple[Witness, ...]
    quorum_met: bool
    existed_by: int | None
    not_before: int | None


def log_keys(policy: Policy | None) -> tuple[VerifierKey, ...]:
    """Return the keys of which one has to have signed a root (`any_of` of `open_root`); none without a policy."""
    return () if policy is None else tuple(log.key for log in policy.logs)


def evidence(note: Note, policy: Policy) -> TimeEvidence:
    """Hold the cosignatures on a checkpoint note against a policy; signatures of other keys count for nothing.

    Raises:
        SignatureError: the cosignature of one of the policy's witnesses is false, or there twice.
    """
    lines = {(signature.name, signature.key_id) for signature in note.signatures}
    signers = {w.key: w for w in policy.witnesses if (w.key.name, w.key.key_id) in lines}
    verified = notes.verify(note, list(signers)) if signers else ()
    cosigned = [Cosigned(signers[each.key], each.timestamp) for each in verified if each.timestamp is not None]
    cosigned.sort(key=lambda each: (each.timestamp, each.witness.name))
    missing = tuple(witness for witness in policy.witnesses if witness not in signers.values())
    met = policy.met({each.witness.name for each in cosigned})
    return TimeEvidence(tuple(cosigned), missing, met, _reached(policy, cosigned), _reached(policy, reversed(cosigned)))


def _reached(policy: Policy, cosigned: Iterable[Cosigned]) -> int | None:
    """Return the timestamp with which the cosignatures, taken in this order, become a quorum."""
    if policy.quorum is None:
        return None
    names: set[str] = set()
    for each in cosigned:
        names.add(each.witness.name)
        if policy.met(names):
            return each.timestamp
    return None


class _Parser:
    """Collects the lines of a policy file."""

    def __init__(self) -> None:
        self.logs: list[Log] = []
        self.witnesses: list[Witness] = []
        self.groups: list[Group] = []
        self.quorum: str | None = None  # the name, `none` included
        self.names: set[str] = set()  # of witnesses and groups
        self.members: set[str] = set()  # those that are in a group already

    def line(self, word: str, *rest: str) -> None:
        if word == "log" and 1 <= len(rest) <= 2:
            key = _key(rest[0], KeyKind.ED25519, (log.key for log in self.logs))
            self.logs.append(Log(key, *rest[1:]))
        elif word == "witness" and 2 <= len(rest) <= 3:
            key = _key(rest[1], KeyKind.COSIGNATURE, (witness.key for witness in self.witnesses))
            self.witnesses.append(Witness(self.define(rest[0]), key, *rest[2:]))
        elif word == "group" and len(rest) >= 3:
            self.groups.append(self.group(*rest))
        elif word == "quorum" and len(rest) == 1:
            if self.quorum is not None:
                raise MalformedError("quorum", expected="one line", got="a second one")
            if rest[0] != _NONE:
                self.require(rest[0])
            self.quorum = rest[0]
        else:
            raise MalformedError("line", expected="log, witness, group or quorum with its fields", got=word)
        for lines in (self.logs, self.witnesses, self.groups):
            if len(lines) > MAX_LINES:
                raise MalformedError("lines of one kind", expected=f"at most {MAX_LINES}", got="more")

    def group(self, name: str, threshold: str, *members: str) -> Group:
        for member in members:
            self.require(member)
            if member in self.members:
                raise MalformedError("member of a group", expected="each name in one group, once", got=member)
            self.members.add(member)
        if threshold in ("any", "all"):
            needed = 1 if threshold == "any" else len(members)
        else:
            needed = from_decimal(threshold, "threshold of a group", len(members))
            if needed == 0:
                raise MalformedError("threshold of a group", expected=f"1 to {len(members)}", got=threshold)
        return Group(self.define(name), needed, members)

    def define(self, name: str) -> str:
        if name == _NONE or name in self.names:
            raise MalformedError("name of a witness or group", expected="a new one", got=name)
        self.names.add(name)
        return name

    def require(self, name: str) -> None:
        if name not in self.names:
            raise MalformedError("name of a witness or group", expected="one defined on a line before", got=name)

    def policy(self) -> Policy:
        if self.quorum is None:
            raise MalformedError("quorum of a policy", expected="one line", got="none")
        quorum = None if self.quorum == _NONE else self.quorum
        return Policy(tuple(self.logs), tuple(self.witnesses), tuple(self.groups), quorum)


def _key(line: str, kind: KeyKind, others: Iterable[VerifierKey]) -> VerifierKey:
    """Parse the key of a log or witness, which no other one may have, under whatever name."""
    key = VerifierKey.parse(line)
    if key.kind is not kind:
        raise MalformedError("type of a key", expected=f"{kind:02x}", got=f"{key.kind:02x}")
    for other in others:
        if key.public == other.public or (key.name, key.key_id) == (other.name, other.key_id):
            raise MalformedError("key", expected="each key once", got=line)
    return key
