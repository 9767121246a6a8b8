"""Writing to a store, within one transaction: all of it counts, or nothing.

What was committed to is never overwritten or deleted: a snapshot's digest at a step, a leaf, a signed root. Only a
run's own metadata and the way a snapshot is stored may change. Blobs and stored snapshots can be deleted, and nothing
here knows whether anything needs them: that is for `polstore.archive` to find out first, under the recording lock.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from polstore.errors import DamagedError, ExistsError, UsageError
from polstore.storage import keys
from polstore.storage.ledger import LedgerWriter
from polstore.storage.reader import Reader
from polstore.storage.records import pack_record
from polstore.wire import merkle
from polstore.wire.manifest import MAX_LEAF

if TYPE_CHECKING:
    from polstore.storage.transaction import Handle

__all__ = ["Writer"]


class Writer(Reader):
    """A transaction of `Store.write`; it reads what it has itself written.

    Every method raises UsageError for names, digests and numbers that no store can hold. A run must be put before
    anything else of it (MissingError).
    """

    def __init__(self, handle: Handle) -> None:
        super().__init__(handle)
        self._handle: Handle = handle

    @property
    def ledger(self) -> LedgerWriter:
        """The ledger, within this same transaction."""
        return LedgerWriter(self._handle)

    def put_blob(self, data: bytes, digest: bytes | None = None) -> bytes:
        """Store a blob and return its digest, 32 bytes; a damaged copy of it is replaced.

        A caller that has just computed the SHA-256 of these very bytes hands it over as ``digest``. It is taken at its
        word, since every read compares the two.
        """
        digest = hashlib.sha256(data).digest() if digest is None else digest
        key = keys.digest_key(keys.BLOB, digest)
        if not self._handle.put(key, data) and self._handle.get(key) != data:
            self._handle.put(key, data, overwrite=True)
        return digest

    def put_run(self, name: str, data: bytes) -> None:
        """Store a run's metadata, in place of what was there."""
        self._handle.put(keys.run_key(name), data, overwrite=True)

    def append_leaf(self, run: str, leaf: bytes) -> int:
        """Append a leaf of at most `MAX_LEAF` bytes to a run's tree, with the tree nodes that it completes.

        Returns:
            the leaf's index, counted from 0.
        """
        if len(leaf) > MAX_LEAF:
            raise UsageError("leaf is too long", expected=f"at most {MAX_LEAF} bytes", got=f"{len(leaf)} bytes")
        self._require_run(run)
        index = self.leaf_count(run)
        nodes = merkle.completed_nodes(index, merkle.leaf_hash(leaf), self.tree(run))
        self._handle.put(keys.number_key(keys.LEAF, run, index), leaf)
        for level, position, node in nodes:
            if not self._handle.put(keys.node_key(run, level, position), node):
                raise DamagedError(f"run {run} of store {self._handle.path} has tree nodes beyond its last leaf")
        return index

    def put_stored_snapshot(self, state_digest: bytes, record: bytes) -> None:
        """Store the record of how a snapshot is stored, in place of what was there (it may be recompressed)."""
        key = keys.digest_key(keys.STORED_SNAPSHOT, state_digest)
        self._handle.put(key, pack_record(record), overwrite=True)

    def delete_blob(self, digest: bytes) -> bool:
        """Delete a blob and return whether it was there; the caller has made sure that nothing needs it."""
        return self._handle.delete(keys.digest_key(keys.BLOB, digest))

    def delete_stored_snapshot(self, state_digest: bytes) -> bool:
        """Delete the record of how a snapshot is stored and return whether it was there; its blobs stay."""
        return self._handle.delete(keys.digest_key(keys.STORED_SNAPSHOT, state_digest))

    def put_snapshot(self, run: str, step: int, state_digest: bytes) -> None:
        """Note that a run's snapshot at a step has this state digest.

        Raises:
            ExistsError: it has another one already.
        """
        keys.digest_key(keys.STORED_SNAPSHOT, state_digest)  # is a digest
        key = keys.number_key(keys.SNAPSHOT, run, step)
        self._put_once(run, key, state_digest, f"snapshot at step {step} of run {run}")

    def put_root(self, run: str, size: int, text: bytes) -> None:
        """Store the signed root over the first ``size`` leaves of a run.

        Raises:
            ExistsError: another text is there already.
            UsageError: the run has fewer leaves.
        """
        count = self.leaf_count(run)
        key = keys.number_key(keys.ROOT, run, size)
        if size > count:
            raise UsageError(f"signed root of run {run}", expected=f"a tree of at most {count} leaves", got=size)
        value = text + hashlib.sha256(text).digest()  # without a key, nothing else here vouches for the signatures
        self._put_once(run, key, value, f"signed root over {size} leaves of run {run}")

    def _put_once(self, run: str, key: bytes, value: bytes, what: str) -> None:
        self._require_run(run)
        if not self._handle.put(key, value) and (got := self._handle.get(key)) != value:
            raise ExistsError(f"{what} exists already in store {self._handle.path}", expected=value, got=got)
