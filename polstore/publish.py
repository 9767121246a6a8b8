"""Publishing the runs of a store, and its ledger, as a static archive: files in a directory for any web server.

Whoever holds a run's signed root can then check any of its segments without the trainer's help. Files that are named
after what they hold are written once; each run's signed root is replaced last, so a reader who comes in the middle, or
after a crash, finds all that the root he sees needs. Publishing opens the salts of all samples that the runs used: who
has a guess at a sample can test it from then on. Implements the writing part of specs/archive-files.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from polstore.carried import alone
from polstore.codec.frames import StoredSnapshot
from polstore.codec.stored import MAX_RECORD
from polstore.errors import DamagedError, MalformedError, MissingError
from polstore.files import file_error
from polstore.static_files import StaticFiles
from polstore.tile_files import export_log, export_tree, exported_size
from polstore.wire import merkle
from polstore.wire.archive_files import (
    DATASET,
    SIZE,
    blob_name,
    encode_salts,
    encode_size,
    run_folder,
    salts_name,
    snapshot_name,
)
from polstore.wire.randomness import sample_salt
from polstore.wire.segment import SegmentRecord
from polstore.wire.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from polstore.ledger import Ledger
    from polstore.reader import Archive, Run
    from polstore.wire.checkpoint import Checkpoint
    from polstore.wire.merkle import Node

__all__ = ["Published", "export_ledger", "publish"]


@dataclass(frozen=True)
class Published:
    """What publishing one run did.

    Attributes:
        run: its name.
        segments: segments under the signed root that is published now.
        added: how many of them are new in the archive.
        files: files that were written.
        bytes: bytes in them.
        size: bytes that the run takes in the archive, with what it shares with others.
    """

    run: str
    segments: int
    added: int
    files: int
    bytes: int
    size: int

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return dict(self.__dict__)


def publish(
    archive: Archive, directory: Path | str, runs: Sequence[str], progress: Callable[[str, int, int], None]
) -> list[Published]:
    """Bring the runs of an archive up to date in a directory of static files, each at its newest signed root.

    Args:
        archive: the store, open for reading.
        directory: made if missing; one publisher at a time.
        runs: names of the runs.
        progress: told (what is being published, segments done, segments in all).

    Raises:
        MissingError: no such run, one without a signed root, or data that the store no longer has.
        ExistsError: the directory holds another run of that name, or a newer state of this one.
        DamagedError: the store holds something other than what was signed, or the directory a damaged file.
        FullError: no room left on the device.
    """
    files = StaticFiles(directory)
    logs = [_RunLog(archive.run(name)) for name in runs]  # nothing is opened up if one of them has no signed root
    return [_Publication(files, log).publish(progress) for log in logs]


def export_ledger(ledger: Ledger, directory: Path | str) -> Checkpoint:
    """Bring the tiles of a ledger and its newest head up to date in a directory, and return what the head states.

    Raises:
        MissingError: nothing was committed yet.
        ExistsError, DamagedError, FullError: as `polstore.tile_files.export_log`.
    """
    return export_log(_LedgerLog(ledger), StaticFiles(directory))


class _LedgerLog:
    """A ledger, as `polstore.tile_files` wants a log."""

    def __init__(self, ledger: Ledger) -> None:
        self.head = ledger.head
        self.node = ledger.node
        self._leaf = ledger.leaf

    def leaf(self, index: int) -> bytes:
        return self._leaf(index).encode()


class _RunLog:
    """A run's tree at its newest signed root, as `polstore.tile_files` wants a log."""

    def __init__(self, run: Run) -> None:
        self.run = run
        sizes = run.signed_sizes()
        if not sizes:
            raise MissingError(f"run {run.name} has no signed root yet; run polstore commit")
        self.sizes = sizes

    @cached_property
    def leaves(self) -> tuple[bytes, ...]:
        return self.run.leaves(self.sizes[-1])

    @cached_property
    def node(self) -> Node:
        return merkle.nodes_of([merkle.leaf_hash(leaf) for leaf in self.leaves])

    def head(self) -> bytes:
        return self.run.signed_root(self.sizes[-1])

    def leaf(self, index: int) -> bytes:
        return self.leaves[index]


