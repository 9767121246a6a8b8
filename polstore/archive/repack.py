"""Storing snapshots anew: their frames with another zstd level, or against other keyframes.

Only how a snapshot is stored changes; its state digest does not, nor does any leaf, tree or signed root. Before a
record replaces another it is decoded and must give the state digest. Each snapshot takes one transaction, in which its
new blobs and record come and those of its old blobs go that nothing else needs, so a repack may be stopped at any
moment. The recording lock is held throughout.

A snapshot keeps its encodings, so the bits of a quantised delta are compressed as they are. Against another base it can
only be stored as exact integer differences, which is what lossless runs have anyway and takes more room in the others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import zstandard

from polstore.archive.references import Outline, store_needs
from polstore.archive.states import States, fetch_stored
from polstore.codec import frames
from polstore.errors import DamagedError, MalformedError, MissingError, UsageError
from polstore.storage.records import pack_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from polstore.archive.references import Needs
    from polstore.codec.frames import StoredSnapshot
    from polstore.storage.store import Store
    from polstore.storage.writer import Writer

__all__ = ["DEFAULT_LEVEL", "MAX_LEVEL", "Repacked", "repack"]

DEFAULT_LEVEL = 19  # the highest that zstd calls normal; those above it need far more memory
MAX_LEVEL = 22
MAX_KEYFRAME_EVERY = 1 << 20


@dataclass
class Repacked:
    """What a repack has done; all sizes in bytes.

    Attributes:
        snapshots: stored snapshots that were looked at.
        rewritten: those that got a new record.
        based_anew: those of them that are stored against another base than before.
        before: size of all records and frames of these snapshots before.
        after: the same afterwards.
        damages: snapshots that were left as they are because they, or what they need, are damaged.
        written: False if nothing was to be changed, only measured.
    """

    snapshots: int = 0
    rewritten: int = 0
    based_anew: int = 0
    before: int = 0
    after: int = 0
    damages: list[str] = field(default_factory=list)
    written: bool = True

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


def repack(
    store: Store,
    run: str | None,
    progress: Callable[[str, int, int], None],
    *,
    level: int = DEFAULT_LEVEL,
    keyframe_every: int | None = None,
    dry_run: bool = False,
) -> Repacked:
    """Store snapshots anew where that makes them smaller, or against other keyframes where that is asked for.

    Args:
        store: an open store.
        run: the run whose snapshots to repack; None for all runs. What it shares with others changes for them, too.
        progress: told (what is being done, done, in all).
        level: of zstd, 1 to 22. A frame that does not become smaller stays.
        keyframe_every: snapshots that are to share one keyframe, at most; None keeps every snapshot's base.
        dry_run: only measure. Takes no lock.

    Raises:
        UsageError: a level or spacing out of bounds.
        MissingError: no such run.
        LockedError: somebody is recording into the store.
        DamagedError: a record that cannot be read, so it is not known which blobs are needed.
        FullError: no room on the device; what was repacked so far stays, the rest is as it was.
    """
    if not 1 <= level <= MAX_LEVEL:
        raise UsageError("zstd level", expected=f"1 to {MAX_LEVEL}", got=level)
    if keyframe_every is not None and not 1 <= keyframe_every <= MAX_KEYFRAME_EVERY:
        raise UsageError("snapshots per keyframe", expected=f"1 to {MAX_KEYFRAME_EVERY}", got=keyframe_every)
    with nullcontext() if dry_run else store.exclusive():
        job = _Job(store, level, keyframe_every, Repacked(written=not dry_run))
        plan = job.plan(run, progress)
        for done, (digest, base) in enumerate(plan.items(), 1):
            try:
                job.one(digest, base)
            except (DamagedError, MissingError, MalformedError) as error:
                job.result.damages.append(f"snapshot {digest.hex()} left as it is: {error}")
            progress("repacking snapshots", done, len(plan))
    return job.result


class _Job:
    """One repack: what every blob is needed by, and how far it has come."""

    def __init__(self, store: Store, level: int, keyframe_every: int | None, result: Repacked) -> None:
        self.store = store
        self.result = result
        self._level = level
        self._keyframe_every = keyframe_every
        self._states = States(store)
        self._users: Counter[bytes] = Counter()  # blob -> stored snapshots that need it
        self._fixed: set[bytes] = set()  # blobs needed otherwise

    def plan(self, run: str | None, progress: Callable[[str, int, int], None]) -> dict[bytes, bytes | None]:
        """Return the snapshots to repack with the base that each is to have, bases first."""
        plan: dict[bytes, bytes | None] = {}
        with self.store.read() as view:
            runs = view.runs()
            if run is not None and run not in runs:
                raise MissingError(f"no run {run} in the store", expected=", ".join(runs) or "a run", got=run)
            needs = store_needs(view, runs, progress)
            for name in runs if run is None else [run]:
                digests = [view.snapshot_at(name, step) for step in view.snapshot_steps(name)]
                if self._keyframe_every is None:
                    for digest in digests:
                        _add_chain(plan, needs, digest)
                else:
                    _add_anew(plan, needs, digests, self._keyframe_every)
            for digest in view.stored_snapshot_digests():  # unreferenced ones count as well: gc takes them as a whole
                outline = needs.snapshots.get(digest) or Outline.read(view, digest)
                self._users.update({blob for _, blob, _ in outline.frames})
        self._fixed = needs.direct
        return plan

    def one(self, digest: bytes, base: bytes | None) -> None:
        """Repack one snapshot."""
        old, blobs = fetch_stored(self.store, digest)
        size = _size(old)
        self.result.snapshots += 1
        self.result.before += size
        self.result.after += size
        snapshot = self._states.decode(old, blobs)
        new, fresh = old, blobs
        if base != old.base:
            against = None if base is None else self._states.base(base)
            new, fresh = frames.encode_exactly(snapshot, against)
        new, fresh = _compress(new, fresh, self._level)
        if new == old:
            return
        if self._states.decode(new, fresh).digest() != digest or new.state_digest != digest:
            raise DamagedError("repacked snapshot has another state", expected=digest, got=new.state_digest)
        if self.result.written:
            self._replace(old, new, fresh)
        self.result.rewritten += 1
        self.result.based_anew += new.base != old.base
        self.result.after += _size(new) - size

    def _replace(self, old: StoredSnapshot, new: StoredSnapshot, blobs: dict[bytes, bytes]) -> None:
        kept = {blob for blob in old.blobs if self._users[blob] > 1} | set(new.blobs) | self._fixed
        gone = set(old.blobs) - kept

        def work(transaction: Writer) -> None:
            for blob in new.blobs:
                transaction.put_blob(blobs[blob])
            transaction.put_stored_snapshot(new.state_digest, new.encode())
            for blob in gone:
                transaction.delete_blob(blob)

        self.store.write(work)
        self._users.subtract(old.blobs)
        self._users.update(new.blobs)


def _size(stored: StoredSnapshot) -> int:
    """Return the bytes that a snapshot's record and frames take in the store."""
    return len(pack_record(stored.encode())) + stored.stored_bytes


