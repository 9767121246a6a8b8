"""The ledger's leaf: one signed root that was entered into the log, with the signed roots it descends from.

The ledger is an RFC 6962 tree over such leaves, and its head is a checkpoint under the bare key name. A leaf repeats
what the signed root states, so that whoever holds the root and its manifest can build the leaf again and look for it.
Implements specs/ledger.md. Does no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.errors import MalformedError, SignatureError, UsageError
from polstore.wire import canonical, merkle
from polstore.wire.checkpoint import MAX_ORIGIN, MAX_SIZE, Checkpoint, OpenedRoot, open_root
from polstore.wire.extensions import MAX_EXTENSIONS, Extensions, parse_extensions
from polstore.wire.fields import DIGEST_SIZE, Fields
from polstore.wire.manifest import MAX_LEAF
from polstore.wire.text import from_base64, to_base64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.wire.canonical import Value
    from polstore.wire.keys import VerifierKey
    from polstore.wire.manifest import Manifest

__all__ = [
    "MAX_CONSISTENCY",
    "MAX_CONSISTENCY_BYTES",
    "MAX_PARENTS",
    "LedgerLeaf",
    "ParentRoot",
    "consistency_lines",
    "open_head",
    "parse_consistency",
]

MAX_PARENTS = 64  # a run starts from one snapshot now; merged models would name several
MAX_CONSISTENCY = 63  # hashes; what the C2SP witness protocol allows
MAX_CONSISTENCY_BYTES = 63 * 45  # a hash takes 44 characters and a newline


@dataclass(frozen=True, order=True)
class ParentRoot:
    """The signed root of a run that another run started from: its origin, size in leaves, and root of 32 bytes."""

    origin: str
    size: int
    root: bytes


@dataclass(frozen=True)
class LedgerLeaf:
    """One entry of the ledger.

    Attributes:
        origin: origin of the signed root, one line.
        size: leaves under it.
        root: that root, 32 bytes.
        parents: the signed roots that the run's manifest names as parents, strictly ascending.
        extensions: later commitments.
    """

    origin: str
    size: int
    root: bytes
    parents: tuple[ParentRoot, ...] = ()
    extensions: Extensions = ()

    TAG = "polstore/ledger/v1"

    @classmethod
    def of(cls, checkpoint: Checkpoint, manifest: Manifest) -> LedgerLeaf:
        """Return the leaf that enters the signed root of a run which began with ``manifest``."""
        parent = manifest.initial.parent
        parents = () if parent is None else (ParentRoot(parent.origin, parent.size, parent.root),)
        return cls(checkpoint.origin, checkpoint.size, checkpoint.root, parents)

    def encode(self) -> bytes:
        """Return the leaf's bytes; raises `MalformedError` for what `parse` would refuse."""
        parents = tuple((parent.origin, parent.size, parent.root) for parent in self.parents)
        data = canonical.encode((self.TAG, self.origin, self.size, self.root, parents, self.extensions))
        if self.parse(data) != self:
            raise MalformedError("leaf of the ledger cannot be written", expected="what is read back", got=self)
        return data

    def leaf_hash(self) -> bytes:
        """Return the leaf's hash in the ledger, 32 bytes."""
        return merkle.leaf_hash(self.encode())

    @classmethod
    def parse(cls, data: bytes) -> LedgerLeaf:
        """Parse a leaf; raises `MalformedError`."""
        fields = Fields(canonical.decode(data, limit=MAX_LEAF, what="leaf of the ledger"), "leaf of the ledger", 6)
        fields.tag(cls.TAG)
        return cls(
            origin=fields.text("origin", MAX_ORIGIN),
            size=fields.integer("size", 1, MAX_SIZE),
            root=fields.digest("root"),
            parents=_parents(fields.array("parents", MAX_PARENTS)),
            extensions=parse_extensions(fields.array("extensions", MAX_EXTENSIONS), "leaf of the ledger"),
        )


def open_head(data: bytes, keys: Sequence[VerifierKey], *, any_of: Sequence[VerifierKey] = ()) -> OpenedRoot:
    """Check a head of the ledger against keys and return what it states; arguments as for `open_root`.

    Raises:
        MalformedError: not a note, or its text is no checkpoint.
        SignatureError: as `polstore.wire.checkpoint.open_root`, or the origin is not the bare name of every key, so
            that it is the signed root of a run; or it has extension lines.
        UsageError: no keys, or the same one twice.
    """
    opened = open_root(data, keys, any_of=any_of)
    for key in opened.keys:
        if key.name != opened.checkpoint.origin:
            raise SignatureError("origin of a ledger", expected=key.name, got=opened.checkpoint.origin)
    if opened.checkpoint.extensions:
        raise SignatureError("extension lines of a ledger's head", expected=(), got=opened.checkpoint.extensions)
    return opened


def consistency_lines(proof: Sequence[bytes]) -> str:
    """Return a consistency proof as the witness protocol writes it: a line of base64 for each hash."""
    if len(proof) > MAX_CONSISTENCY:
        raise UsageError("consistency proof", expected=f"at most {MAX_CONSISTENCY} hashes", got=len(proof))
    return "".join(f"{to_base64(item)}\n" for item in proof)


def parse_consistency(data: bytes) -> tuple[bytes, ...]:
    """Parse the lines of a consistency proof, none for equal sizes; raises `MalformedError`."""
    if len(data) > MAX_CONSISTENCY_BYTES:
        raise MalformedError(
            "consistency proof is too long", expected=f"at most {MAX_CONSISTENCY_BYTES}", got=len(data)
        )
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise MalformedError(f"consistency proof is not ASCII: {error}") from error
    if lines.pop():
        raise MalformedError("consistency proof", expected="lines that end in a newline", got=data[-44:])
    proof = tuple(from_base64(line, "hash of a consistency proof") for line in lines)
    for item in proof:
        if len(item) != DIGEST_SIZE:
            raise MalformedError("hash of a consistency proof", expected=f"{DIGEST_SIZE} bytes", got=item)
    return proof


def _parents(values: tuple[Value, ...]) -> tuple[ParentRoot, ...]:
    parents: list[ParentRoot] = []
    for value in values:
        fields = Fields(value, "leaf of the ledger, parent", 3)
        parent = ParentRoot(fields.text("origin", MAX_ORIGIN), fields.integer("size", 1), fields.digest("root"))
        if parents and not parents[-1] < parent:
            raise MalformedError("parents in a leaf of the ledger", expected="strictly ascending", got=parent.origin)
        parents.append(parent)
    return tuple(parents)