class _Publication:
    """One run on its way into the directory."""

    def __init__(self, files: StaticFiles, log: _RunLog) -> None:
        self.shared = StaticFiles(files.directory)
        self.own = files.below(run_folder(log.run.name))
        self.dataset = self.own.below(DATASET)
        self.log, self.run = log, log.run
        self.needed: dict[str, int] = {}  # shared files -> bytes
        self.made: dict[bytes, bytes] = {}  # frames of a snapshot that is stored anew, which the store need not have

    def publish(self, progress: Callable[[str, int, int], None]) -> Published:
        done = exported_size(self.log, self.own)  # before anything is written: it may be another run's folder
        _require_signed(self.log)
        manifest = self.run.manifest
        records = self._records()
        self._blob(manifest.optimizer.hyperparameters)
        self._snapshot(manifest.initial.state)
        if not done:
            self._dataset()
        for count, record in enumerate(records, 1):
            self._blob(record.steps)
            self._snapshot(record.end_state)
            if record.index + 1 >= done and manifest.dataset.size:
                self._salts(record)
            progress(f"publishing {self.run.name}", count, len(records))
        export_log(self.log, self.own, self.log.sizes)
        size = sum(self.needed.values()) + self._own_bytes()
        self.own.replace(SIZE, encode_size(size))
        return Published(
            run=self.run.name,
            segments=len(records),
            added=len(records) - max(done - 1, 0),
            files=sum(files.written for files in (self.shared, self.own, self.dataset)),
            bytes=sum(files.written_bytes for files in (self.shared, self.own, self.dataset)),
            size=size,
        )

    def _records(self) -> list[SegmentRecord]:
        try:
            return [SegmentRecord.parse(leaf) for leaf in self.log.leaves[1:]]
        except MalformedError as error:
            raise DamagedError(f"a segment of run {self.run.name} is damaged: {error}") from error

    def _blob(self, digest: bytes) -> None:
        name = blob_name(digest)
        if name not in self.needed:
            made = self.made.get(digest)
            size = self.run.blob_size(digest) if made is None else len(made)
            self.shared.add(name, size, lambda: self.run.blob(digest) if made is None else made)
            self.needed[name] = size

    def _snapshot(self, digest: bytes) -> None:
        """Write a stored snapshot after its frames and after all that it is stored against.

        One that is there already was written so, and stays as it is though the store may hold it otherwise by now.
        """
        missing: list[StoredSnapshot] = []
        wanted: bytes | None = digest
        while wanted is not None and snapshot_name(wanted) not in self.needed:
            data = self.shared.read(snapshot_name(wanted), MAX_RECORD)
            if data is None:
                stored, made = alone(self.run, self.run.stored_snapshots(wanted)[0])
                self.made |= made
                missing.append(stored)
            else:
                stored = self._published(wanted, data)
                self.needed |= {blob_name(f.digest): f.size for group in stored.groups for f in group.frames}
                self.needed[snapshot_name(wanted)] = len(data)
            wanted = stored.base
        for stored in reversed(missing):
            for frame in stored.blobs:
                self._blob(frame)
            name, data = snapshot_name(stored.state_digest), stored.encode()
            self.shared.replace(name, data)
            self.needed[name] = len(data)

    def _published(self, digest: bytes, data: bytes) -> StoredSnapshot:
        place = self.shared.directory / snapshot_name(digest)
        try:
            stored = StoredSnapshot.parse(data)
        except MalformedError as error:
            raise DamagedError(f"{place} is damaged; remove it to have it written again: {error}") from error
        if stored.state_digest != digest:
            raise DamagedError(f"{place} is another snapshot", expected=digest, got=stored.state_digest)
        return stored

    def _salts(self, record: SegmentRecord) -> None:
        dataset, row = self.run.manifest.dataset, self.run.row
        try:
            used = sorted(Steps.parse(self.run.blob(record.steps)).samples())
        except MalformedError as error:
            raise DamagedError(f"steps of segment {record.index} are damaged: {error}") from error
        if used and used[-1] >= dataset.size:
            raise DamagedError("a step used a sample outside the dataset", expected=dataset.size, got=used[-1])
        salts = [(index, sample_salt(row.salt, index)) for index in used]
        self.own.replace(salts_name(record.index), encode_salts(salts))

    def _dataset(self) -> None:
        """Write the hash tiles of the dataset's tree, which hide what they are hashes of."""
        dataset = self.run.manifest.dataset
        if not dataset.size:
            return
        data = self.run.blob(self.run.row.sample_hashes)
        hashes = [data[start : start + 32] for start in range(0, len(data), 32)]
        if len(data) != 32 * dataset.size or merkle.root(hashes) != dataset.root:
            raise DamagedError(f"sample hashes of run {self.run.name} are not those of its dataset")
        export_tree(self.dataset, 0, dataset.size, merkle.nodes_of(hashes))

    def _own_bytes(self) -> int:
        """Return the bytes of the run's own files, but for the one that says how many there are."""
        try:
            found = [path for path in self.own.directory.rglob("[!.]*") if path.is_file()]
            return sum(path.stat().st_size for path in found if path != self.own.directory / SIZE)
        except OSError as error:
            raise file_error(error, f"{self.own.directory} cannot be read") from error


def _require_signed(log: _RunLog) -> None:
    """Require that the leaves are those that were signed, before the salts of any sample are opened."""
    size, what = log.sizes[-1], f"leaves of run {log.run.name} are not those that were signed"
    signed, root = log.run.signed_checkpoint(size), merkle.root_from_nodes(size, log.node)
    if (signed.size, signed.root) != (size, root):
        raise DamagedError(what, expected=signed.root, got=root)
