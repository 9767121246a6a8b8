"""Asking a witness to cosign a head: the HTTP client of C2SP tlog-witness.

A witness remembers the last head that it saw of each log and cosigns a new one only with a proof that it extends that.
Its answer is believed as far as its signatures verify under a key that the caller gives. Implements specs/time.md,
section "Witnesses"; the bytes are `polstore.wire.witness`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from polstore.errors import ProofError, ServiceError, StaleError
from polstore.http import post
from polstore.wire import note as notes
from polstore.wire import witness as wire
from polstore.wire.checkpoint import parse_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.wire.keys import VerifierKey
    from polstore.wire.note import Note, Verified

__all__ = ["Ledger", "Witnessed", "submit", "witness_head"]

MEANINGS = {  # what add-checkpoint's statuses mean
    400: "it takes the request for malformed, or its old size for larger than the head",
    403: "it finds no good signature of a key that it trusts for this origin",
    404: "it does not know this origin",
    409: "it has seen another head of this size: a split view",
    422: "the new head does not extend the one that it has seen: a split view or a rollback",
}


class Ledger(Protocol):
    """What `witness_head` needs of a ledger."""

    def head(self) -> bytes:
        """Return the signed head, a checkpoint note; raises `MissingError` if there is none yet."""

    def consistency_proof(self, old: int, new: int) -> Sequence[bytes]:
        """Return the RFC 6962 proof from the first ``old`` leaves to the first ``new`` ones, 1 <= old <= new."""

    def put_head(self, note: bytes) -> None:
        """Keep a head of the same text with more signatures."""


@dataclass(frozen=True)
class Witnessed:
    """A head with the cosignatures that came back, and who gave them when."""

    head: bytes
    found: tuple[Verified, ...]


def submit(url: str, head: bytes, old_size: int, proof: Sequence[bytes], keys: Sequence[VerifierKey]) -> Note:
    """Send a head to a witness and return its cosignatures: a note of the head's text with the verified lines only.

    Args:
        url: submission prefix of the witness; ``/add-checkpoint`` is put after it.
        head: the signed head.
        old_size: size of the head that this witness cosigned last, 0 if none.
        proof: consistency proof from there.
        keys: cosignature keys of the witness.

    Raises:
        StaleError: the witness has cosigned a head of another size than ``old_size`` last; the error says which.
        ServiceError: nobody answers, the witness refuses, or the answer is not a cosignature of a known key.
        MalformedError: the head is none.
        UsageError: arguments that cannot be sent.
    """
    body = wire.request(old_size, proof, head)
    address = url.rstrip("/") + "/add-checkpoint"
    answer = post(address, body, "text/plain; charset=utf-8", wire.MAX_ANSWER)
    try:
        if answer.status == 409 and answer.content_type.partition(";")[0].strip() == "text/x.tlog.size":
            size = wire.parse_size(answer.body)
            if size != old_size:
                raise StaleError(f"witness {url}: old size", size=size, got=old_size)
        if answer.status != 200:
            meaning = MEANINGS.get(answer.status, "which the protocol does not know")
            raise ServiceError(f"witness {url} refuses with status {answer.status}: {meaning}")
        text = notes.parse(head).text
        parsed = wire.parse_signatures(text, answer.body)
        found = {(each.key.name, each.key.key_id) for each in notes.verify(parsed, keys)}
    except ProofError as error:
        raise ServiceError(f"witness {url}: {error}") from error
    return notes.Note(text, tuple(line for line in parsed.signatures if (line.name, line.key_id) in found))


def witness_head(ledger: Ledger, url: str, keys: Sequence[VerifierKey], old_size: int = 0) -> Witnessed:
    """Have a witness cosign a ledger's head, and keep the head with the cosignature.

    The witness says which size it saw last, so one request more is all that a wrong ``old_size`` costs. Nothing is kept
    unless a cosignature verified under one of the keys.

    Raises:
        ServiceError: as `submit`; a witness that has seen more leaves than the ledger has.
        MissingError: the ledger has no head.
        SignatureError: the head carries a false cosignature of this witness.
    """
    head = ledger.head()
    size = parse_text(notes.parse(head).text).size
    old_size = min(old_size, size)
    try:
        answer = submit(url, head, old_size, _proof(ledger, old_size, size), keys)
    except StaleError as stale:
        if stale.size > size:
            raise ServiceError(
                f"witness {url} has seen more of this ledger: it was rolled back, or this is an old copy",
                expected=f"at most {size} leaves",
                got=stale.size,
            ) from stale
        answer = submit(url, head, stale.size, _proof(ledger, stale.size, size), keys)
    merged, found = wire.merge(head, answer, keys)
    ledger.put_head(merged)
    return Witnessed(merged, found)


def _proof(ledger: Ledger, old: int, new: int) -> Sequence[bytes]:
    return () if old in (0, new) else ledger.consistency_proof(old, new)
