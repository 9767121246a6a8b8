"""Signed notes: C2SP signed-note v1 with Ed25519 signatures and timestamped cosignatures.

A note is a text, an empty line, and signature lines. Parsing is strict and encoding a parsed note gives the same bytes.
Verification follows C2SP: signatures of unknown keys are ignored, a known key whose signature fails rejects the note,
and so does the absence of any known key. Implements specs/signed-root.md. Does no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from polstore.errors import MalformedError, SignatureError, UsageError
from polstore.wire.keys import KEY_ID_SIZE, KeyKind, check_key_name
from polstore.wire.text import from_base64, to_base64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.wire.keys import SigningKey, VerifierKey

__all__ = [
    "MAX_NOTE",
    "MAX_SIGNATURES",
    "MAX_TIMESTAMP",
    "Note",
    "Signature",
    "Verified",
    "cosign",
    "parse",
    "sign",
    "verify",
]

MAX_NOTE = 2**20  # bytes; a checkpoint with 100 post-quantum signatures takes 460 000
MAX_SIGNATURES = 100  # readers must accept 16; far more only cost time
MAX_TIMESTAMP = 2**63 - 1  # seconds since 1970; what a signed 64-bit clock can hold
TIMESTAMP_SIZE = 8  # bytes, big-endian, in front of a cosignature
ED25519_SIZE = 64  # bytes of a signature
_PREFIX = "\u2014 "  # em dash and space
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


@dataclass(frozen=True)
class Signature:
    """One signature line.

    Attributes:
        name: name of the key.
        key_id: 4 bytes.
        blob: what follows the key id, at least 1 byte: the signature, after the timestamp in a cosignature.
    """

    name: str
    key_id: bytes
    blob: bytes

    def line(self) -> str:
        """Return the signature line with its end of line."""
        return f"{_PREFIX}{self.name} {to_base64(self.key_id + self.blob)}\n"


@dataclass(frozen=True)
class Note:
    """A text, which ends in a newline, and its signatures."""

    text: str
    signatures: tuple[Signature, ...]

    def encode(self) -> bytes:
        """Return the note's bytes; raises `MalformedError` for what `parse` would refuse or read differently."""
        data = self._joined()
        if parse(data) != self:
            raise MalformedError("note cannot be written", expected="a text that is read back as it is", got=self.text)
        return data

    def _joined(self) -> bytes:
        try:
            return (self.text + "\n" + "".join(item.line() for item in self.signatures)).encode()
        except UnicodeEncodeError as error:
            raise MalformedError(f"note is not UTF-8: {error}") from error


@dataclass(frozen=True)
class Verified:
    """A key whose signature was checked, and the time it states: seconds since 1970, or None for kind 0x01."""

    key: VerifierKey
    timestamp: int | None


