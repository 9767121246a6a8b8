"""Checking a run against a static archive: only what the opened segments need is fetched, and put into a bundle.

Nothing here is believed or judged: the bundle that comes out is verified as one that a prover sent. What can be held
against a hash is held against it at once, so that a server that sends rubbish is not listened to for long. Implements
the reading part of specs/archive-files.md; where the bytes come from is `polverify.fetch`.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from polstore.codec.chain import MAX_CHAIN
from polstore.codec.frames import StoredSnapshot
from polstore.errors import DataError, MalformedError, MerkleError, MissingError, UsageError
from polstore.files import write_atomic
from polstore.wire import merkle
from polstore.wire.archive_files import (
    DATASET,
    MAX_SIZE_FILE,
    SIZE,
    blob_name,
    decode_salts,
    decode_size,
    longest_salts,
    run_folder,
    salts_name,
    snapshot_name,
)
from polstore.wire.bundle import (
    MAX_INDEX_BYTES,
    MAX_LEAVES,
    MAX_STORED_SNAPSHOT,
    Bundle,
    OpenedSegment,
    Samples,
)
from polstore.wire.checkpoint import MAX_SIZE, open_root
from polstore.wire.fields import DIGEST_SIZE
from polstore.wire.manifest import Manifest
from polstore.wire.multi_proof import multi_proof, verify_multi_proof
from polstore.wire.policy import log_keys
from polstore.wire.segment import SegmentRecord
from polstore.wire.steps import MAX_HYPERPARAMETERS, MAX_STEPS_BLOB, Steps
from polstore.wire.tiles import (
    ENTRIES,
    MAX_ENTRY,
    WIDTH,
    Tile,
    decode_entries,
    decode_hashes,
    node_from_tiles,
    tile_of,
)
from polverify.fetch import DEFAULT_MAX_BYTES, get_all, open_source
from polverify.verify import Request, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from polstore.wire.checkpoint import Checkpoint
    from polverify.fetch import Source
    from polverify.verdict import Verdict

__all__ = ["verify_archive"]

TILES_KEPT = 1024  # hash tiles of the dataset in memory, 8 KiB each


def verify_archive(
    request: Request, segments: Sequence[int] | None = None, max_bytes: int = DEFAULT_MAX_BYTES
) -> Verdict:
    """Check segments of a run in a static archive and return the verdict.

    Its claim says how many bytes were fetched, and of how many by the archive's own account, if it gives one.

    Args:
        request: as for `verify`, with the address or directory of the archive in place of the bundle.
        segments: which segments to open; those of the challenge if None.
        max_bytes: to fetch at most.

    Raises:
        UsageError: neither a challenge nor segments, or both.
        CallerError: as `verify`; a file of the archive that cannot be had; more to fetch than allowed.
    """
    if (request.challenge is None) == (segments is None):
        raise UsageError("what to open", expected="a challenge or segments", got="both" if segments else "neither")
    source = open_source(str(request.bundle), max_bytes)
    try:
        with tempfile.TemporaryDirectory(prefix="polverify-") as folder:
            opening = _Opening(source, request, segments, Path(folder) / "bundle")
            verdict = verify(replace(request, bundle=opening.bundle_file))
        claim = {"bytes_fetched": source.fetched, "bytes_in_archive": opening.bytes_in_archive}
        power = None if verdict.power is None else replace(verdict.power, bytes_moved=source.fetched)
        return replace(verdict, claim=verdict.claim | claim, power=power)
    finally:
        source.close()


class _Opening:
    """Segments of one run on their way into a bundle."""

    def __init__(self, source: Source, request: Request, segments: Sequence[int] | None, path: Path) -> None:
        self._source = source
        self._request = request
        self._segments = segments
        self._path = path
        self._index_bytes = 0  # of leaves and records so far
        self.bytes_in_archive: int | None = None

    def bundle_file(self) -> Path:
        """Fetch what the segments need, write the bundle and return its path; the work of check 0.

        Raises:
            ProofError: the root is not signed, the challenge not for it, or what the archive holds contradicts a hash.
            CallerError: a file cannot be had, or there is no room for the bundle.
        """
        logs = log_keys(self._request.time.policy)
        root = open_root(self._request.signed_root, self._request.keys, any_of=logs)
        head = root.checkpoint
        wanted = self._wanted(head)
        self._folder = run_folder(head.origin.removeprefix(root.keys[0].name + "/"))
        self.bytes_in_archive = self._claimed_size()
        leaves = self._leaves(head)
        manifest = Manifest.parse(leaves[0])
        records = [SegmentRecord.parse(leaf) for leaf in leaves[1:]]
        opened = [records[index] for index in wanted]
        own = {manifest.optimizer.hyperparameters: MAX_HYPERPARAMETERS}
        own |= {record.steps: MAX_STEPS_BLOB for record in opened}
        blobs = dict(zip(own, self._blobs(own, "fetching step records"), strict=True))
        samples = self._samples(manifest, {record.index: blobs[record.steps] for record in opened})
        states = _needed_states(records, opened)
        if manifest.initial.kind != "seed":
            states.add(manifest.initial.state)  # nobody can rebuild it; check 5 looks at its tensors
        stored = self._snapshots(states)
        frames = {f.digest: f.size for each, _ in stored.values() for group in each.groups for f in group.frames}
        node = merkle.nodes_of([merkle.leaf_hash(leaf) for leaf in leaves])
        sizes = frames | {digest: len(data) for digest, data in blobs.items()}
        bundle = Bundle(
            size=head.size,
            root=head.root,
            leaves=leaves,
            opened=tuple(OpenedSegment(index, merkle.inclusion_proof(index + 1, head.size, node)) for index in wanted),
            snapshots=tuple(stored[digest][1] for digest in sorted(stored)),
            samples=samples,
            blobs=tuple(sorted(sizes.items())),
        )
        write_atomic(self._path, self._pieces(bundle, blobs))
        return self._path

    def _wanted(self, head: Checkpoint) -> tuple[int, ...]:
        if not 2 <= head.size <= MAX_LEAVES:
            raise MalformedError("leaves under the signed root", expected=f"2 to {MAX_LEAVES}", got=head.size)
        if self._request.challenge is not None:
            self._request.challenge.require(head.origin, head.size, head.root)
            return self._request.challenge.segments
        wanted = tuple(sorted(set(self._segments or ())))
        if not wanted or wanted[0] < 0 or wanted[-1] >= head.size - 1:
            raise UsageError("segments to open", expected=f"some of 0 to {head.size - 2}", got=wanted)
        return wanted

    def _claimed_size(self) -> int | None:
        """Return how many bytes the archive says that the run takes: nothing depends on it."""
        try:
            return decode_size(self._source.get(f"{self._folder}/{SIZE}", MAX_SIZE_FILE))
        except (MissingError, MalformedError):
            return None

    def _leaves(self, head: Checkpoint) -> tuple[bytes, ...]:
        """Return all leaves, which must hash to the signed root."""
        leaves: list[bytes] = []
        for index in range(-(-head.size // WIDTH)):
            leaves += self._tile("", tile_of(ENTRIES, index, head.size), WIDTH * (2 + MAX_ENTRY), decode_entries)
            self._count_index(sum(map(len, leaves[index * WIDTH :])))
            self._request.progress("fetching segment records", len(leaves), head.size)
        got = merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])
        if got != head.root:
            raise MerkleError("leaves in the archive do not hash to the signed root", expected=head.root, got=got)
        return tuple(leaves)

    def _tile(
        self, below: str, tile: Tile, limit: int, decode: Callable[[Tile, bytes], tuple[bytes, ...]]
    ) -> tuple[bytes, ...]:
        """Return what a tile holds; where the archive has outgrown a partial one, from the tile that it became."""
        try:
            return decode(tile, self._source.get(f"{self._folder}/{below}{tile.path()}", limit))
        except MissingError:
            if tile == tile.full:
                raise
            return decode(tile.full, self._source.get(f"{self._folder}/{below}{tile.full.path()}", limit))[: tile.width]

    def _blobs(self, limits: dict[bytes, int], what: str) -> Iterator[bytes]:
        """Yield blobs in the order of ``limits``, each of which must hash to its digest."""
        names = [(blob_name(digest), limit) for digest, limit in limits.items()]
        for done, (digest, data) in enumerate(zip(limits, get_all(self._source, names), strict=True), 1):
            got = hashlib.sha256(data).digest()
            if got != digest:
                raise MalformedError("blob in the archive is another one", expected=digest, got=got)
            self._request.progress(what, done, len(names))
            yield data

    def _samples(self, manifest: Manifest, steps: dict[int, bytes]) -> Samples:
        """Return the salts of the samples used, and one proof for them made from the dataset's tiles."""
        dataset = manifest.dataset
        if not dataset.size:
            return Samples((), ())
        if dataset.size > MAX_SIZE:
            raise DataError("size of the dataset", expected=f"at most {MAX_SIZE}", got=dataset.size)
        salts: dict[int, bytes] = {}
        for segment, blob in steps.items():
            used = sorted(Steps.parse(blob).samples())
            if not used or used[-1] >= dataset.size:
                raise DataError(f"samples of segment {segment}", expected=f"some below {dataset.size}", got=used[-1:])
            data = self._source.get(f"{self._folder}/{salts_name(segment)}", longest_salts(len(used)))
            found = decode_salts(data)
            if [index for index, _ in found] != used:
                raise DataError(f"salts of segment {segment}", expected="those of the samples used", got="others")
            salts.update(found)
        indices = sorted(salts)
        read = lru_cache(TILES_KEPT)(self._dataset_tile)
        node = node_from_tiles(dataset.size, read)
        leaves = []
        for done, index in enumerate(indices, 1):
            leaves.append((index, node(0, index)))
            self._request.progress("fetching hashes of samples", done, len(indices))
        proof = multi_proof(indices, dataset.size, node)
        try:
            verify_multi_proof(leaves, dataset.size, proof, dataset.root)
        except MerkleError as error:
            raise MerkleError(f"tiles of the dataset: {error}") from error
        return Samples(tuple((index, salts[index]) for index in indices), proof)

    def _dataset_tile(self, tile: Tile) -> tuple[bytes, ...]:
        return self._tile(f"{DATASET}/", tile, WIDTH * DIGEST_SIZE, decode_hashes)

    def _snapshots(self, states: set[bytes]) -> dict[bytes, tuple[StoredSnapshot, bytes]]:
        """Return these stored snapshots and all that they are stored against, parsed and as they are."""
        found: dict[bytes, tuple[StoredSnapshot, bytes]] = {}
        wanted, depth = sorted(states), 0
        while wanted:
            if depth == MAX_CHAIN:
                raise MalformedError("bases behind a snapshot", expected=f"at most {MAX_CHAIN}", got="more")
            depth += 1
            names = [(snapshot_name(digest), MAX_STORED_SNAPSHOT) for digest in wanted]
            for digest, data in zip(wanted, get_all(self._source, names), strict=True):
                self._count_index(len(data))
                stored = StoredSnapshot.parse(data)
                if stored.state_digest != digest:
                    raise MalformedError("another snapshot in the archive", expected=digest, got=stored.state_digest)
                found[digest] = stored, data
                self._request.progress("fetching snapshots", len(found), len(found) + len(wanted))
            bases = {stored.base for stored, _ in found.values() if stored.base is not None}
            wanted = sorted(bases - found.keys())
        return found

    def _count_index(self, count: int) -> None:
        """Stop before leaves and records become more than a bundle's index can hold."""
        self._index_bytes += count
        if self._index_bytes > MAX_INDEX_BYTES:
            raise MalformedError("index of a bundle", expected=f"at most {MAX_INDEX_BYTES} bytes", got="more")

    def _pieces(self, bundle: Bundle, known: dict[bytes, bytes]) -> Iterator[bytes]:
        """Yield the bundle's bytes, its frames fetched as they are due."""
        yield bundle.head()
        frames = {digest: size for digest, size in bundle.blobs if digest not in known}
        fetched = self._blobs(frames, "fetching frames")
        for digest, size in bundle.blobs:
            data = known[digest] if digest in known else next(fetched)
            if len(data) != size:
                raise MalformedError("size of a blob in the archive", expected=size, got=len(data))
            yield data


def _needed_states(records: Sequence[SegmentRecord], opened: Sequence[SegmentRecord]) -> set[bytes]:
    """Return the snapshots at both ends of each segment, and those their ends are quantised against.

    A base that is none is left out: continuity is judged later, and by name.
    """
    at = {record.end_step: record.end_state for record in records} | {records[0].start_step: records[0].start_state}
    needed: set[bytes] = set()
    for record in opened:
        needed |= {record.start_state, record.end_state}
        if record.base_step in at:
            needed.add(at[record.base_step])
    return needed