def _add_chain(plan: dict[bytes, bytes | None], needs: Needs, digest: bytes) -> None:
    """Add a snapshot and those it is stored against, bases first, each with the base it has."""
    chain: dict[bytes, None] = {}
    wanted: bytes | None = digest
    while wanted is not None and wanted not in plan and wanted not in chain:  # a circle is found when one is decoded
        chain[wanted] = None
        wanted = needs.snapshots[wanted].base
    for link in reversed(chain):
        plan[link] = needs.snapshots[link].base


def _add_anew(plan: dict[bytes, bytes | None], needs: Needs, digests: list[bytes], every: int) -> None:
    """Add a run's snapshots against new keyframes: after ``every`` of them, or where tensors appear as in recording."""
    key = 0
    for number, digest in enumerate(digests):
        if number - key >= every or needs.snapshots[digest].names != needs.snapshots[digests[key]].names:
            key = number
        # A snapshot met before keeps its first place, so no chain of bases can lead back to itself.
        plan.setdefault(digest, None if number == key else digests[key])


def _compress(
    stored: StoredSnapshot, blobs: dict[bytes, bytes], level: int
) -> tuple[StoredSnapshot, dict[bytes, bytes]]:
    """Compress every frame again and return the record and blobs with those that became smaller."""
    compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)
    decompressor = zstandard.ZstdDecompressor()
    fresh: dict[bytes, bytes] = {}
    again: dict[bytes, bytes] = {}  # digest of an old frame -> the new frame
    groups = []
    for group in stored.groups:
        found = []
        for frame in group.frames:
            if frame.digest not in again:
                again[frame.digest] = _smaller(blobs[frame.digest], group.count, compressor, decompressor)
            data = again[frame.digest]
            digest = frame.digest if data is blobs[frame.digest] else hashlib.sha256(data).digest()
            fresh[digest] = data
            found.append(replace(frame, digest=digest, size=len(data)))
        groups.append(replace(group, frames=tuple(found)))
    return replace(stored, groups=tuple(groups)), fresh


def _smaller(
    frame: bytes, count: int, compressor: zstandard.ZstdCompressor, decompressor: zstandard.ZstdDecompressor
) -> bytes:
    """Return a frame of ``count`` bytes of content compressed again, or itself if that is no smaller."""
    kind, body = frame[0], frame[1:]
    try:
        if kind == frames.ZSTD:
            plane = decompressor.decompress(body, max_output_size=count)
        elif kind == frames.RAW:
            plane = body
        else:
            return frame  # made by a later version, which may repack it
        new = bytes((frames.ZSTD,)) + compressor.compress(plane)
        if len(new) >= len(frame):
            return frame
        if decompressor.decompress(new[1:], max_output_size=count) != plane:
            raise DamagedError("a frame does not decompress to what was compressed: memory or zstd is at fault")
    except zstandard.ZstdError as error:
        raise DamagedError(f"frame is not one zstd frame: {error}") from error
    return new
