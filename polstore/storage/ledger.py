"""The ledger's tables, within one transaction: leaves, full subtrees, heads, and where a signed root was entered.

Append only: a leaf or a node is never overwritten, and a head only by one that says the same under more signatures.
What a leaf's bytes mean is `polstore.ledger`'s part. Leaves are compared with their hash in the tree on every read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.errors import DamagedError, ExistsError, MalformedError, MissingError, UsageError
from polstore.storage import keys
from polstore.storage.tree import StoredTree
from polstore.wire import merkle, note
from polstore.wire.manifest import MAX_LEAF

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from polstore.storage.lookup import Lookup
    from polstore.storage.transaction import Handle

__all__ = ["Entry", "LedgerReader", "LedgerWriter"]


@dataclass(frozen=True)
class Entry:
    """What is appended: the leaf's bytes, and the origin and size of the signed root that it enters."""

    leaf: bytes
    origin: str
    size: int


class LedgerReader:
    """The ledger as one view of a store shows it.

    Every method raises UsageError for numbers that no store can hold, MissingError for what this one does not hold, and
    DamagedError for what it holds damaged.
    """

    def __init__(self, handle: Lookup) -> None:
        self._handle = handle
        self._tree = StoredTree(handle, keys.LEDGER_LEAF, keys.LEDGER_NODE, "the ledger")

    def size(self) -> int:
        """Return how many leaves the ledger has."""
        return self._tree.size()

    def leaf(self, index: int) -> bytes:
        """Return the bytes of a leaf, compared with its hash in the tree."""
        return self._tree.leaf(index)

    def node(self, level: int, index: int) -> bytes:
        """Return the hash over the leaves ``[index << level, (index + 1) << level)``, 32 bytes."""
        return self._tree.node(level, index)

    def sound_node(self, level: int, index: int) -> bytes:
        """Return the same hash, compared with what it is made of."""
        return self._tree.sound_node(level, index)

    def root(self, size: int) -> bytes:
        """Return the root over the first ``size`` leaves, 32 bytes."""
        return self._tree.root(size)

    def nodes(self) -> Iterator[tuple[int, int]]:
        """Yield level and index of every stored node, in order."""
        for key in self._handle.keys(keys.LEDGER_NODE):
            yield key[1], keys.last_number(key)

    def heads(self) -> Iterator[int]:
        """Yield the sizes of which there is a signed head, ascending."""
        for key in self._handle.keys(keys.LEDGER_HEAD):
            yield keys.last_number(key)

    def newest(self) -> int | None:
        """Return the largest size of which there is a signed head, or None."""
        last = self._handle.last(keys.LEDGER_HEAD)
        return None if last is None else keys.last_number(last)

    def head(self, size: int) -> bytes:
        """Return the signed head over the first ``size`` leaves."""
        value = self._handle.get(keys.numbered(keys.LEDGER_HEAD, size))
        if value is None:
            raise MissingError(f"no signed head of the ledger over {size} leaves in store {self._handle.path}")
        return value

    def find(self, origin: str, size: int) -> int | None:
        """Return the index of the leaf that enters the signed root of an origin over ``size`` leaves, or None."""
        value = self._handle.get(keys.ledger_entry_key(origin, size))
        if value is not None and len(value) != keys.NUMBER_SIZE:
            message = f"index of the ledger of store {self._handle.path} is damaged"
            raise DamagedError(message, expected=f"{keys.NUMBER_SIZE} bytes", got=value)
        return None if value is None else int.from_bytes(value, "big")

    def entries(self) -> int:
        """Return how many signed roots the index names."""
        return sum(1 for _ in self._handle.keys(keys.LEDGER_ENTRY))


class LedgerWriter(LedgerReader):
    """The ledger within a transaction of `Store.write`; it reads what it has itself written."""

    def __init__(self, handle: Handle) -> None:
        super().__init__(handle)
        self._handle: Handle = handle

    def append(self, entries: Sequence[Entry]) -> int:
        """Append leaves with the tree nodes that they complete, and return the index of the first.

        Raises:
            UsageError: a leaf of more than `MAX_LEAF` bytes.
            ExistsError: a signed root that was entered already, or that is there twice.
            DamagedError: the store holds something beyond its last leaf.
        """
        for entry in entries:
            if len(entry.leaf) > MAX_LEAF:
                raise UsageError("leaf of the ledger is too long", expected=MAX_LEAF, got=len(entry.leaf))
        first = self.size()
        hashes = merkle.leaf_hashes(entry.leaf for entry in entries)
        named = keys.ledger_entries(first, ((entry.origin, entry.size) for entry in entries))
        if self._handle.put_many(named) != len(named):
            raise ExistsError(f"a signed root is in the ledger of store {self._handle.path} already")
        stored = self._handle.put_many(keys.ledger_leaves(first, (entry.leaf for entry in entries)))
        expected = len(entries)
        for level, start, nodes in merkle.completed_levels(first, hashes, self.node):
            stored += self._handle.put_many(keys.ledger_nodes(level, start, nodes))
            expected += len(nodes)
        if stored != expected:
            raise DamagedError(f"ledger of store {self._handle.path} has leaves or nodes beyond its last leaf")
        return first

    def put_head(self, size: int, signed: bytes) -> None:
        """Store the signed head over the first ``size`` leaves; one that is there may only gain signatures.

        Raises:
            MalformedError: not a note.
            ExistsError: another text, or a signature fewer, than what is there already.
            UsageError: the ledger has fewer leaves.
        """
        given = note.parse(signed)
        if not 0 <= size <= self.size():
            raise UsageError("head of the ledger", expected=f"at most {self.size()} leaves", got=size)
        key = keys.numbered(keys.LEDGER_HEAD, size)
        if self._handle.put(key, signed):
            return
        what = f"signed head of the ledger over {size} leaves in store {self._handle.path}"
        try:
            kept = note.parse(self.head(size))
        except MalformedError as error:
            raise DamagedError(f"{what} is damaged: {error}") from error
        if kept.text != given.text or not set(kept.signatures) <= set(given.signatures):
            raise ExistsError(f"{what}: it may gain signatures only", expected=kept.encode(), got=signed)
        self._handle.put(key, signed, overwrite=True)
