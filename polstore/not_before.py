"""The checkpoint that a run commits to before training, so that it can be seen to have begun later.

Looks only at the form: which witnesses cosigned it, and whether they count, is for verifiers. Implements specs/time.md,
section "Lower bound".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polstore.errors import ProofError, UsageError
from polstore.files import read_file
from polstore.wire.checkpoint import parse_text
from polstore.wire.manifest import MAX_NOT_BEFORE
from polstore.wire.note import ED25519_SIZE, TIMESTAMP_SIZE
from polstore.wire.note import parse as parse_note

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_checkpoint", "read_checkpoint"]


def check_checkpoint(note: bytes) -> bytes:
    """Return a checkpoint note that can stand in a manifest; raises `UsageError` for anything else."""
    if len(note) > MAX_NOT_BEFORE:
        raise UsageError("checkpoint to begin after", expected=f"at most {MAX_NOT_BEFORE} bytes", got=len(note))
    try:
        parsed = parse_note(note)
        parse_text(parsed.text)
    except ProofError as error:
        raise UsageError(f"checkpoint to begin after: {error}") from error
    if not any(len(line.blob) == TIMESTAMP_SIZE + ED25519_SIZE for line in parsed.signatures):
        raise UsageError("checkpoint to begin after", expected="one that a witness has cosigned", got="no time at all")
    return note


def read_checkpoint(path: Path) -> bytes:
    """Read and check the checkpoint in a file; raises `MissingError`, `CallerError` or `UsageError`."""
    try:
        return check_checkpoint(read_file(path, MAX_NOT_BEFORE))
    except ProofError as error:
        raise UsageError(f"checkpoint to begin after: {error}") from error
