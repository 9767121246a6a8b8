"""One RFC 6962 proof for many leaves: the samples of a dataset, the tensors of a snapshot.

The proof holds the roots of the maximal subtrees without an opened leaf, depth first from left to right, so opening
m of n leaves costs about m * log2(n / m) hashes. Implements specs/merkle.md. Does no I/O and stores nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING

from polstore.errors import MerkleError, UsageError
from polstore.wire.fields import MAX_INDEX
from polstore.wire.merkle import check_hashes, check_length, node_hash, range_root, split

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from polstore.wire.merkle import Node

__all__ = ["multi_proof", "verify_multi_proof"]


def multi_proof(indices: Sequence[int], size: int, node: Node) -> tuple[bytes, ...]:
    """Return one proof for many leaves: the maximal subtrees without an opened leaf, depth first from left to right.

    Raises:
        UsageError: no index, not strictly ascending, or not below ``size``.
    """
    fault = _fault_of(indices, size)
    if fault is not None:
        raise UsageError(fault)
    return tuple(range_root(start, end, node) for what, start, end in _walk(indices, size) if what == "closed")


def verify_multi_proof(leaves: Sequence[tuple[int, bytes]], size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that every (index, leaf hash) of ``leaves`` lies under ``root``, a tree of ``size`` leaves.

    Raises:
        MerkleError: no leaf, indices not strictly ascending or out of bounds, a wrong length, or another root.
    """
    indices = [index for index, _ in leaves]
    fault = _fault_of(indices, size)
    if fault is not None:
        raise MerkleError(fault)
    check_length("multi-proof", sum(what == "closed" for what, _, _ in _walk(indices, size)), proof)
    check_hashes(root, *proof, *(leaf for _, leaf in leaves))
    sources = {"closed": iter(proof), "open": (leaf for _, leaf in leaves)}
    stack: list[bytes] = []  # hashes that wait for their right neighbour; at most 49
    for what, _, _ in _walk(indices, size):
        if what == "join":
            right = stack.pop()
            stack.append(node_hash(stack.pop(), right))
        else:
            stack.append(next(sources[what]))
    if stack[0] != root:
        raise MerkleError("multi-proof leads to another root", expected=root, got=stack[0])


def _walk(indices: Sequence[int], size: int) -> Iterator[tuple[str, int, int]]:
    """Yield the ranges of a multi-proof in post-order: open leaves, closed subtrees, and joins of the last two."""
    pending = [("range", 0, size, 0, len(indices))]
    while pending:
        what, start, end, low, high = pending.pop()
        if what == "join":
            yield what, start, end
        elif low == high:
            yield "closed", start, end
        elif end - start == 1:
            yield "open", start, end
        else:
            middle = split(start, end)
            cut = bisect_left(indices, middle, low, high)
            pending.append(("join", start, end, low, high))
            pending.append(("range", middle, end, cut, high))
            pending.append(("range", start, middle, low, cut))


def _fault_of(indices: Sequence[int], size: int) -> str | None:
    """Say what is wrong with the opened indices, if anything."""
    if not 1 <= size <= MAX_INDEX:
        return f"a multi-proof needs a size from 1 to {MAX_INDEX}, got {size}"
    if not indices:
        return "a multi-proof needs at least one leaf"
    if any(left >= right for left, right in pairwise(indices)):
        return "the leaves of a multi-proof are not in strictly ascending order"
    if indices[0] < 0 or indices[-1] >= size:
        return f"leaves of a multi-proof out of bounds: expected 0 to {size - 1}, got {indices[0]} to {indices[-1]}"
    return None