def parse(data: bytes) -> Note:
    """Parse a note.

    Raises:
        MalformedError: more than `MAX_NOTE` bytes, not UTF-8, a control character, no empty line, no signature, more
            than `MAX_SIGNATURES`, a malformed signature line, or not in canonical form.
    """
    if len(data) > MAX_NOTE:
        raise MalformedError("note is too long", expected=f"at most {MAX_NOTE} bytes", got=f"{len(data)} bytes")
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError(f"note is not UTF-8: {error}") from error
    control = _CONTROL.search(whole)
    if control is not None:
        raise MalformedError("control character in a note", expected="newlines only", got=control.group())
    text, gap, rest = whole.rpartition("\n\n")
    if not gap or not rest.endswith("\n"):
        # Not what was read: it may be a private key that somebody mistook for a note.
        raise MalformedError("note", expected="a text, an empty line, signature lines", got=f"{len(data)} other bytes")
    lines = rest[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise MalformedError("number of signatures", expected=f"1 to {MAX_SIGNATURES}", got=len(lines))
    note = Note(text + "\n", tuple(_signature(line) for line in lines))
    if note._joined() != data:
        raise MalformedError("note is not in canonical form", expected=note._joined(), got=data)
    return note


def sign(text: str, key: SigningKey) -> Signature:
    """Return the Ed25519 signature (kind 0x01) of a note's text."""
    verifier_key = key.verifier_key(KeyKind.ED25519)
    return Signature(key.name, verifier_key.key_id, key.private_key(KeyKind.ED25519).sign(text.encode()))


def cosign(text: str, key: SigningKey, timestamp: int) -> Signature:
    """Return the timestamped cosignature (kind 0x04) of a note's text.

    Args:
        text: the note's text with its final newline.
        key: the signer.
        timestamp: seconds since 1970, from 1 to `MAX_TIMESTAMP`.

    Raises:
        UsageError: a timestamp out of range.
    """
    if not 1 <= timestamp <= MAX_TIMESTAMP:
        raise UsageError("timestamp", expected=f"1 to {MAX_TIMESTAMP}", got=timestamp)
    verifier_key = key.verifier_key(KeyKind.COSIGNATURE)
    signature = key.private_key(KeyKind.COSIGNATURE).sign(_cosigned(text, timestamp))
    return Signature(key.name, verifier_key.key_id, timestamp.to_bytes(TIMESTAMP_SIZE, "big") + signature)


def verify(note: Note, keys: Sequence[VerifierKey]) -> tuple[Verified, ...]:
    """Check every signature of a known key; return those keys in the order of the note's lines.

    Raises:
        SignatureError: a known key's signature is false or there twice, or no known key has signed.
        UsageError: two keys with the same name and key id.
    """
    known = {(key.name, key.key_id): key for key in keys}
    if len(known) != len(keys):
        raise UsageError("verifier keys are not unique", expected="every name and key id once", got=len(keys))
    verified: list[Verified] = []
    for signature in note.signatures:
        key = known.get((signature.name, signature.key_id))
        if key is None:
            continue
        if any(item.key == key for item in verified):
            raise SignatureError("two signatures of one key", expected="one", got=key.line())
        verified.append(Verified(key, _checked(note.text, signature.blob, key)))
    if not verified:
        names = ", ".join(sorted({item.name for item in note.signatures}))
        wanted = ", ".join(key.line() for key in keys)
        raise SignatureError("no signature of a known key", expected=wanted, got=names)
    return tuple(verified)


def _checked(text: str, blob: bytes, key: VerifierKey) -> int | None:
    """Check one signature and return its timestamp, if its kind has one."""
    size = ED25519_SIZE + (TIMESTAMP_SIZE if key.kind is KeyKind.COSIGNATURE else 0)
    if len(blob) != size:
        raise SignatureError(f"size of the signature of {key.name}", expected=size, got=len(blob))
    timestamp = None
    message = text.encode()
    if key.kind is KeyKind.COSIGNATURE:
        timestamp = int.from_bytes(blob[:TIMESTAMP_SIZE], "big")
        if not 1 <= timestamp <= MAX_TIMESTAMP:
            raise SignatureError(f"timestamp of {key.name}", expected=f"1 to {MAX_TIMESTAMP}", got=timestamp)
        message = _cosigned(text, timestamp)
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(blob[-ED25519_SIZE:], message)
    except InvalidSignature as error:
        raise SignatureError(f"the signature of {key.line()} is false") from error
    return timestamp


def _cosigned(text: str, timestamp: int) -> bytes:
    """Return the message of a cosignature (C2SP tlog-cosignature v1)."""
    return f"cosignature/v1\ntime {timestamp}\n{text}".encode()


def _signature(line: str) -> Signature:
    """Parse one signature line without its end of line."""
    parts = line.removeprefix(_PREFIX).split(" ")
    if not line.startswith(_PREFIX) or len(parts) != 2:
        raise MalformedError("signature line", expected=f"{_PREFIX}name base64", got=line)
    name, encoded = parts
    check_key_name(name)
    blob = from_base64(encoded, f"signature of {name}")
    if len(blob) <= KEY_ID_SIZE:
        raise MalformedError("signature line", expected=f"more than {KEY_ID_SIZE} bytes", got=blob)
    return Signature(name, blob[:KEY_ID_SIZE], blob[KEY_ID_SIZE:])
