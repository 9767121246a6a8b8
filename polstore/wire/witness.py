"""What goes to a witness and what comes back: request and answers of C2SP tlog-witness, add-checkpoint.

`merge` puts cosignatures that verified into a note, and nothing else. Implements specs/time.md, section "Witnesses".
Does no I/O: the HTTP client is `polstore.witness`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polstore.errors import MalformedError, SignatureError, UsageError
from polstore.wire import note as notes
from polstore.wire.checkpoint import MAX_SIZE, parse_text
from polstore.wire.fields import DIGEST_SIZE
from polstore.wire.keys import KeyKind
from polstore.wire.text import from_decimal, to_base64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.wire.keys import VerifierKey
    from polstore.wire.note import Note, Verified

__all__ = ["MAX_ANSWER", "MAX_PROOF", "merge", "parse_signatures", "parse_size", "request"]

MAX_PROOF = 63  # lines of a consistency proof; the protocol's own limit
MAX_ANSWER = 2**16  # bytes; a hundred lines with names of moderate length


def request(old_size: int, proof: Sequence[bytes], note: bytes) -> bytes:
    """Return the body of add-checkpoint.

    Args:
        old_size: size of the head that the witness cosigned last; 0 if none.
        proof: RFC 6962 consistency proof from there to the note's tree, hashes of 32 bytes; empty for size 0.
        note: the checkpoint note.

    Raises:
        MalformedError: not a checkpoint note.
        UsageError: a size above the note's, a proof where there is none, too long or not of digests.
    """
    size = parse_text(notes.parse(note).text).size
    if not 0 <= old_size <= size:
        raise UsageError("old size for a witness", expected=f"0 to {size}", got=old_size)
    most = 0 if old_size in (0, size) else MAX_PROOF
    if len(proof) > most or any(len(item) != DIGEST_SIZE for item in proof):
        expected = f"at most {most} hashes of {DIGEST_SIZE} bytes"
        raise UsageError("consistency proof for a witness", expected=expected, got=f"{len(proof)} items")
    return "".join([f"old {old_size}\n", *(f"{to_base64(item)}\n" for item in proof), "\n"]).encode() + note


def parse_size(body: bytes) -> int:
    """Parse the answer to a stale old size: the size that the witness cosigned last; raises `MalformedError`."""
    text = body.decode("ascii", "replace")
    if not text.endswith("\n"):
        raise MalformedError("size in a witness's answer", expected="a decimal number and a newline", got=text)
    return from_decimal(text[:-1], "size in a witness's answer", MAX_SIZE)


def parse_signatures(text: str, body: bytes) -> Note:
    """Parse the answer to a checkpoint that a witness accepted: its signature lines.

    Args:
        text: text of the note that was sent.
        body: what came back.

    Returns:
        The text with the returned lines as its signatures, none of which is verified yet.

    Raises:
        MalformedError: more than `MAX_ANSWER` bytes, or anything but signature lines.
    """
    if len(body) > MAX_ANSWER:
        raise MalformedError("a witness's answer", expected=f"at most {MAX_ANSWER} bytes", got=f"{len(body)} bytes")
    parsed = notes.parse(text.encode() + b"\n" + body)
    if parsed.text != text:  # an empty line in the answer moves the end of the text
        raise MalformedError("a witness's answer", expected="signature lines only", got=body)
    return parsed


def merge(note: bytes, answer: Note, keys: Sequence[VerifierKey]) -> tuple[bytes, tuple[Verified, ...]]:
    """Add the cosignatures of known witnesses in an answer to a note.

    A cosignature is evidence that the note's text existed at its time, and an earlier one proves more: where the note
    has one of the same key already, the earlier of the two stays.

    Args:
        note: the note that was sent.
        answer: from `parse_signatures`.
        keys: cosignature keys of the witnesses that are asked; other lines of the answer are dropped.

    Returns:
        The note, with its old lines first, and what was found in the answer.

    Raises:
        MalformedError: the note is none, or has no room for another signature.
        SignatureError: no cosignature of a known witness, or a false one.
        UsageError: no key, or not a cosignature key.
    """
    if not keys or any(key.kind is not KeyKind.COSIGNATURE for key in keys):
        raise UsageError("keys of a witness", expected="cosignature keys (type 04)", got=[key.line() for key in keys])
    mine = notes.parse(note)
    found = notes.verify(answer, keys)
    lines = {(line.name, line.key_id): line for line in answer.signatures}
    signatures = list(mine.signatures)
    for each in found:
        name = (each.key.name, each.key.key_id)
        at = next((i for i, line in enumerate(signatures) if (line.name, line.key_id) == name), None)
        if at is None:
            signatures.append(lines[name])
            continue
        try:
            (before,) = notes.verify(mine, [each.key])
        except SignatureError as error:
            raise SignatureError(f"the note carries a false cosignature already: {error}") from error
        if (each.timestamp or 0) < (before.timestamp or 0):
            signatures[at] = lines[name]
    return notes.Note(mine.text, tuple(signatures)).encode(), found
