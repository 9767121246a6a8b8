"""The ledger of a store: the append-only log of the signed roots of all its runs.

    with polstore.open("runs") as archive:
        ledger = archive.ledger
        print(ledger.size, ledger.head().decode())
        proof = ledger.inclusion_proof(3)

There is one ledger per store. Its origin is the bare name of the key that made the first commit. Proofs are read from
stored tree nodes, O(log n) of them however large the store is. Nothing is signed that does not extend what was signed
before. Implements specs/ledger.md; the leaf is `polstore.wire.ledger`, the tables are `polstore.storage.ledger`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polstore.errors import (
    DamagedError,
    MalformedError,
    MerkleError,
    MissingError,
    SignatureError,
    UsageError,
)
from polstore.storage.ledger import Entry
from polstore.wire import merkle, note
from polstore.wire.checkpoint import Checkpoint, parse_text, sign_root
from polstore.wire.ledger import LedgerLeaf
from polstore.wire.tlog_proof import TlogProof

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.storage.reader import Reader
    from polstore.storage.store import Store
    from polstore.storage.writer import Writer
    from polstore.wire.keys import SigningKey

__all__ = [
    "Ledger",
    "consistency",
    "enter",
    "head",
    "head_checkpoint",
    "require_extends",
    "require_owner",
    "signing_time",
]


class Ledger:
    """The ledger of an open store; it grows while runs are committed. Made by `Archive.ledger`, which is for reading.

    Signatures are not checked here: that needs a key and is polverify's part.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def size(self) -> int:
        """The number of leaves: one for each signed root that was entered."""
        with self._store.read() as view:
            return view.ledger.size()

    def head(self, size: int | None = None) -> bytes:
        """Return the signed head over ``size`` leaves, a C2SP checkpoint note; the newest one if None.

        Raises:
            MissingError: nothing was committed yet, or there is no head of that size.
        """
        with self._store.read() as view:
            return head(view, size)

    def leaf(self, index: int) -> LedgerLeaf:
        """Return leaf ``index``, compared with its hash in the tree.

        Raises:
            MissingError: there is no such leaf.
            DamagedError: it is damaged.
        """
        with self._store.read() as view:
            return _leaf(view, index)

    def node(self, level: int, index: int) -> bytes:
        """Return the hash over the leaves ``[index << level, (index + 1) << level)``, 32 bytes.

        Raises:
            MissingError: the ledger has fewer leaves.
            DamagedError: the stored node is damaged.
        """
        with self._store.read() as view:
            return view.ledger.node(level, index)

    def put_head(self, signed: bytes) -> None:
        """Put a head in the place of the one with the same text: it may have more signatures, and none less.

        Raises:
            MalformedError: not a checkpoint note.
            ExistsError: another text, or a signature fewer.
            UsageError: the store is open for reading only, or there is no such head.
        """
        size = parse_text(note.parse(signed).text).size
        self._store.write(lambda transaction: transaction.ledger.put_head(size, signed))

    def find(self, origin: str, size: int) -> int | None:
        """Return the index of the leaf for the signed root of ``origin`` over ``size`` leaves, or None."""
        with self._store.read() as view:
            return view.ledger.find(origin, size)

    def inclusion_proof(self, index: int, size: int | None = None) -> tuple[bytes, ...]:
        """Return the proof that leaf ``index`` is among the first ``size`` leaves, hashes of 32 bytes, sibling first.

        Args:
            index: number of the leaf.
            size: leaves of the ledger to prove against; all if None.

        Raises:
            MissingError: the ledger has fewer leaves.
            UsageError: not ``0 <= index < size``.
            DamagedError: a stored node is damaged.
        """
        with self._store.read() as view:
            size = _checked_size(view, size)
            return merkle.inclusion_proof(index, size, view.ledger.sound_node)

    def consistency_proof(self, old: int, new: int | None = None) -> tuple[bytes, ...]:
        """Return the proof that the first ``old`` leaves are a prefix of the first ``new`` (all if None).

        Raises:
            MissingError: the ledger has fewer leaves.
            UsageError: not ``0 <= old <= new``.
            DamagedError: a stored node is damaged.
        """
        with self._store.read() as view:
            return consistency(view, old, _checked_size(view, new))

    def proof_file(self, index: int, size: int | None = None) -> TlogProof:
        """Return the proof of leaf ``index`` together with the signed head over ``size`` leaves (C2SP tlog-proof).

        It is checked first: the stored tree may be damaged. The leaf is added as extra data where it has extensions,
        since a verifier can build it without them only.

        Raises:
            MissingError: no such leaf, or no signed head of that size.
            UsageError: the leaf is not among the first ``size``.
            DamagedError: leaf, tree and head do not belong together.
        """
        with self._store.read() as view:
            leaf, signed = _leaf(view, index), head(view, size)
            checkpoint = head_checkpoint(view, size)
            proof = merkle.inclusion_proof(index, checkpoint.size, view.ledger.node)
        try:
            merkle.verify_inclusion(leaf.leaf_hash(), index, checkpoint.size, proof, checkpoint.root)
        except MerkleError as error:
            raise DamagedError(f"tree of the ledger is damaged: {error}") from error
        return TlogProof(index, proof, signed, leaf.encode() if leaf.extensions else None)


