"""Read-only access to the runs of a store, every byte checked against its hash.

    with polstore.open("runs") as archive:
        for name in archive.runs():
            run = archive.run(name)
            print(name, run.manifest.recipe, len(run.segments))
            weights = run.arrays(run.snapshots[-1])

Imports no torch. Writes nothing but what `Run.export` is asked to. What it returns was checked against hashes, not
against a signature: that is polverify's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, overload

from safetensors import SafetensorError, TensorSpec, serialize

from polstore.arrays import to_numpy
from polstore.codec import frames
from polstore.codec.chain import Chain
from polstore.errors import CallerError, DamagedError, MalformedError, MerkleError, MissingError
from polstore.files import write_atomic
from polstore.ledger import Ledger
from polstore.run_row import RunRow
from polstore.storage.store import open_store
from polstore.wire import merkle
from polstore.wire.checkpoint import Checkpoint, parse_text
from polstore.wire.manifest import Manifest
from polstore.wire.note import parse as parse_note
from polstore.wire.segment import SegmentRecord
from polstore.wire.steps import Steps
from polstore.wire.tlog_proof import TlogProof

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    import torch

    from polstore.codec.snapshot import Array, Snapshot, Tensor
    from polstore.storage.reader import Reader
    from polstore.storage.store import Store
    from polstore.wire.state import TensorEntry

__all__ = ["Archive", "Run", "open_archive"]


def open_archive(path: Path | str) -> Archive:
    """Open the store at ``path`` for reading.

    Raises:
        MissingError: there is no store.
        CallerError: it cannot be opened.
    """
    return Archive(open_store(path, readonly=True))


class Archive:
    """A store, seen as its runs. A context manager; closing it ends access."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    @property
    def ledger(self) -> Ledger:
        """The append-only log of the signed roots of all runs."""
        return Ledger(self._store)

    def runs(self) -> list[str]:
        """Return the names of all runs, sorted."""
        with self._store.read() as view:
            return view.runs()

    def run(self, name: str) -> Run:
        """Return the run called ``name``; raises `MissingError`."""
        return Run(self._store, name)


