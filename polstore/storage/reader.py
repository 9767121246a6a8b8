"""Reading a store: blobs, runs, leaves, tree nodes, snapshots and signed roots, in one consistent view.

Blobs and leaves are hashed on every read. Run metadata, stored snapshots and signed roots are opaque here; whoever
parses them checks them: a snapshot against its state digest, a signed root against its key, the tree against the root.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from polstore.errors import DamagedError, MissingError
from polstore.storage import keys
from polstore.storage.ledger import LedgerReader
from polstore.storage.records import unpack_record
from polstore.storage.tree import StoredTree
from polstore.wire.fields import DIGEST_SIZE, MAX_INDEX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from polstore.storage.lookup import Lookup
    from polstore.wire import merkle

__all__ = ["Reader"]


class Reader:
    """A consistent view of a store, within the ``with`` block of `Store.read`; for one thread at a time.

    A view left open keeps replaced pages from being used again and the map from growing: close it soon.

    Every method raises UsageError for names, digests and numbers that no store can hold, MissingError for what this one
    does not hold, and DamagedError for what it holds damaged.
    """

    def __init__(self, handle: Lookup) -> None:
        self._handle = handle

    @property
    def ledger(self) -> LedgerReader:
        """The ledger, in this same view."""
        return LedgerReader(self._handle)

    def get_blob(self, digest: bytes) -> bytes:
        """Return the blob whose SHA-256 is ``digest``, hashed again."""
        data = self._get(keys.digest_key(keys.BLOB, digest), f"blob {digest.hex()}")
        got = hashlib.sha256(data).digest()
        if got != digest:
            raise DamagedError(f"blob {digest.hex()} of store {self._handle.path} is damaged", expected=digest, got=got)
        return data

    def has_blob(self, digest: bytes) -> bool:
        """Return whether there is such a blob, damaged or not."""
        return self._handle.size(keys.digest_key(keys.BLOB, digest)) is not None

    def blob_size(self, digest: bytes) -> int:
        """Return the length of a blob in bytes, without reading it."""
        size = self._handle.size(keys.digest_key(keys.BLOB, digest))
        if size is None:
            raise self._missing(f"blob {digest.hex()}")
        return size

    def blob_digests(self) -> Iterator[bytes]:
        """Yield the digests of all blobs in ascending order."""
        for key in self._handle.keys(keys.BLOB):
            yield key[1:]

    def runs(self) -> list[str]:
        """Return the names of all runs, sorted; a damaged key that is no run's must not hide the others."""
        names = (key[1:].decode("ascii", "replace") for key in self._handle.keys(keys.RUN))
        return [name for name in names if keys.is_run_name(name)]

    def run(self, name: str) -> bytes:
        """Return a run's metadata as it was put."""
        return self._get(keys.run_key(name), f"run {name}")

    def leaf_count(self, run: str) -> int:
        """Return how many leaves a run's tree has."""
        last = self._handle.last(keys.run_prefix(keys.LEAF, run))
        if last is not None:
            index = self._number(last)
            if self._handle.size(keys.node_key(run, 0, index)) is None:  # a flipped bit can make it any number
                raise DamagedError(f"leaf {index} of run {run} of store {self._handle.path} has no hash in the tree")
            return index + 1
        self._require_run(run)
        return 0

    def leaf(self, run: str, index: int) -> bytes:
        """Return the bytes of a leaf, compared with its hash in the tree."""
        return self._tree(run).leaf(index)

    def leaves(self, run: str) -> Iterator[bytes]:
        """Yield the bytes of all leaves of a run in order, each compared with its hash in the tree."""
        tree = self._tree(run)
        for index in range(self.leaf_count(run)):
            yield tree.leaf(index)

    def hashed_leaves(self, run: str, size: int) -> tuple[list[bytes], list[bytes]]:
        """Return the first ``size`` leaves of a run and their hashes, compared with those in the tree."""
        return self._tree(run).leaves(size)

    def node(self, run: str, level: int, index: int) -> bytes:
        """Return the hash over the leaves ``[index << level, (index + 1) << level)`` of a run, 32 bytes."""
        return self._tree(run).node(level, index)

    def tree(self, run: str) -> merkle.Node:
        """Return a run's tree, of sound nodes, for proofs by `polstore.wire.merkle`; usable as long as this view."""
        return self._tree(run).sound_node

    def tree_root(self, run: str, size: int) -> bytes:
        """Return the root over the first ``size`` leaves of a run, 32 bytes."""
        self._require_run(run)
        return self._tree(run).root(size)

    def snapshot_steps(self, run: str) -> list[int]:
        """Return the steps at which a run has snapshots, ascending."""
        return self._numbers(keys.SNAPSHOT, run)

    def newest_snapshot(self, run: str) -> int | None:
        """Return the step of a run's newest snapshot, or None."""
        self._require_run(run)
        last = self._handle.last(keys.run_prefix(keys.SNAPSHOT, run))
        return None if last is None else self._number(last)

    def snapshot_at(self, run: str, step: int) -> bytes:
        """Return the state digest of a run's snapshot at a step, 32 bytes."""
        return self._get(keys.number_key(keys.SNAPSHOT, run, step), f"snapshot at step {step} of run {run}")

    def stored_snapshot(self, state_digest: bytes) -> bytes:
        """Return the record of how a snapshot is stored, as it was put."""
        key = keys.digest_key(keys.STORED_SNAPSHOT, state_digest)
        value = self._get(key, f"snapshot {state_digest.hex()}")
        return unpack_record(value, f"record of snapshot {state_digest.hex()} of store {self._handle.path}")

    def stored_snapshot_size(self, state_digest: bytes) -> int:
        """Return how many bytes the record of how a snapshot is stored takes in the store, without reading it."""
        size = self._handle.size(keys.digest_key(keys.STORED_SNAPSHOT, state_digest))
        if size is None:
            raise self._missing(f"snapshot {state_digest.hex()}")
        return size

    def stored_snapshot_digests(self) -> Iterator[bytes]:
        """Yield the state digests of all stored snapshots in ascending order."""
        for key in self._handle.keys(keys.STORED_SNAPSHOT):
            yield key[1:]

    def has_snapshot(self, state_digest: bytes) -> bool:
        """Return whether there is a record of how this snapshot is stored."""
        return self._handle.size(keys.digest_key(keys.STORED_SNAPSHOT, state_digest)) is not None

    def roots(self, run: str) -> list[int]:
        """Return the tree sizes of a run's signed roots, ascending."""
        return self._numbers(keys.ROOT, run)

    def newest_root(self, run: str, below: int = MAX_INDEX) -> int | None:
        """Return the tree size of a run's newest signed root over fewer than ``below`` leaves, or None."""
        self._require_run(run)
        end = keys.number_key(keys.ROOT, run, below)
        last = self._handle.last_before(end, keys.run_prefix(keys.ROOT, run))
        return None if last is None else keys.last_number(last)

    def has_root(self, run: str, size: int) -> bool:
        """Return whether there is a signed root over the first ``size`` leaves of a run, damaged or not."""
        return self._handle.size(keys.number_key(keys.ROOT, run, size)) is not None

    def root(self, run: str, size: int) -> bytes:
        """Return the text of the signed root over the first ``size`` leaves of a run."""
        what = f"signed root over {size} leaves of run {run}"
        value = self._get(keys.number_key(keys.ROOT, run, size), what)
        text, expected = value[:-DIGEST_SIZE], value[-DIGEST_SIZE:]
        got = hashlib.sha256(text).digest()
        if got != expected:
            raise DamagedError(f"{what} of store {self._handle.path} is damaged", expected=expected, got=got)
        return text

    def _get(self, key: bytes, what: str) -> bytes:
        value = self._handle.get(key)
        if value is None:
            raise self._missing(what)
        return value

    def _tree(self, run: str) -> StoredTree:
        return StoredTree(self._handle, keys.run_prefix(keys.LEAF, run), keys.run_prefix(keys.NODE, run), f"run {run}")

    def _numbers(self, table: bytes, run: str) -> list[int]:
        self._require_run(run)
        return [self._number(key) for key in self._handle.keys(keys.run_prefix(table, run))]

    def _number(self, key: bytes) -> int:
        number = keys.last_number(key)
        if number > MAX_INDEX:
            raise DamagedError(
                f"key {key.hex()} of store {self._handle.path} is damaged", expected="a number", got=number
            )
        return number

    def _require_run(self, run: str) -> None:
        if self._handle.size(keys.run_key(run)) is None:
            raise self._missing(f"run {run}")

    def _missing(self, what: str) -> MissingError:
        return MissingError(f"no {what} in store {self._handle.path}")
