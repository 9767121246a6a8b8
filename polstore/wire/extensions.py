"""Extensions: the sorted (name, bytes) pairs that end a manifest or a segment record.

They are hashed like the rest and ignored when unknown, so later commitments need no new version. Implements
specs/run-records.md, section "Extensions".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from polstore.wire.fields import Fields
from polstore.wire.state import check_order

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = ["Extensions", "parse_extensions"]

Extensions: TypeAlias = tuple[tuple[str, bytes], ...]

MAX_EXTENSIONS = 64
MAX_NAME = 128  # characters
MAX_BYTES = 32_768  # of one extension; the leaf as a whole stays below 65,536


def parse_extensions(value: tuple[Value, ...], what: str) -> Extensions:
    """Parse the extensions of ``what``; raises `MalformedError`."""
    pairs = []
    for item in value:
        fields = Fields(item, f"{what}, extension", 2)
        pairs.append((fields.text("name", MAX_NAME), fields.binary("data", MAX_BYTES)))
    check_order((name for name, _ in pairs), f"extensions of a {what}")
    return tuple(pairs)
