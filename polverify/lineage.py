"""One link of a lineage, checked: a run began with tensors of a snapshot that its parent committed to.

Signatures, inclusion proofs and tensors, and nothing of either training: whether the parent itself was trained as it
says is another verdict. Implements specs/lineage.md, section "Verification". Pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.errors import ContinuityError, MalformedError, MerkleError, SignatureError
from polstore.wire import merkle
from polstore.wire.checkpoint import open_root, parse_text, run_origin
from polstore.wire.manifest import Manifest
from polstore.wire.multi_proof import verify_multi_proof
from polstore.wire.note import parse as parse_note
from polstore.wire.segment import SegmentRecord
from polstore.wire.state import entries_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.wire.checkpoint import Checkpoint, OpenedRoot
    from polstore.wire.keys import VerifierKey
    from polstore.wire.lineage import Lineage, ProvenLeaf
    from polstore.wire.manifest import Parent

__all__ = ["Link", "check_link", "check_link_alone"]


@dataclass(frozen=True)
class Link:
    """A link that holds.

    Attributes:
        child: manifest of the run that inherited.
        parent: manifest of the run that it inherited from.
        parent_leaf: that manifest's bytes.
        root: the parent's signed root.
        inherited: names of the tensors that are the parent's, bit for bit.
        others: names of the child's remaining tensors, which this link says nothing about.
    """

    child: Manifest
    parent: Manifest
    parent_leaf: bytes
    root: OpenedRoot
    inherited: tuple[str, ...]
    others: tuple[str, ...]


def check_link(
    lineage: Lineage,
    child: Manifest,
    keys: Sequence[VerifierKey],
    own_root: bytes | None = None,
    *,
    any_of: Sequence[VerifierKey] = (),
) -> Link:
    """Check the evidence for the parent of a run whose manifest is known.

    Args:
        lineage: the evidence.
        child: the run's manifest, out of its own signed tree.
        keys: all of them must have signed the parent's root.
        own_root: the verifier's own copy of the parent's signed root, if he has one.
        any_of: one of these must have, if there are any: the log keys of a policy.

    Raises:
        SignatureError: the parent's root lacks a signature.
        MerkleError: a leaf or a tensor that is not under its root, or another root than the child names.
        MalformedError: a leaf that does not parse, or other tensors than the child declares.
        ContinuityError: the parent's last snapshot is not the one that the child names.
    """
    parent = child.initial.parent
    if parent is None:
        raise MalformedError("initial state of the run", expected="one with a parent", got=child.initial.kind)
    if Manifest.parse(lineage.child_manifest.leaf) != child:
        raise MalformedError("manifest of the child in the lineage", expected=child.run, got="another one")
    root = open_root(lineage.parent_root, keys, any_of=any_of)
    _require_root(root.checkpoint, parent)
    if own_root is not None:
        _require_root(open_root(own_root, keys, any_of=any_of).checkpoint, parent)
    manifest = _manifest(lineage.parent_manifest, root)
    _require_end(lineage.parent_record, root.checkpoint, parent)
    got = entries_root(lineage.entries, lineage.scalars)
    if got != child.initial.state:
        raise MerkleError("initial state that the lineage describes", expected=child.initial.state, got=got)
    if lineage.names_digest() != parent.inherited:
        raise MalformedError("names of the inherited tensors", expected=parent.inherited, got=lineage.names_digest())
    entries = {entry.name: entry for entry in lineage.entries}
    leaves: list[tuple[int, bytes]] = []
    for number, name in lineage.inherited:
        if name not in entries:
            raise MalformedError("inherited tensor", expected="one of the child's initial state", got=name)
        leaves.append((number, entries[name].leaf))
    try:
        verify_multi_proof(leaves, lineage.parent_size, lineage.proof, parent.state)
    except MerkleError as error:
        raise MerkleError(f"inherited tensors are not those of the parent's last snapshot: {error}") from error
    inherited = lineage.names()
    others = tuple(sorted(entries.keys() - set(inherited), key=str.encode))
    return Link(child, manifest, lineage.parent_manifest.leaf, root, inherited, others)


def check_link_alone(
    lineage: Lineage, keys: Sequence[VerifierKey], *, any_of: Sequence[VerifierKey] = ()
) -> tuple[Link, Checkpoint]:
    """Check a link whose child is known by its signed root alone; returns that root's checkpoint, too.

    Args:
        lineage: the evidence.
        keys: keys of all signers. Each root needs every key whose name its origin begins with.
        any_of: log keys of a policy, of which each root needs one that has such a name, if there are any. A root with
            neither is refused.

    Raises: as `check_link`.
    """
    own, logs = _keys_of(lineage.child_root, keys, any_of)
    child = open_root(lineage.child_root, own, any_of=logs)
    manifest = _manifest(lineage.child_manifest, child)
    own, logs = _keys_of(lineage.parent_root, keys, any_of)
    return check_link(lineage, manifest, own, any_of=logs), child.checkpoint


def _keys_of(
    note: bytes, keys: Sequence[VerifierKey], any_of: Sequence[VerifierKey]
) -> tuple[list[VerifierKey], list[VerifierKey]]:
    """Return those of both kinds of keys whose names a root's origin begins with."""
    origin = parse_text(parse_note(note).text).origin
    own, logs = ([key for key in given if origin.startswith(f"{key.name}/")] for given in (keys, any_of))
    if not own and not logs:
        raise SignatureError("signer of a root", expected=sorted({key.name for key in (*keys, *any_of)}), got=origin)
    return own, logs


def _require_root(got: Checkpoint, parent: Parent) -> None:
    if (got.origin, got.size, got.root) != (parent.origin, parent.size, parent.root):
        raise MerkleError(
            "signed root of the parent",
            expected=f"{parent.origin}, {parent.size} leaves, {parent.root.hex()}",
            got=f"{got.origin}, {got.size} leaves, {got.root.hex()}",
        )


def _manifest(proven: ProvenLeaf, root: OpenedRoot) -> Manifest:
    """Return the manifest of a run that is proven to be leaf 0 of its signed tree."""
    checkpoint = root.checkpoint
    merkle.verify_inclusion(merkle.leaf_hash(proven.leaf), 0, checkpoint.size, proven.proof, checkpoint.root)
    manifest = Manifest.parse(proven.leaf)
    for key in root.keys:
        if run_origin(key.name, manifest.run) != checkpoint.origin:
            raise MalformedError("run that the manifest names", expected=checkpoint.origin, got=manifest.run)
    return manifest


def _require_end(proven: ProvenLeaf, checkpoint: Checkpoint, parent: Parent) -> None:
    """Require that the last leaf of the parent's tree is a segment that ends in the snapshot which the child names."""
    last = checkpoint.size - 1
    if last < 1:
        raise ContinuityError("parent", expected="at least one segment", got=0)
    merkle.verify_inclusion(merkle.leaf_hash(proven.leaf), last, checkpoint.size, proven.proof, checkpoint.root)
    record = SegmentRecord.parse(proven.leaf)
    if (record.index, record.end_step) != (last - 1, parent.step):
        raise ContinuityError(
            "parent's last segment",
            expected=f"segment {last - 1}, which ends at step {parent.step}",
            got=f"segment {record.index}, which ends at step {record.end_step}",
        )
    if record.end_state != parent.state:
        raise ContinuityError("parent's last snapshot", expected=parent.state, got=record.end_state)
