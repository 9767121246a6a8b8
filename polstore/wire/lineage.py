"""The evidence for one link of a lineage: that a run began with tensors of another run's proven snapshot.

One file, canonical msgpack. It carries both runs' signed roots, the leaves of them that matter with their inclusion
proofs, and one proof that the inherited tensors stand in the parent's snapshot as they stand in the child's. Implements
specs/lineage.md. Does no I/O and verifies nothing: it says what is there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.errors import MalformedError
from polstore.wire import canonical
from polstore.wire.bundle import MAX_PROOF
from polstore.wire.fields import DIGEST_SIZE, Fields
from polstore.wire.manifest import MAX_LEAF
from polstore.wire.note import MAX_NOTE
from polstore.wire.state import MAX_NAME, MAX_TENSORS, TensorEntry, check_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.wire.canonical import Value

__all__ = ["MAX_LINEAGE", "Lineage", "ProvenLeaf", "names_blob", "parse_names"]

MAX_LINEAGE = 2**28  # bytes: a tensor takes about 200, so a million of them
MAX_NAMES = 2**28  # bytes of the list of inherited names


def names_blob(names: Sequence[str]) -> bytes:
    """Return the canonical list of inherited tensors' names, whose SHA-256 a manifest holds."""
    return canonical.encode(tuple(names))


def parse_names(blob: bytes) -> tuple[str, ...]:
    """Parse a list of inherited tensors' names; raises `MalformedError`."""
    value = canonical.decode(blob, limit=MAX_NAMES, what="names of the inherited tensors")
    items = Fields((value,), "names of the inherited tensors", 1).array("names", MAX_TENSORS)
    inner = Fields(items, "names of the inherited tensors", len(items))
    names = tuple(inner.text("name", MAX_NAME) for _ in items)
    check_order(names, "names of the inherited tensors")
    return names


@dataclass(frozen=True)
class ProvenLeaf:
    """A leaf of a run's tree and its inclusion proof."""

    leaf: bytes
    proof: tuple[bytes, ...]

    def value(self) -> Value:
        """Return the leaf as a canonical value."""
        return (self.leaf, self.proof)

    @classmethod
    def from_value(cls, value: Value, what: str) -> ProvenLeaf:
        """Parse a leaf; raises `MalformedError`."""
        fields = Fields(value, what, 2)
        leaf, proof = fields.binary("leaf", MAX_LEAF), fields.array("proof", MAX_PROOF)
        return cls(leaf, _hashes(proof, what))


@dataclass(frozen=True)
class Lineage:
    """The evidence for one link.

    Attributes:
        child_root: signed root of the run that inherited, a note.
        child_manifest: its leaf 0.
        parent_root: the signed root of the parent that the child's manifest names, a note.
        parent_manifest: the parent's leaf 0.
        parent_record: the last leaf under the parent's root: the record of the segment that ends in its last snapshot.
        entries: all tensors of the child's snapshot 0, sorted by name.
        scalars: SHA-256 of that snapshot's scalars.
        parent_size: leaves under the state digest of the parent's snapshot: its tensors and one.
        inherited: (number of the tensor in the parent's snapshot, its name), ascending in both.
        proof: the hashes that, with these tensors' leaves, give the parent's state digest.
    """

    child_root: bytes
    child_manifest: ProvenLeaf
    parent_root: bytes
    parent_manifest: ProvenLeaf
    parent_record: ProvenLeaf
    entries: tuple[TensorEntry, ...]
    scalars: bytes
    parent_size: int
    inherited: tuple[tuple[int, str], ...]
    proof: tuple[bytes, ...]

    TAG = "polstore/lineage/v1"

    def encode(self) -> bytes:
        """Return the file's bytes."""
        return canonical.encode(
            (
                self.TAG,
                self.child_root,
                self.child_manifest.value(),
                self.parent_root,
                self.parent_manifest.value(),
                self.parent_record.value(),
                tuple(entry.value() for entry in self.entries),
                self.scalars,
                self.parent_size,
                self.inherited,
                self.proof,
            )
        )

    @classmethod
    def parse(cls, data: bytes) -> Lineage:
        """Parse a file; raises `MalformedError`."""
        fields = Fields(canonical.decode(data, limit=MAX_LINEAGE, what="lineage"), "lineage", 11)
        fields.tag(cls.TAG)
        child_root = fields.binary("child_root", MAX_NOTE)
        child_manifest = ProvenLeaf.from_value(fields.value(), "lineage, manifest of the child")
        parent_root = fields.binary("parent_root", MAX_NOTE)
        parent_manifest = ProvenLeaf.from_value(fields.value(), "lineage, manifest of the parent")
        parent_record = ProvenLeaf.from_value(fields.value(), "lineage, record of the parent")
        entries = tuple(
            TensorEntry.from_value(item, "lineage, tensor entry") for item in fields.array("entries", MAX_TENSORS)
        )
        check_order((entry.name for entry in entries), "tensor names of a snapshot")
        scalars = fields.digest("scalars")
        parent_size = fields.integer("parent_size", 2, MAX_TENSORS + 1)
        inherited = _inherited(fields.array("inherited", len(entries)), parent_size)
        proof = _hashes(fields.array("proof", MAX_TENSORS), "lineage, proof of the inherited tensors")
        return cls(
            child_root,
            child_manifest,
            parent_root,
            parent_manifest,
            parent_record,
            entries,
            scalars,
            parent_size,
            inherited,
            proof,
        )

    def names(self) -> tuple[str, ...]:
        """Return the names of the inherited tensors."""
        return tuple(name for _, name in self.inherited)

    def names_digest(self) -> bytes:
        """Return the SHA-256 of their list, as the child's manifest holds it."""
        return hashlib.sha256(names_blob(self.names())).digest()


def _hashes(items: tuple[Value, ...], what: str) -> tuple[bytes, ...]:
    fields = Fields(items, what, len(items))
    return tuple(fields.digest(f"hash of {DIGEST_SIZE} bytes") for _ in items)


def _inherited(items: tuple[Value, ...], size: int) -> tuple[tuple[int, str], ...]:
    if not items:
        raise MalformedError("lineage, inherited tensors", expected="at least one", got=0)
    found: list[tuple[int, str]] = []
    last = -1
    for item in items:
        fields = Fields(item, "lineage, inherited tensor", 2)
        number, name = fields.integer("number", 0, size - 2), fields.text("name", MAX_NAME)
        if number <= last:
            raise MalformedError("lineage, numbers of inherited tensors", expected=f"more than {last}", got=number)
        last = number
        found.append((number, name))
    check_order((name for _, name in found), "names of the inherited tensors")
    return tuple(found)
