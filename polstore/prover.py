"""Committing a run under a signed root in the ledger, and opening segments of it in a bundle.

Everything here is read from the store and from a key; no torch and no training is needed to prove.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore import ledger
from polstore.carried import Carried
from polstore.errors import (
    DamagedError,
    ExistsError,
    MalformedError,
    MerkleError,
    MissingError,
    SignatureError,
    UsageError,
)
from polstore.files import write_atomic
from polstore.segment_records import SegmentRecords
from polstore.wire import merkle
from polstore.wire.bundle import Bundle, OpenedSegment, Samples
from polstore.wire.checkpoint import Checkpoint, open_root, parse_text, run_origin, sign_root
from polstore.wire.ledger import LedgerLeaf
from polstore.wire.manifest import Manifest
from polstore.wire.multi_proof import multi_proof
from polstore.wire.note import parse as parse_note
from polstore.wire.randomness import sample_salt
from polstore.wire.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from polstore.reader import Run
    from polstore.storage.reader import Reader
    from polstore.storage.store import Store
    from polstore.storage.writer import Writer
    from polstore.wire.keys import SigningKey

__all__ = ["Proof", "commit", "prove", "prove_records"]


def commit(store: Store, run: str, key: SigningKey, *more: SigningKey, now: Callable[[], float] = time.time) -> bytes:
    """Sign the root over all leaves that ``run`` has by now, enter it into the ledger, and return it.

    Root, ledger entry and the ledger's new head are stored in one transaction, so commits at the same time follow each
    other and a crash leaves all or nothing of one. Calling it again without a new segment returns what was signed
    before, and enters it where the store is older than its ledger.

    Args:
        store: a store open for writing.
        run: name of the run.
        key: signs root and head, and cosigns both with the time under the cosignature key derived from it.
        more: further keys of the same name, which sign as well: the old key's successor, during a rotation.
        now: the clock, in seconds since 1970.

    Returns:
        The signed root: a C2SP checkpoint note (specs/signed-root.md).

    Raises:
        MissingError: no such run.
        UsageError: the store's ledger belongs to another key name, keys of different names, or the same one twice.
        ExistsError: this size was signed under another key, or not under all of these.
        DamagedError: what the store holds is not what was signed before; nothing more is signed then.
    """
    names = {signer.name for signer in (key, *more)}
    if len(names) > 1:
        raise UsageError("names of the keys to sign with", expected="one name", got=" and ".join(sorted(names)))
    if len({key, *more}) != 1 + len(more):
        raise UsageError("keys to sign with", expected="each key once", got="one twice")

    def work(transaction: Writer) -> bytes:
        size = transaction.leaf_count(run)
        if size == 0:
            raise MissingError(f"no run {run} in the store")
        ledger.require_owner(transaction, key.name)
        checkpoint = Checkpoint(run_origin(key.name, run), size, transaction.tree_root(run, size))
        timestamp = ledger.signing_time(transaction, (key, *more), int(now()))
        newest = transaction.newest_root(run)
        if newest == size:
            signed = _signed_before(transaction.root(run, size), checkpoint, (key, *more))
        else:
            if newest is not None:
                last = _signed_checkpoint(transaction, run, newest)
                ledger.require_extends(last, checkpoint, transaction.tree(run), f"run {run}")
            signed = sign_root(checkpoint, key, timestamp, *more)
            transaction.put_root(run, size, signed)
        leaves = _not_entered(transaction, run, checkpoint.origin)
        if leaves:
            ledger.enter(transaction, leaves, timestamp, key, *more)
        return signed

    return store.write(work)


def _not_entered(view: Reader, run: str, origin: str) -> list[LedgerLeaf]:
    """Return the leaves of the signed roots under this origin that are not in the ledger, oldest first.

    That is the newest one, as a rule: every commit enters what it signs.
    """
    leaves: list[LedgerLeaf] = []
    size = view.newest_root(run)
    while size is not None and view.ledger.find(origin, size) is None:
        checkpoint = _signed_checkpoint(view, run, size)
        if checkpoint.origin == origin:  # else it was copied, with the run, from another signer's store
            leaves.append(LedgerLeaf.of(checkpoint, _manifest(view, run)))
        size = view.newest_root(run, below=size)
    return leaves[::-1]


def _signed_checkpoint(view: Reader, run: str, size: int) -> Checkpoint:
    """Return what a signed root states, after comparing it with the run's tree; signatures are not checked."""
    what = f"signed root over {size} leaves of run {run}"
    try:
        checkpoint = parse_text(parse_note(view.root(run, size)).text)
    except MalformedError as error:
        raise DamagedError(f"{what} is damaged: {error}") from error
    count = view.leaf_count(run)
    if size > count:
        raise DamagedError(f"run {run} has lost leaves that were signed", expected=f"{size} or more", got=count)
    root = view.tree_root(run, size)
    if (checkpoint.size, checkpoint.root) != (size, root):
        raise DamagedError(f"{what} is not of what the store holds", expected=checkpoint.root, got=root)
    return checkpoint


def _manifest(view: Reader, run: str) -> Manifest:
    try:
        return Manifest.parse(view.leaf(run, 0))
    except MalformedError as error:
        raise DamagedError(f"manifest of run {run} is damaged: {error}") from error


def _signed_before(signed: bytes, checkpoint: Checkpoint, keys: Sequence[SigningKey]) -> bytes:
    """Return a signed root from the store after checking that all ``keys`` have signed just this checkpoint."""
    what = f"{checkpoint.origin}, signed root over {checkpoint.size} leaves"
    try:
        got = open_root(signed, [half for key in keys for half in key.verifier_keys()]).checkpoint
    except MalformedError as error:
        raise DamagedError(f"{what} is damaged: {error}") from error
    except SignatureError as error:
        raise ExistsError(f"{what}: another key has signed it, and a root is signed once: {error}") from error
    if got != checkpoint:
        raise DamagedError(what, expected=checkpoint.root, got=got.root)
    return signed


