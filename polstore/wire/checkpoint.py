"""The signed root: a C2SP checkpoint, signed by the run's key and cosigned with a timestamp.

A checkpoint states origin, size and root of a tree. `sign_root` wraps it into a note, and `open_root` wants the
signature of every key that it is told to. The time is the signer's own claim: only an independent witness makes it
evidence. Implements specs/signed-root.md. Does no I/O and reads no clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.errors import MalformedError, SignatureError, UsageError
from polstore.wire import note
from polstore.wire.fields import DIGEST_SIZE
from polstore.wire.merkle import EMPTY_ROOT
from polstore.wire.text import from_base64, from_decimal, to_base64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.wire.keys import SigningKey, VerifierKey
    from polstore.wire.note import Note

__all__ = ["MAX_ORIGIN", "MAX_SIZE", "Checkpoint", "OpenedRoot", "open_root", "parse_text", "run_origin", "sign_root"]

MAX_SIZE = 2**48 - 1  # leaves; far above any log, and within the depth that proofs allow
MAX_ORIGIN = 1024  # characters: a key name, a slash, a run name
_LINE = re.compile(r"[^\x00-\x1f\ud800-\udfff]+")


@dataclass(frozen=True)
class Checkpoint:
    """The head of a log; constructing one checks it and raises `MalformedError`.

    Attributes:
        origin: which log this is the head of, one line.
        size: number of leaves, from 0 to `MAX_SIZE`.
        root: RFC 6962 root over them, 32 bytes; that of the empty tree for size 0.
        extensions: further lines, signed like the rest and not interpreted here.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.origin) > MAX_ORIGIN:
            raise MalformedError("length of an origin", expected=f"at most {MAX_ORIGIN}", got=len(self.origin))
        for line in (self.origin, *self.extensions):
            if _LINE.fullmatch(line) is None:
                raise MalformedError("line of a checkpoint", expected="text without control characters", got=line)
        if not 0 <= self.size <= MAX_SIZE:
            raise MalformedError("size of a checkpoint", expected=f"0 to {MAX_SIZE}", got=self.size)
        if len(self.root) != DIGEST_SIZE:
            raise MalformedError("root of a checkpoint", expected=f"{DIGEST_SIZE} bytes", got=self.root)
        if self.size == 0 and self.root != EMPTY_ROOT:
            raise MalformedError("root of an empty tree", expected=EMPTY_ROOT, got=self.root)

    def text(self) -> str:
        """Return the text of the note, with its final newline."""
        return "".join(f"{line}\n" for line in (self.origin, self.size, to_base64(self.root), *self.extensions))


@dataclass(frozen=True)
class OpenedRoot:
    """A signed root whose signatures were checked.

    Attributes:
        checkpoint: origin, size and root.
        keys: those of the given keys that signed, in the order of the note's lines.
        timestamp: the latest time that a cosignature states, seconds since 1970; None without a cosignature key.
        note: the whole note, signatures of unknown keys included.
    """

    checkpoint: Checkpoint
    keys: tuple[VerifierKey, ...]
    timestamp: int | None
    note: Note


def parse_text(text: str) -> Checkpoint:
    """Parse the text of a checkpoint note.

    Raises:
        MalformedError: a missing line, an empty one, a value out of bounds, or another spelling than `Checkpoint.text`.
    """
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1]:
        raise MalformedError("checkpoint", expected="lines of origin, size and root", got=text)
    origin, size, root, *extensions = lines[:-1]
    checkpoint = Checkpoint(
        origin,
        from_decimal(size, "size of a checkpoint", MAX_SIZE),
        from_base64(root, "root of a checkpoint"),
        tuple(extensions),
    )
    if checkpoint.text() != text:
        raise MalformedError("checkpoint is not in canonical form", expected=checkpoint.text(), got=text)
    return checkpoint


def run_origin(key_name: str, run: str) -> str:
    """Return the origin of a run's tree; the bare key name is left to the ledger, so the two never look alike."""
    return f"{key_name}/{run}"


def sign_root(checkpoint: Checkpoint, key: SigningKey, timestamp: int, *more: SigningKey) -> bytes:
    """Return the signed root: the note with an Ed25519 signature line and a cosignature line of each key.

    Args:
        checkpoint: what to sign; its origin is the key's name, or starts with it and a slash.
        key: the signer.
        timestamp: seconds since 1970, from 1 to 2**63 - 1.
        more: further keys, during a rotation.

    Raises:
        UsageError: an origin under another name, the same key twice, or a timestamp out of range.
    """
    text, signatures = checkpoint.text(), []
    for signer in (key, *more):
        if not _owns(signer.name, checkpoint.origin):
            raise UsageError("origin to sign", expected=f"{signer.name} or {signer.name}/…", got=checkpoint.origin)
        signatures += [note.sign(text, signer), note.cosign(text, signer, timestamp)]
    if len(set(signatures)) != len(signatures):
        raise UsageError("keys to sign with", expected="each key once", got="one twice")
    return note.Note(text, tuple(signatures)).encode()


def open_root(data: bytes, keys: Sequence[VerifierKey], *, any_of: Sequence[VerifierKey] = ()) -> OpenedRoot:
    """Check a signed root against keys and return what it states.

    Args:
        data: the note.
        keys: all of these must have signed it.
        any_of: one of these must have, if there are any: the log keys of a policy, or both keys during a rotation.
            Those whose name does not fit the origin are of other logs, and count for nothing here.

    Raises:
        MalformedError: not a note, or its text is no checkpoint.
        SignatureError: a key that must have signed has not, a known key has signed falsely, or the origin lies under
            another name.
        UsageError: no keys at all, or the same one twice.
    """
    if not keys and not any_of:
        raise UsageError("a signed root cannot be checked without a key")
    opened = note.parse(data)
    checkpoint = parse_text(opened.text)
    for key in keys:
        if not _owns(key.name, checkpoint.origin):
            raise SignatureError("origin", expected=f"{key.name} or {key.name}/…", got=checkpoint.origin)
    eligible = [key for key in any_of if _owns(key.name, checkpoint.origin)]
    if any_of and not eligible:
        names = " or ".join(sorted({f"{key.name} or {key.name}/…" for key in any_of}))
        raise SignatureError("origin", expected=names, got=checkpoint.origin)
    verified = note.verify(opened, [*keys, *(key for key in eligible if key not in keys)])
    signers = tuple(item.key for item in verified)
    if eligible and not any(key in signers for key in eligible):
        wanted = " or ".join(key.line() for key in eligible)
        raise SignatureError("none of these keys has signed", expected=wanted, got=[key.line() for key in signers])
    missing = [key.line() for key in keys if key not in signers]
    if missing:
        raise SignatureError("a key has not signed", expected=", ".join(missing), got=[key.line() for key in signers])
    times = [item.timestamp for item in verified if item.timestamp is not None]
    return OpenedRoot(checkpoint, signers, max(times, default=None), opened)


def _owns(name: str, origin: str) -> bool:
    """Say whether a key of this name may sign for the origin."""
    return origin == name or (origin.startswith(name + "/") and len(origin) > len(name) + 1)