def head(view: Reader, size: int | None = None) -> bytes:
    """Return the signed head over ``size`` leaves, or the newest one; raises `MissingError`."""
    if size is None:
        size = view.ledger.newest()
        if size is None:
            raise MissingError("the ledger has no head yet; run polstore commit")
    return view.ledger.head(size)


def head_checkpoint(view: Reader, size: int | None = None) -> Checkpoint:
    """Return what the head over ``size`` leaves states, or the newest one; signatures are not checked.

    Raises:
        MissingError: there is no such head.
        DamagedError: it is damaged, or of another size.
    """
    try:
        checkpoint = parse_text(note.parse(head(view, size)).text)
    except MalformedError as error:
        raise DamagedError(f"head of the ledger is damaged: {error}") from error
    expected = view.ledger.newest() if size is None else size
    if checkpoint.size != expected:
        raise DamagedError("head of the ledger has another size", expected=expected, got=checkpoint.size)
    return checkpoint


def consistency(view: Reader, old: int, new: int) -> tuple[bytes, ...]:
    """Return the proof that the ledger's first ``old`` leaves are a prefix of its first ``new``; empty for old 0.

    Raises:
        MissingError: the ledger has fewer than ``new`` leaves.
        UsageError: not ``0 <= old <= new``.
        DamagedError: a stored node is damaged.
    """
    return merkle.consistency_proof(old, _checked_size(view, new), view.ledger.sound_node)


def require_owner(view: Reader, name: str) -> None:
    """Require that the ledger is empty or belongs to this key name; raises `UsageError`."""
    if view.ledger.newest() is not None:
        origin = head_checkpoint(view).origin
        if origin != name:
            raise UsageError("the ledger of this store is another signer's", expected=f"a key of {origin}", got=name)


def signing_time(view: Reader, signers: Sequence[SigningKey], now: int) -> int:
    """Return the time to sign at: now, but never before the newest head, as far as one of these keys has signed that.

    A clock may be set back between two commits, and verifiers refuse a log that grows while its time runs backwards.

    Raises:
        DamagedError: the head is no note, or carries a false signature of one of these keys.
    """
    if view.ledger.newest() is None:
        return now
    try:
        parsed = note.parse(head(view))
        names = {(item.name, item.key_id) for item in parsed.signatures}
        own = (half for key in signers for half in key.verifier_keys())
        known = [item for item in own if (item.name, item.key_id) in names]
        verified = note.verify(parsed, known) if known else ()  # an older key of the same name may have signed
    except (MalformedError, SignatureError) as error:
        raise DamagedError(f"head of the ledger is damaged: {error}") from error
    return max([now, *(item.timestamp for item in verified if item.timestamp is not None)])


def require_extends(old: Checkpoint, new: Checkpoint, node: merkle.Node, what: str) -> None:
    """Require that a tree extends what was signed of it before; raises `DamagedError`.

    Args:
        old: what was signed last.
        new: what is to be signed.
        node: the stored tree of ``new``.
        what: whose tree this is, for the message.
    """
    if old.size == 0:
        return  # nothing is bound by an empty tree
    try:
        if old.size > new.size:
            raise MerkleError("leaves are lost", expected=f"{old.size} or more", got=new.size)
        proof = merkle.consistency_proof(old.size, new.size, node)
        merkle.verify_consistency(old.size, old.root, new.size, new.root, proof)
    except MerkleError as error:
        raise DamagedError(f"{what} does not extend what was signed of it: {error}") from error


def enter(transaction: Writer, leaves: Sequence[LedgerLeaf], timestamp: int, key: SigningKey, *more: SigningKey) -> int:
    """Append leaves, sign the new head with all keys, store it, and return the index of the first leaf.

    Raises:
        UsageError: the ledger belongs to another key name.
        ExistsError: a signed root that is in the ledger already.
        DamagedError: the stored tree is not what was signed before; nothing is signed then.
    """
    ledger = transaction.ledger
    require_owner(transaction, key.name)
    before = None if ledger.newest() is None else head_checkpoint(transaction)
    if (0 if before is None else before.size) != ledger.size():
        got = "no head" if before is None else f"a head over {before.size}"
        raise DamagedError("head of the ledger", expected=f"one over all {ledger.size()} leaves", got=got)
    first = ledger.append([Entry(leaf.encode(), leaf.origin, leaf.size) for leaf in leaves])
    size = first + len(leaves)
    after = Checkpoint(key.name, size, ledger.root(size))
    if before is not None:
        require_extends(before, after, ledger.sound_node, "the ledger")
    ledger.put_head(size, sign_root(after, key, timestamp, *more))
    return first


def _leaf(view: Reader, index: int) -> LedgerLeaf:
    try:
        return LedgerLeaf.parse(view.ledger.leaf(index))
    except MalformedError as error:
        raise DamagedError(f"leaf {index} of the ledger is damaged: {error}") from error


def _checked_size(view: Reader, size: int | None) -> int:
    count = view.ledger.size()
    if size is None:
        return count
    if size > count:
        raise MissingError("the ledger has fewer leaves", expected=f"at most {count}", got=size)
    return size
