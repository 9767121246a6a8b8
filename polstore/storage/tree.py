"""One append-only Merkle tree as a view of a store shows it: a run's, or the ledger's.

Leaves are compared with their hash in the tree on every read; nodes are compared with what they are made of where asked
for as sound. What a leaf's bytes mean is not known here, and nothing is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polstore.errors import DamagedError, MissingError
from polstore.storage import keys
from polstore.wire import merkle
from polstore.wire.fields import DIGEST_SIZE

if TYPE_CHECKING:
    from polstore.storage.lookup import Lookup

__all__ = ["StoredTree"]


class StoredTree:
    """The leaves of a tree and the hashes of its full subtrees.

    Every method raises UsageError for numbers that no store can hold, MissingError for what this one does not hold, and
    DamagedError for what it holds damaged.

    Args:
        handle: the view.
        leaves: what the keys of the leaves begin with.
        nodes: what the keys of the nodes begin with.
        what: whose tree this is, for messages.
    """

    def __init__(self, handle: Lookup, leaves: bytes, nodes: bytes, what: str) -> None:
        self._handle = handle
        self._leaves = leaves
        self._nodes = nodes
        self._what = what

    def size(self) -> int:
        """Return how many leaves there are."""
        last = self._handle.last(self._leaves)
        return 0 if last is None else keys.last_number(last) + 1

    def leaf(self, index: int) -> bytes:
        """Return the bytes of a leaf, compared with its hash in the tree."""
        data = self._handle.get(keys.numbered(self._leaves, index))
        if data is None:
            raise self._missing(f"leaf {index}")
        expected, got = self.node(0, index), merkle.leaf_hash(data)
        if got != expected:
            message = f"leaf {index} of {self._what} of store {self._handle.path} is damaged"
            raise DamagedError(message, expected=expected, got=got)
        return data

    def leaves(self, size: int) -> tuple[list[bytes], list[bytes]]:
        """Return the first ``size`` leaves and their hashes, 32 bytes each, compared with those in the tree."""
        found = self._handle.get_many(keys.numbered_all(self._leaves, size))
        hashes = merkle.leaf_hashes(found)
        if len(found) != size or hashes != self._handle.get_many(keys.numbered_all(self._nodes + b"\0", size)):
            found = [self.leaf(index) for index in range(size)]  # one by one, which names what is wrong
            hashes = merkle.leaf_hashes(found)
        return found, hashes

    def node(self, level: int, index: int) -> bytes:
        """Return the hash over the leaves ``[index << level, (index + 1) << level)``, 32 bytes."""
        value = self._handle.get(keys.subtree(self._nodes, level, index))
        if value is None:
            if (index + 1) << level > self.size():
                raise self._missing(f"full subtree {index} at level {level}")
            value = b""
        if len(value) != DIGEST_SIZE:
            message = f"tree node {index} at level {level} of {self._what} of store {self._handle.path} is damaged"
            raise DamagedError(message, expected=f"{DIGEST_SIZE} bytes", got=value)
        return value

    def sound_node(self, level: int, index: int) -> bytes:
        """Return the same hash, compared with its two halves or its leaf: proofs made of it lead to the root."""
        expected = self.node(level, index)
        if level == 0:
            self.leaf(index)  # compared there
            return expected
        got = merkle.node_hash(self.node(level - 1, 2 * index), self.node(level - 1, 2 * index + 1))
        if got != expected:
            message = f"tree node {index} at level {level} of {self._what} of store {self._handle.path} is damaged"
            raise DamagedError(message, expected=expected, got=got)
        return expected

    def root(self, size: int) -> bytes:
        """Return the root over the first ``size`` leaves, 32 bytes."""
        count = self.size()
        if not 0 <= size <= count:
            raise self._missing(f"tree of {size} leaves, but of {count},")
        return merkle.root_from_nodes(size, self.node)

    def _missing(self, what: str) -> MissingError:
        return MissingError(f"no {what} of {self._what} in store {self._handle.path}")
