"""What is committed of one training sample, label included.

Implements specs/run-records.md, section "Dataset". The leaf holds a salt of its own, so a verifier who sees some
samples learns nothing about the others. How a live sample becomes ``content`` is `polstore.codec.live.samples`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polstore.wire import canonical

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = ["sample_leaf"]


def sample_leaf(salt: bytes, content: Value) -> bytes:
    """Return the bytes of a dataset's leaf: the canonical encoding of tag, 32-byte salt and content."""
    return canonical.encode(("polstore/sample/v1", salt, content))
