"""The RFC 6962 Merkle tree over SHA-256: roots, proofs, and their verification.

A tree is given either as a list of leaf hashes (`root`) or as a `Node`, a function that returns the stored hash of a
*full* subtree; every proof then costs O(log n) reads. Verifiers check bounds, hash sizes and the exact proof length
before they hash anything, and raise or return nothing. Proofs for many leaves at once are in
`polstore.wire.multi_proof`. Implements specs/merkle.md. Does no I/O and stores nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from polstore.errors import MerkleError, UsageError
from polstore.wire.fields import DIGEST_SIZE, MAX_INDEX

__all__ = [
    "EMPTY_ROOT",
    "Node",
    "completed_levels",
    "completed_nodes",
    "consistency_proof",
    "inclusion_proof",
    "leaf_hash",
    "leaf_hashes",
    "node_hash",
    "nodes_of",
    "root",
    "root_from_nodes",
    "verify_consistency",
    "verify_inclusion",
]

EMPTY_ROOT = hashlib.sha256(b"").digest()

Node: TypeAlias = Callable[[int, int], bytes]
"""``node(level, index)``: the hash over the leaves ``[index << level, (index + 1) << level)``, all of which exist."""


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf, 32 bytes (RFC 6962, 2.1)."""
    return hashlib.sha256(b"\x00" + data).digest()


