"""Checking the ledger of a store: every leaf, tree node, index entry and head, and the signed roots it enters.

Changes nothing and hashes everything anew, from the leaves' bytes up, in memory that does not grow with the ledger.
Signatures are not checked, only their shape: that needs a key, see `polstore.fsck`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from polstore.errors import DamagedError, MalformedError, MissingError
from polstore.ledger import head_checkpoint
from polstore.wire import merkle, note
from polstore.wire.checkpoint import parse_text
from polstore.wire.ledger import LedgerLeaf

if TYPE_CHECKING:
    from collections.abc import Callable

    from polstore.storage.reader import Reader

__all__ = ["Audit", "audit"]

SIGNATURE_SIZES = (64, 72)  # bytes of an Ed25519 signature, and of one with its timestamp
STEP = 1000  # leaves between two reports of progress


@dataclass
class Audit:
    """What was found.

    Attributes:
        leaves: leaves of the ledger.
        damages: what is damaged, how it showed, and what cannot be proven because of it.
        not_entered: signed roots that the ledger does not have: they were copied from another store, or signed before
            there was a ledger. No damage: `polstore commit` enters those of its own signer.
    """

    leaves: int = 0
    damages: list[tuple[str, str, str]] = field(default_factory=list)
    not_entered: list[str] = field(default_factory=list)


def audit(view: Reader, progress: Callable[[str, int, int], None]) -> Audit:
    """Check the whole ledger in one view of a store.

    Args:
        view: the view.
        progress: told (what is being checked, done, in all).
    """
    found = Audit(leaves=view.ledger.size())
    origin = _check_heads(view, found)
    runs = set(view.runs())
    pending: list[bytes] = []  # roots of the full subtrees that wait for their right neighbour, largest first
    for index in range(found.leaves):
        _check_leaf(view, index, origin, runs, found)
        _check_nodes(view, index, pending, found)
        if (index + 1) % STEP == 0 or index + 1 == found.leaves:
            progress("ledger", index + 1, found.leaves)
    beyond = sum((index + 1) << level > found.leaves for level, index in view.ledger.nodes())
    if beyond:
        found.damages.append(("ledger, tree", f"{beyond} nodes beyond its last leaf", "all that is committed next"))
    entries = view.ledger.entries()
    if entries != found.leaves:
        error = f"expected {found.leaves} signed roots, got {entries}"
        found.damages.append(("ledger, index", error, "finding signed roots in the ledger"))
    _find_not_entered(view, runs, found)
    return found


def _check_heads(view: Reader, found: Audit) -> str | None:
    """Check every head against the stored tree; return the origin that all of them should have."""
    origin: str | None = None
    sizes = list(view.ledger.heads())
    for size in reversed(sizes):
        what = f"head of the ledger over {size} leaves"
        try:
            got = head_checkpoint(view, size)
            origin = got.origin if origin is None else origin
            if got.origin != origin:
                raise DamagedError("origin", expected=origin, got=got.origin)
            _check_signatures(view.ledger.head(size), got.origin)
            if got.size > found.leaves:
                raise DamagedError("leaves that were signed are lost", expected=got.size, got=found.leaves)
            root = view.ledger.root(got.size)
            if root != got.root:
                raise DamagedError("root", expected=got.root, got=root)
        except (DamagedError, MissingError) as error:
            found.damages.append((what, str(error), "that head"))
    if found.leaves and found.leaves not in sizes:
        error_text = f"no head over all {found.leaves} leaves"
        found.damages.append(("ledger", error_text, "the newest entries, and all that is committed next"))
    return origin


def _check_signatures(signed: bytes, origin: str) -> None:
    own = [item for item in note.parse(signed).signatures if item.name == origin]
    sizes = [len(item.blob) for item in own]
    if SIGNATURE_SIZES[0] not in sizes or not set(sizes) <= set(SIGNATURE_SIZES):
        raise DamagedError("signatures of the ledger's key", expected="64 and 72 bytes", got=sizes)


def _check_leaf(view: Reader, index: int, origin: str | None, runs: set[str], found: Audit) -> None:
    what = f"leaf {index} of the ledger"
    try:
        leaf = LedgerLeaf.parse(view.ledger.leaf(index))
        at = view.ledger.find(leaf.origin, leaf.size)
        if at != index:
            raise DamagedError("its place in the index", expected=index, got=at)
        prefix = f"{origin}/"
        if leaf.origin.startswith(prefix):
            _check_signed(view, leaf, leaf.origin.removeprefix(prefix), runs)
    except (DamagedError, MissingError, MalformedError) as error:
        found.damages.append((what, str(error), "the signed root that it enters"))


def _check_signed(view: Reader, leaf: LedgerLeaf, run: str, runs: set[str]) -> None:
    """Check that the store still has the signed root that its ledger says it had."""
    if run not in runs:
        raise DamagedError(f"run {run} is in the ledger and no longer in the store")
    signed = parse_text(note.parse(view.root(run, leaf.size)).text)
    if (signed.origin, signed.size, signed.root) != (leaf.origin, leaf.size, leaf.root):
        raise DamagedError(f"signed root over {leaf.size} leaves of run {run}", expected=leaf.root, got=signed.root)


def _check_nodes(view: Reader, index: int, pending: list[bytes], found: Audit) -> None:
    """Compare the stored nodes that leaf ``index`` completes, but its own hash, with computed ones."""
    try:
        carry = view.ledger.node(0, index)  # `_check_leaf` has compared it with the leaf
    except (DamagedError, MissingError) as error:
        found.damages.append((f"node {index} of level 0 of the ledger", str(error), "its inclusion proofs"))
        carry = bytes(32)
    level = 0
    while index & 1:
        carry = merkle.node_hash(pending.pop(), carry)
        level, index = level + 1, index >> 1
        try:
            got = view.ledger.node(level, index)
            if got != carry:
                raise DamagedError("its hash", expected=carry, got=got)
        except (DamagedError, MissingError) as error:
            found.damages.append((f"node {index} of level {level} of the ledger", str(error), "its inclusion proofs"))
    pending.append(carry)


def _find_not_entered(view: Reader, runs: set[str], found: Audit) -> None:
    for run in sorted(runs):
        for size in view.roots(run):
            try:
                origin = parse_text(note.parse(view.root(run, size)).text).origin
                if view.ledger.find(origin, size) is None:
                    found.not_entered.append(f"{origin}, {size} leaves")
            except (MalformedError, DamagedError):
                continue  # the check of the run, or of the leaf, names it