@dataclass(frozen=True)
class Proof:
    """A bundle ready to be written: its index, and where its blobs come from."""

    bundle: Bundle
    carried: Carried

    def __iter__(self) -> Iterator[bytes]:
        yield self.bundle.head()
        for digest, length in self.bundle.blobs:
            blob = self.carried.blob(digest)
            if len(blob) != length:
                raise DamagedError("blob has changed its length", expected=length, got=len(blob))
            yield blob

    def write(self, path: Path | str) -> None:
        """Write the bundle file; raises `FullError` and leaves nothing behind when there is no room."""
        write_atomic(path, self)


def prove(run: Run, segments: Sequence[int], size: int | None = None, *, audit: bool = False) -> Proof:
    """Open segments of a run under its signed root.

    Args:
        run: the run, from `polstore.open`.
        segments: indices of the segments to open; none is possible for an audit.
        size: leaves under the signed root to prove against; the newest one if None.
        audit: hand over every snapshot, so that all norms can be computed again.

    Raises:
        UsageError: no segments were named.
        MissingError: no such segment under that root, no such signed root, or data that the store no longer has.
        DamagedError: what the store holds is not what was signed.
        FullError: no room for a temporary file, where snapshots are stored anew.
    """
    wanted = sorted(set(segments))
    if not wanted and not audit:
        raise UsageError("no segments to prove", expected="at least one", got=0)
    return _proof(run, wanted, size, audit=audit)


def prove_records(run: Run, size: int | None = None) -> Proof:
    """Show the records of all segments and open none, for a verifier to choose by; raises as `prove` does."""
    return _proof(run, [], size, audit=False)


def _proof(run: Run, wanted: Sequence[int], size: int | None, *, audit: bool) -> Proof:
    size = run.signed_size(size)
    if wanted and (wanted[0] < 0 or wanted[-1] >= size - 1):
        wrong = wanted[0] if wanted[0] < 0 else wanted[-1]
        raise MissingError(
            f"run {run.name} has no such segment under that root", expected=f"0 to {size - 2}", got=wrong
        )
    if size < 2:
        raise MissingError(f"run {run.name} has no segment under that root", expected="at least 2 leaves", got=size)
    leaves, root = _signed_leaves(run, size)
    manifest = Manifest.parse(leaves[0])
    records = SegmentRecords(leaves)
    opened = tuple(_opened(run, index, leaves, root) for index in wanted)
    blobs = {records[index].steps for index in wanted} | {manifest.optimizer.hyperparameters}
    samples: set[int] = set()
    for index in wanted:
        samples |= Steps.parse(run.blob(records[index].steps)).samples()
    states = records.needed_states(range(len(records)) if audit else wanted)
    if manifest.initial.kind != "seed" and manifest.initial.state not in states:
        states = [manifest.initial.state, *states]  # nobody can rebuild it, and a verifier looks at its tensors
    carried = Carried(run, states)
    sizes = {digest: run.blob_size(digest) for digest in blobs} | carried.blobs()
    bundle = Bundle(
        size=size,
        root=root,
        leaves=leaves,
        opened=opened,
        snapshots=tuple(carried.records[digest].encode() for digest in sorted(carried.records)),
        samples=_open_samples(run, manifest, sorted(samples)),
        blobs=tuple(sorted(sizes.items())),
    )
    return Proof(bundle, carried)


def _signed_leaves(run: Run, size: int) -> tuple[tuple[bytes, ...], bytes]:
    """Return the first ``size`` leaves and the root over them, which must be what was signed."""
    leaves, hashes = run.hashed_leaves(size)
    root = merkle.root(hashes)
    signed = run.signed_checkpoint(size)
    if (signed.size, signed.root) != (size, root):
        raise DamagedError(
            f"leaves of run {run.name} are not those that were signed",
            expected=f"{signed.size} leaves, {signed.root.hex()}",
            got=f"{size} leaves, {root.hex()}",
        )
    return leaves, root


def _opened(run: Run, index: int, leaves: tuple[bytes, ...], root: bytes) -> OpenedSegment:
    """Return a segment with its inclusion proof, which is checked: the stored tree may be damaged."""
    leaf, size = index + 1, len(leaves)
    proof = run.inclusion_proof(leaf, size)
    try:
        merkle.verify_inclusion(merkle.leaf_hash(leaves[leaf]), leaf, size, proof, root)
    except MerkleError as error:
        raise DamagedError(f"tree of run {run.name} is damaged: {error}") from error
    return OpenedSegment(index, proof)


def _open_samples(run: Run, manifest: Manifest, indices: list[int]) -> Samples:
    """Return the salts of these samples and one proof that they are in the dataset."""
    if not indices or not manifest.dataset.size:
        return Samples((), ())  # none asked for, or a run that commits to no dataset for a sample to be shown in
    hashes = run.blob(run.row.sample_hashes)
    if len(hashes) != 32 * manifest.dataset.size:
        raise DamagedError("sample hashes", expected=f"{32 * manifest.dataset.size} bytes", got=f"{len(hashes)} bytes")
    if indices[-1] >= manifest.dataset.size:
        raise DamagedError("a step used a sample outside the dataset", expected=manifest.dataset.size, got=indices[-1])
    node = merkle.nodes_of([hashes[start : start + 32] for start in range(0, len(hashes), 32)])
    salts = tuple((index, sample_salt(run.row.salt, index)) for index in indices)
    return Samples(salts, multi_proof(indices, manifest.dataset.size, node))