def leaf_hashes(data: Iterable[bytes]) -> list[bytes]:
    """Return the hashes of many leaves, in order."""
    sha256 = hashlib.sha256  # a name of its own: a million of these hashes are bounded by what Python adds to them
    return [sha256(b"\x00" + item).digest() for item in data]


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node, 32 bytes (RFC 6962, 2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Return the root over leaf hashes, 32 bytes; `EMPTY_ROOT` for none."""
    level = list(leaf_hashes)
    if not level:
        return EMPTY_ROOT
    while len(level) > 1:
        level = _pairs(level) + level[len(level) & ~1 :]  # an odd last node moves up as it is
    return level[0]


def nodes_of(leaf_hashes: Sequence[bytes]) -> Node:
    """Return the `Node` of a tree held in memory; whole levels are hashed once, when first asked for."""
    levels = [list(leaf_hashes)]

    def node(level: int, index: int) -> bytes:
        while len(levels) <= level and levels[-1]:
            levels.append(_pairs(levels[-1]))
        if level < 0 or index < 0 or (index + 1) << level > len(levels[0]):
            raise UsageError(f"no full subtree {index} at level {level} in a tree of {len(levels[0])} leaves")
        return levels[level][index]

    return node


def completed_nodes(index: int, leaf: bytes, node: Node) -> list[tuple[int, int, bytes]]:
    """Return the full subtrees that appending a leaf completes, as (level, index, hash), level 0 first.

    Args:
        index: number of the new leaf, so the size of the tree before.
        leaf: its leaf hash, 32 bytes.
        node: the nodes of the tree before.
    """
    completed = [(0, index, leaf)]
    level = 0
    while index & 1:
        leaf = node_hash(node(level, index - 1), leaf)
        level, index = level + 1, index >> 1
        completed.append((level, index, leaf))
    return completed


def completed_levels(size: int, new_leaves: Sequence[bytes], node: Node) -> Iterator[tuple[int, int, Sequence[bytes]]]:
    """Yield the full subtrees that appending many leaves completes, as (level, index of the first, hashes).

    Level 0 comes first, and the hashes of a level are neighbours. Each node is hashed once.

    Args:
        size: leaves of the tree before.
        new_leaves: leaf hashes to append, 32 bytes each.
        node: the nodes of the tree before.
    """
    level, first, hashes = 0, size, new_leaves
    while hashes:
        yield level, first, hashes
        hashes = _pairs([node(level, first - 1), *hashes] if first & 1 else hashes)
        level, first = level + 1, first >> 1


def root_from_nodes(size: int, node: Node) -> bytes:
    """Return the root of the first ``size`` leaves, 32 bytes."""
    return range_root(0, size, node) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, node: Node) -> tuple[bytes, ...]:
    """Return the audit path of leaf ``index`` in the first ``size`` leaves, the leaf's sibling first.

    Raises:
        UsageError: not ``0 <= index < size``.
    """
    if not 0 <= index < size:
        raise UsageError("no inclusion proof", expected=f"an index from 0 to {size - 1}", got=index)
    return tuple(range_root(start, end, node) for start, end, _ in reversed(list(_path(index, size))))


def consistency_proof(old_size: int, new_size: int, node: Node) -> tuple[bytes, ...]:
    """Return the proof that the first ``old_size`` leaves are a prefix of the first ``new_size`` (RFC 6962, 2.1.2).

    It is empty for equal sizes, and for an old size of 0, where the witness protocol wants it so.

    Raises:
        UsageError: not ``0 <= old_size <= new_size``.
    """
    if not 0 <= old_size <= new_size:
        raise UsageError("no consistency proof", expected=f"an old size from 0 to {new_size}", got=old_size)
    if old_size in (0, new_size):
        return ()
    path = list(_consistency_path(old_size, new_size))
    return tuple(range_root(start, end, node) for start, end, _ in reversed(path))


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf hash ``leaf`` is number ``index`` of the ``size`` leaves under ``root``.

    Raises:
        MerkleError: index, size, or length out of bounds, or the proof leads to another root.
    """
    _check_bounds(index, size)
    path = list(_path(index, size))
    check_length("inclusion proof", len(path), proof)
    check_hashes(leaf, root, *proof)
    for (_, _, is_left), sibling in zip(reversed(path), proof, strict=True):
        leaf = node_hash(sibling, leaf) if is_left else node_hash(leaf, sibling)
    if leaf != root:
        raise MerkleError(f"inclusion proof of leaf {index} of {size} leads to another root", expected=root, got=leaf)


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of ``old_size`` leaves is a prefix of the tree of ``new_size`` leaves.

    An old size of 0 is refused: nothing is bound by an empty tree, so there is nothing to verify.

    Raises:
        MerkleError: sizes or length out of bounds, or the proof leads to another old or new root.
    """
    if not 1 <= old_size <= new_size <= MAX_INDEX:
        raise MerkleError(
            "sizes of a consistency proof", expected=f"1 <= old <= new <= {MAX_INDEX}", got=(old_size, new_size)
        )
    if old_size == new_size:
        check_length("consistency proof of equal sizes", 0, proof)
        check_hashes(old_root, new_root)
        if old_root != new_root:
            raise MerkleError(f"two roots for one size {old_size}", expected=old_root, got=new_root)
        return
    path = list(_consistency_path(old_size, new_size))
    check_length("consistency proof", len(path), proof)
    check_hashes(old_root, new_root, *proof)
    steps = list(zip(reversed(path), proof, strict=True))
    if path[-1][2]:  # the path ends on the left: with the old tree's own right end
        old = new = steps.pop(0)[1]
    else:  # the old tree is one full subtree of the new one
        old = new = old_root
    for (_, _, is_left), sibling in steps:
        if is_left:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
        else:
            new = node_hash(new, sibling)
    if old != old_root:
        raise MerkleError(f"consistency proof leads to another root for size {old_size}", expected=old_root, got=old)
    if new != new_root:
        raise MerkleError(f"consistency proof leads to another root for size {new_size}", expected=new_root, got=new)


def _pairs(level: Iterable[bytes]) -> list[bytes]:
    """Hash neighbours; an odd last one is left out."""
    sha256, items = hashlib.sha256, iter(level)
    return [sha256(b"\x01" + left + right).digest() for left, right in zip(items, items, strict=False)]


def split(start: int, end: int) -> int:
    """Return where a range of at least two leaves splits: the largest power of two below its length."""
    return start + (1 << (end - start - 1).bit_length() - 1)


def range_root(start: int, end: int, node: Node) -> bytes:
    """Return the root of a range that RFC 6962's splits lead to: its full subtrees, joined from the right."""
    result = b""
    while end > start:
        level = ((end - start) & (start - end)).bit_length() - 1  # lowest set bit of the length
        end -= 1 << level
        piece = node(level, end >> level)
        result = node_hash(piece, result) if result else piece
    return result


def _path(index: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """Yield the siblings met from the root down to a leaf, as (start, end, sibling is on the left)."""
    start, end = 0, size
    while end - start > 1:
        middle = split(start, end)
        if index < middle:
            yield middle, end, False
            end = middle
        else:
            yield start, middle, True
            start = middle


def _consistency_path(old_size: int, new_size: int) -> Iterator[tuple[int, int, bool]]:
    """Yield the siblings from the root down to the old tree's right end; that end is last unless it is all of it."""
    start, end = 0, new_size
    while end != old_size:
        middle = split(start, end)
        if old_size <= middle:
            yield middle, end, False
            end = middle
        else:
            yield start, middle, True
            start = middle
    if start:
        yield start, end, True


def _check_bounds(index: int, size: int) -> None:
    if not 0 <= index < size <= MAX_INDEX:
        raise MerkleError("leaf out of bounds", expected=f"0 <= index < size <= {MAX_INDEX}", got=(index, size))


def check_length(what: str, expected: int, proof: Sequence[bytes]) -> None:
    """Require the exact length of a proof, before anything is hashed; raises `MerkleError`."""
    if len(proof) != expected:
        raise MerkleError(f"length of the {what}", expected=expected, got=len(proof))


def check_hashes(*hashes: bytes) -> None:
    """Require 32 bytes of every hash; raises `MerkleError`."""
    for item in hashes:
        if len(item) != DIGEST_SIZE:
            raise MerkleError("size of a hash", expected=DIGEST_SIZE, got=len(item))
