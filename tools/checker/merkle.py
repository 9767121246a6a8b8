"""RFC 6962 trees from specs/merkle.md: recursive, as the RFC writes them."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from tools.checker.faults import Case, require, same

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check", "inclusion", "leaf_hash", "root"]

MAX_SIZE = 2**48


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf."""
    return sha256(b"\0" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


def _split(size: int) -> int:
    power = 1
    while power * 2 < size:
        power *= 2
    return power


def root(leaves: list[bytes]) -> bytes:
    """Return MTH of RFC 6962 over leaf hashes."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256(b"").digest()
    k = _split(len(leaves))
    return _node(root(leaves[:k]), root(leaves[k:]))


def _refuse_unless(condition: object, message: str) -> None:
    require(condition, "MerkleError", message)


def inclusion(leaf: bytes, index: int, size: int, proof: list[bytes], expected: bytes) -> None:
    """Refuse a proof that does not lead from the leaf hash to the root."""
    _refuse_unless(0 <= index < size <= MAX_SIZE, "index or size")
    _refuse_unless(len(proof) == _depth(index, size), "length of the proof")
    _refuse_unless(all(len(item) == 32 for item in (leaf, expected, *proof)), "size of a hash")
    _refuse_unless(_climb(leaf, index, size, proof) == expected, "another root")


def _depth(index: int, size: int) -> int:
    if size == 1:
        return 0
    k = _split(size)
    return 1 + (_depth(index, k) if index < k else _depth(index - k, size - k))


def _climb(leaf: bytes, index: int, size: int, proof: list[bytes]) -> bytes:
    if size == 1:
        return leaf
    k = _split(size)
    if index < k:
        return _node(_climb(leaf, index, k, proof[:-1]), proof[-1])
    return _node(proof[-1], _climb(leaf, index - k, size - k, proof[:-1]))


def consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: list[bytes]) -> None:
    """Refuse a proof that does not lead to both roots."""
    _refuse_unless(1 <= old <= new <= MAX_SIZE, "sizes")
    _refuse_unless(len(proof) == _consistency_length(old, new, whole=True), "length of the proof")
    _refuse_unless(all(len(item) == 32 for item in (old_root, new_root, *proof)), "size of a hash")
    _refuse_unless(_both(old, new, proof, old_root, whole=True) == (old_root, new_root), "another root")


def _consistency_length(old: int, new: int, *, whole: bool) -> int:
    """Return the length of SUBPROOF(old, D[new], whole)."""
    if old == new:
        return 0 if whole else 1
    k = _split(new)
    if old <= k:
        return 1 + _consistency_length(old, k, whole=whole)
    return 1 + _consistency_length(old - k, new - k, whole=False)


def _both(old: int, new: int, proof: list[bytes], old_root: bytes, *, whole: bool) -> tuple[bytes, bytes]:
    """Return the hash of the old tree's part of a subtree, and of the subtree."""
    if old == new:
        known = old_root if whole else proof[0]
        return known, known
    k = _split(new)
    if old <= k:
        left_old, left_new = _both(old, k, proof[:-1], old_root, whole=whole)
        return left_old, _node(left_new, proof[-1])
    right_old, right_new = _both(old - k, new - k, proof[:-1], old_root, whole=False)
    return _node(proof[-1], right_old), _node(proof[-1], right_new)


def multi(leaves: list[tuple[int, bytes]], size: int, proof: list[bytes], expected: bytes) -> None:
    """Refuse a proof for many leaves that does not lead to the root."""
    indices = [index for index, _ in leaves]
    _refuse_unless(1 <= size <= MAX_SIZE, "size")
    _refuse_unless(leaves, "no leaf")
    _refuse_unless(indices == sorted(set(indices)) and indices[0] >= 0 and indices[-1] < size, "indices")
    _refuse_unless(len(proof) == _closed(indices, 0, size), "length of the proof")
    _refuse_unless(all(len(item) == 32 for item in (expected, *proof, *dict(leaves).values())), "size of a hash")
    _refuse_unless(_fold(leaves, 0, size, iter(proof)) == expected, "another root")


def _closed(indices: list[int], start: int, size: int) -> int:
    inside = [index for index in indices if start <= index < start + size]
    if not inside:
        return 1
    if size == 1:
        return 0
    k = _split(size)
    return _closed(inside, start, k) + _closed(inside, start + k, size - k)


def _fold(leaves: list[tuple[int, bytes]], start: int, size: int, proof: Iterator[bytes]) -> bytes:
    inside = [(index, leaf) for index, leaf in leaves if start <= index < start + size]
    if not inside:
        return next(proof)
    if size == 1:
        return inside[0][1]
    k = _split(size)
    left = _fold(inside, start, k, proof)
    return _node(left, _fold(inside, start + k, size - k, proof))


def check(case: Case) -> None:
    """Check one case."""
    proof = [bytes.fromhex(item) for item in case.get("proof", [])]
    if case["kind"] == "root":
        leaves = [leaf_hash(bytes.fromhex(item)) for item in case["leaves"]]
        same("root", root(leaves).hex(), case["root"])
    elif case["kind"] == "inclusion":
        leaf, expected = bytes.fromhex(case["leaf"]), bytes.fromhex(case["root"])
        inclusion(leaf, case["index"], case["size"], proof, expected)
    elif case["kind"] == "consistency":
        old_root, new_root = bytes.fromhex(case["old_root"]), bytes.fromhex(case["new_root"])
        consistency(case["old_size"], old_root, case["new_size"], new_root, proof)
    else:
        same("kind", case["kind"], "multi")
        opened = [(index, bytes.fromhex(leaf)) for index, leaf in case["leaves"]]
        multi(opened, case["size"], proof, bytes.fromhex(case["root"]))