class Run:
    """One run of a store. What it shows is looked up when it is asked for, and grows while the run is recorded."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self.name = name
        self._row = self._read_row()
        self._chain = Chain(self._record, self.blob, kept=1)  # which is the base of most snapshots

    @property
    def complete(self) -> bool:
        """Whether the recording ended by itself; False while it goes on and after a crash."""
        return self._read_row().complete

    @property
    def row(self) -> RunRow:
        """The private row that the store keeps of the run, as it was when this object was made."""
        return self._row

    @cached_property
    def manifest(self) -> Manifest:
        """What was declared before training."""
        (leaf,) = self.leaves(1)
        with self._own(f"manifest of run {self.name}"):
            return Manifest.parse(leaf)

    @property
    def snapshots(self) -> list[int]:
        """The steps at which there is a snapshot, ascending."""
        with self._store.read() as view:
            return view.snapshot_steps(self.name)

    @property
    def newest_snapshot(self) -> int | None:
        """The step of the newest snapshot; None where the store has lost all of them."""
        with self._store.read() as view:
            return view.newest_snapshot(self.name)

    @property
    def segments(self) -> Segments:
        """The segment records, in order."""
        return Segments(self)

    def segment(self, index: int) -> SegmentRecord:
        """Return segment ``index``; raises `MissingError`."""
        with self._store.read() as view:
            self._require_segment(index, view.leaf_count(self.name))
            leaf = view.leaf(self.name, index + 1)
        with self._own(f"segment {index} of run {self.name}"):
            return SegmentRecord.parse(leaf)

    def steps(self, index: int) -> Steps:
        """Return the step records of segment ``index``."""
        data = self.blob(self.segment(index).steps)
        with self._own(f"steps of segment {index} of run {self.name}"):
            return Steps.parse(data)

    def state(self, step: int) -> Snapshot:
        """Return the snapshot at ``step``, checked against its state digest.

        Which digest belongs to a step is the store's own note; `polstore fsck`, a copy and a proof compare it with the
        segment records, and this does not, so that a state can be read where its record is damaged.
        The base of a snapshot is decoded anew unless somebody holds it, so in a loop over all steps keep the last one.

        Raises:
            MissingError: there is no snapshot at that step.
            DamagedError: what is stored does not decode to it.
        """
        return self.snapshot(self._digest_at(step))

    def snapshot(self, digest: bytes) -> Snapshot:
        """Return the snapshot with this state digest; raises as `state` does."""
        with self._own(f"snapshot {digest.hex()[:16]} of run {self.name}"):
            return self._chain.get(digest)

    def tensors(self, step: int) -> tuple[TensorEntry, ...]:
        """Return names, dtypes, shapes and digests of the tensors at ``step``, in the order of the names.

        Nothing but the record is read. Raises as `state` does.
        """
        digest = self._digest_at(step)
        with self._own(f"description of snapshot {digest.hex()[:16]} of run {self.name}"):
            stored = next(self._chain.records(digest))
        return tuple(row.entry for row in stored.tensors)

    def tensor(self, step: int, name: str) -> Tensor:
        """Return one tensor at ``step``, checked against its entry in the snapshot.

        Only the frames that hold some of it are read, here and in the snapshots that this one is stored against.

        Raises:
            MissingError: there is no snapshot at that step, or it has no such tensor.
            DamagedError: what is stored does not decode to it.
        """
        digest = self._digest_at(step)
        with self._own(f"tensor {name} of snapshot {digest.hex()[:16]} of run {self.name}"):
            return self._chain.tensor(digest, name)

    def arrays(self, step: int) -> dict[str, Array]:
        """Return all tensors at ``step`` by name, as read-only arrays of numpy in their shapes.

        bfloat16 and float8, which numpy does not know, come as unsigned integers that hold the bits. Raises as `state`
        does.
        """
        return {tensor.name: to_numpy(tensor) for tensor in self.state(step).tensors}

    def array(self, step: int, name: str) -> Array:
        """Return one tensor at ``step`` as `arrays` does, decoding no other; raises as `tensor` does."""
        return to_numpy(self.tensor(step, name))

    def torch_tensors(self, step: int) -> dict[str, torch.Tensor]:
        """Return all tensors at ``step`` by name, as new torch tensors on the CPU, which is all here that needs torch.

        Raises as `state` does, and `TrainingError` for a dtype that this torch does not have.
        """
        from polstore.codec.live.arrays import to_torch

        return {tensor.name: to_torch(tensor) for tensor in self.state(step).tensors}

    def stored_snapshots(self, digest: bytes) -> list[frames.StoredSnapshot]:
        """Return the description of a stored snapshot, followed by those of its bases, nearest first."""
        with self._own(f"description of snapshot {digest.hex()[:16]} of run {self.name}"):
            return list(self._chain.records(digest))

    def blob(self, digest: bytes) -> bytes:
        """Return a blob, hashed again, to any thread; raises `MissingError` or `DamagedError`."""
        with self._store.read() as view:
            return view.get_blob(digest)

    def blob_size(self, digest: bytes) -> int:
        """Return a blob's length in bytes without reading it; raises `MissingError`."""
        with self._store.read() as view:
            return view.blob_size(digest)

    def size(self) -> int:
        """Return the number of leaves: the manifest and one for each segment."""
        with self._store.read() as view:
            return view.leaf_count(self.name)

    def leaves(self, size: int) -> tuple[bytes, ...]:
        """Return the first ``size`` leaves."""
        return self.hashed_leaves(size)[0]

    def hashed_leaves(self, size: int) -> tuple[tuple[bytes, ...], list[bytes]]:
        """Return the first ``size`` leaves and their hashes, 32 bytes each, computed anew."""
        with self._store.read() as view:
            leaves, hashes = view.hashed_leaves(self.name, size)
        return tuple(leaves), hashes

    def tree_root(self, size: int) -> bytes:
        """Return the root of the run's tree when it had ``size`` leaves."""
        with self._store.read() as view:
            return view.tree_root(self.name, size)

    def inclusion_proof(self, leaf: int, size: int) -> tuple[bytes, ...]:
        """Return the proof that leaf ``leaf`` is in the tree of ``size`` leaves; raises `DamagedError`."""
        with self._store.read() as view:
            return merkle.inclusion_proof(leaf, size, view.tree(self.name))

    def proof_file(self, index: int, size: int | None = None) -> TlogProof:
        """Return the proof that segment ``index`` is under a signed root: C2SP tlog-proof, checked first.

        It takes a number of reads that grows with the logarithm of ``size``, and shows nothing of the other segments;
        for a verdict a verifier wants a bundle, which has the records of all. The segment record, leaf ``index + 1``,
        is its extra data.

        Args:
            index: number of the segment.
            size: leaves under the signed root to prove against; the newest one if None.

        Raises:
            MissingError: no such segment under that root, or no such signed root.
            DamagedError: leaf, tree and signed root do not belong together.
        """
        with self._store.read() as view:
            size = self._signed_size(view, size)
            self._require_segment(index, size)
            leaf, signed = view.leaf(self.name, index + 1), view.root(self.name, size)
            proof = merkle.inclusion_proof(index + 1, size, view.tree(self.name))
        checkpoint = self._checkpoint(signed, size)
        try:
            merkle.verify_inclusion(merkle.leaf_hash(leaf), index + 1, checkpoint.size, proof, checkpoint.root)
        except MerkleError as error:
            raise DamagedError(f"tree of run {self.name} is damaged: {error}") from error
        return TlogProof(index + 1, proof, signed, leaf)

    def signed_root(self, size: int | None = None) -> bytes:
        """Return the signed root over ``size`` leaves, or the newest one; raises `MissingError`."""
        with self._store.read() as view:
            return view.root(self.name, self._signed_size(view, size))

    def signed_checkpoint(self, size: int) -> Checkpoint:
        """Return what the signed root over ``size`` leaves states, signatures unchecked; raises as `signed_root`."""
        return self._checkpoint(self.signed_root(size), size)

    def signed_size(self, size: int | None = None) -> int:
        """Return ``size`` if there is a signed root over so many leaves, or the newest one's; raises `MissingError`."""
        with self._store.read() as view:
            return self._signed_size(view, size)

    @property
    def newest_signed_size(self) -> int | None:
        """The tree size of the newest signed root, or None."""
        with self._store.read() as view:
            return view.newest_root(self.name)

    def signed_sizes(self) -> list[int]:
        """Return the tree sizes for which there is a signed root, ascending."""
        with self._store.read() as view:
            return view.roots(self.name)

    def export(self, step: int, path: Path | str) -> None:
        """Write the model's parameters and buffers at ``step`` as a safetensors file, under their own names.

        Raises:
            MissingError: there is no snapshot at that step, or no directory to write to.
            DamagedError: what is stored does not decode to it.
            CallerError: a tensor of a dtype that safetensors does not have, or a file that may not be written.
            FullError: no room left on the device.
        """
        state = self.state(step)  # its arrays must outlive the specs, which hold bare addresses
        tensors = {}
        try:
            for tensor in state.tensors:
                kind, _, name = tensor.name.partition("/")
                if kind in ("parameter", "buffer"):
                    address, length = tensor.data.ctypes.data, tensor.data.nbytes
                    tensors[name] = TensorSpec(
                        dtype=tensor.dtype, shape=list(tensor.shape), data_ptr=address, data_len=length
                    )
            data = serialize(tensors, {"run": self.name, "step": str(step), "format": "pt"})
        except SafetensorError as error:
            raise CallerError(f"run {self.name} at step {step} fits no safetensors file: {error}") from error
        write_atomic(path, data)

    def _checkpoint(self, signed: bytes, size: int) -> Checkpoint:
        with self._own(f"signed root over {size} leaves of run {self.name}"):
            return parse_text(parse_note(signed).text)

    def _signed_size(self, view: Reader, size: int | None) -> int:
        newest = view.newest_root(self.name)
        if newest is None:
            raise MissingError(f"run {self.name} has no signed root yet; run polstore commit")
        if size is None:
            return newest
        if not view.has_root(self.name, size):
            sizes = view.roots(self.name)
            raise MissingError(f"run {self.name} has no signed root of that size", expected=sizes, got=size)
        return size

    def _require_segment(self, index: int, size: int) -> None:
        if not 0 <= index < size - 1:
            wanted = f"0 to {size - 2}" if size > 1 else "none"
            raise MissingError(f"run {self.name} has no segment {index}", expected=wanted, got=index)

    def _digest_at(self, step: int) -> bytes:
        with self._store.read() as view:
            return view.snapshot_at(self.name, step)

    def _record(self, digest: bytes) -> frames.StoredSnapshot:
        with self._store.read() as view:
            return frames.StoredSnapshot.parse(view.stored_snapshot(digest))

    def _read_row(self) -> RunRow:
        with self._store.read() as view:
            row = view.run(self.name)
        with self._own(f"row of run {self.name}"):
            return RunRow.parse(row)

    @contextmanager
    def _own(self, what: str) -> Iterator[None]:
        """Parse the store's own bytes: where they are malformed, the store is damaged and no proof at fault."""
        try:
            yield
        except MalformedError as error:
            raise DamagedError(f"{what} is damaged: {error}") from error


class Segments(Sequence[SegmentRecord]):
    """The segment records of a run, read one by one."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __len__(self) -> int:
        return max(self._run.size() - 1, 0)

    @overload
    def __getitem__(self, index: int) -> SegmentRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[SegmentRecord]: ...

    def __getitem__(self, index: int | slice) -> SegmentRecord | list[SegmentRecord]:
        count = len(self)
        if isinstance(index, slice):
            return [self._run.segment(number) for number in range(count)[index]]
        if not -count <= index < count:
            raise IndexError(index)
        return self._run.segment(index % count)
