"""Check 2: what vouches for the time of a signed root, from above and from below.

Four kinds of evidence: the signer's own claim, cosignatures of a policy's witnesses, tokens of time authorities, and
the witnessed checkpoint that the manifest commits to. Implements check 2 of specs/verification.md and specs/time.md.
Reads no clock and decides nothing by the signer's own word.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polstore.errors import SignatureError, TimestampError
from polstore.wire import note as notes
from polstore.wire.checkpoint import parse_text
from polstore.wire.policy import evidence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.x509 import Certificate

    from polstore.wire.checkpoint import OpenedRoot
    from polstore.wire.note import Note
    from polstore.wire.policy import Policy, TimeEvidence

__all__ = ["Findings", "Sources", "gather"]

MAX_SKEW = 3600  # seconds by which two clocks may differ before one of two statements is false
SELF_ASSERTED, WITNESSED, TIMESTAMPED, NOT_BEFORE = "self-asserted", "witnessed", "timestamped", "not before"


@dataclass(frozen=True)
class Sources:
    """Whom the verifier believes about times, and the tokens at hand.

    Attributes:
        policy: witnesses and the quorum that they have to reach; None for no witnesses.
        tokens: time-stamping responses (RFC 3161, DER) over the signed root.
        tsa_roots: root certificates of time authorities.
        tsa_certificates: further certificates that the tokens may lack.
    """

    policy: Policy | None = None
    tokens: Sequence[bytes] = ()
    tsa_roots: Sequence[Certificate] = ()
    tsa_certificates: Sequence[Certificate] = ()


@dataclass
class Findings:
    """The evidence that was found, each piece checked.

    Attributes:
        pieces: plain data for the verdict, one object per piece, with its label under ``kind``.
        details: the same, one line each.
        warnings: what limits its worth.
        faults: what makes the proof false all the same, see `require`.
        existed_by: by whose word, `WITNESSED` by a quorum or `TIMESTAMPED`, the root existed when, in seconds since
            1970. The signer's own word is not among them.
        began_after: seconds since 1970 after which a quorum says that the run began, or None.
    """

    pieces: list[dict[str, Any]] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    faults: list[SignatureError | TimestampError] = field(default_factory=list)
    existed_by: list[tuple[str, int]] = field(default_factory=list)
    began_after: int | None = None

    def require(self) -> None:
        """Raise the first fault: `SignatureError` for a quorum not met, `TimestampError` for times that contradict."""
        if self.faults:
            raise self.faults[0]


def gather(
    opened: OpenedRoot, sources: Sources, not_before: bytes | None = None, heads: Sequence[Note] = ()
) -> Findings:
    """Collect what vouches for the time of a signed root.

    Args:
        opened: the signed root, its signatures checked.
        sources: whom the verifier believes.
        not_before: the checkpoint that the run's manifest commits to, as it is there.
        heads: ledger heads that the root is under, which the caller has checked: witnesses cosign those, and a quorum
            on any one of them, or on the root itself, will do.

    Raises:
        MalformedError: a checkpoint in the manifest that is none.
        SignatureError: a false cosignature of one of the policy's witnesses, or a time that is no date.
        TimestampError: a token that does not hold.
    """
    found = Findings()
    stated: list[tuple[str, int]] = []  # (who says that it existed by then, seconds since 1970)
    if opened.timestamp is not None:
        name = next(key.name for key in opened.keys)
        _add(found, SELF_ASSERTED, name, opened.timestamp, f"{_date(opened.timestamp)}, self-asserted")
        stated.append(("the signer", opened.timestamp))
    if sources.policy is not None:
        seen = _witnesses(found, sources.policy, [opened.note, *heads])
        found.existed_by += [(WITNESSED, time) for _, time in seen]
        stated += seen
    for token in sources.tokens:
        stated.append(_token(found, token, opened.note.text, sources))
        found.existed_by.append((TIMESTAMPED, stated[-1][1]))
    if not any(piece["kind"] in (WITNESSED, TIMESTAMPED) for piece in found.pieces):
        found.warnings.append(
            "the time is the signer's own claim; no independent witness vouches for it"
            if opened.timestamp is not None
            else "the signed root states no time that a given key vouches for"
        )
    if not_before is not None:
        found.began_after = after = _lower_bound(found, not_before, sources.policy)
        for who, time in stated:
            if after is not None and time + MAX_SKEW < after:
                found.faults.append(
                    TimestampError(
                        "time of a root over a manifest that commits to a later checkpoint",
                        expected=f"{_date(after)} or later",
                        got=f"{_date(time)} ({who})",
                    )
                )
    return found


def _witnesses(found: Findings, policy: Policy, candidates: Sequence[Note]) -> list[tuple[str, int]]:
    """Add the cosignatures on the root and its ledger heads; return when a quorum had seen it."""
    judged = [evidence(note, policy) for note in candidates]
    met = any(each.quorum_met for each in judged)
    for number, each in enumerate(judged):
        where = "signed root" if number == 0 else "ledger head"
        for cosigned in each.cosigned:
            name, time = cosigned.witness.name, cosigned.timestamp
            quorum = "no quorum asked for" if policy.quorum is None else "quorum met" if met else "no quorum"
            line = f"witnessed by {name} at {_date(time)} ({where}, {quorum})"
            more = {"key": cosigned.witness.key.name, "on": where, "quorum_met": met}
            _add(found, WITNESSED, name, time, line, **more)
    if not met:
        found.faults.append(_no_quorum(policy, judged))
    return [("a quorum of witnesses", each.existed_by) for each in judged if each.existed_by is not None]


def _no_quorum(policy: Policy, judged: Sequence[TimeEvidence]) -> SignatureError:
    signers = {cosigned.witness.name for each in judged for cosigned in each.cosigned}
    missing = [witness.name for witness in policy.witnesses if witness.name not in signers]
    got = f"cosigned by {', '.join(sorted(signers)) or 'nobody'}; missing: {', '.join(missing) or 'nobody'}"
    return SignatureError("quorum of witnesses", expected=policy.quorum, got=got)


def _token(found: Findings, response: bytes, text: str, sources: Sources) -> tuple[str, int]:
    """Add a time-stamping token; return who says that the root existed by when."""
    from polstore.wire import timestamp  # the parser of X.509 is loaded only where there is something to parse

    token = timestamp.verify(response, text, sources.tsa_roots, sources.tsa_certificates)
    accuracy = "accuracy not stated" if token.accuracy is None else f"accuracy {token.accuracy / 1e6:g} s"
    line = f"timestamped by {token.authority} at {_date(token.time)} ({accuracy}, policy {token.policy})"
    more = {"accuracy_microseconds": token.accuracy, "policy": token.policy, "serial": token.serial}
    _add(found, TIMESTAMPED, token.authority, token.time, line, **more)
    return str(token.authority), token.time - -(token.accuracy or 0) // 1_000_000


def _lower_bound(found: Findings, data: bytes, policy: Policy | None) -> int | None:
    """Add the checkpoint that the manifest commits to; return after which time the run began, if witnesses say so."""
    note = notes.parse(data)
    checkpoint = parse_text(note.text)
    judged = None if policy is None else evidence(note, policy)
    after = None if judged is None else judged.not_before
    witnesses = [] if judged is None else [each.witness.name for each in judged.cosigned]
    what = f"{checkpoint.origin}, {checkpoint.size} leaves"
    if after is None:
        line = f"not before a checkpoint of {what}, unverified"
        found.warnings.append(
            "no quorum of given witnesses vouches for the checkpoint that the run says it began after"
        )
    else:
        line = f"not before {_date(after)} ({what}, witnessed by {', '.join(witnesses)})"
    more = {"verified": after is not None, "origin": checkpoint.origin, "size": checkpoint.size}
    _add(found, NOT_BEFORE, witnesses, after, line, **more)
    return after


def _add(found: Findings, kind: str, who: object, time: int | None, line: str, **more: object) -> None:
    found.pieces.append({"kind": kind, "by": who, "time": time, **more})
    found.details.append(line)


def _date(seconds: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()
    except (OverflowError, ValueError, OSError) as error:
        raise SignatureError("time of a cosignature", expected="a date", got=seconds) from error
