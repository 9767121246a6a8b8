"""The stored snapshots that a bundle carries: as the store has them, or stored anew where that takes many others.

In a run of fidelity ``compact-writeback`` each snapshot is stored against the one before, back to a keyframe: up to 64
for the sake of one. Such a one is stored anew here: the first exactly and by itself, others against that one. What is
stored against another snapshot of the same bundle stays as it is. A snapshot 0 that is stored against the last one of a
parent (`polstore.inherited`) is stored anew as well, by itself, so that nothing else of the parent is shown. How a
snapshot is stored is no part of any commitment (specs/codec.md), so the verifier need not know. The store itself stays
as it is.
"""

from __future__ import annotations

import weakref
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING

from polstore.codec import frames
from polstore.files import file_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from polstore.codec.snapshot import Snapshot
    from polstore.reader import Run

__all__ = ["Carried"]

LONGEST = 2  # records behind one snapshot, itself included, that are carried as they are: it and its keyframe
IN_MEMORY = 64 << 20  # bytes of frames made anew; more of them go into a temporary file


def alone(run: Run, stored: frames.StoredSnapshot) -> tuple[frames.StoredSnapshot, dict[bytes, bytes]]:
    """Return how a snapshot is stored: as it is, or, where that is against a parent's, anew and by itself.

    Besides, the frames that were made for that, by the SHA-256 of their bytes.
    """
    if stored.base is None or stored.state_digest != run.manifest.initial.state:
        return stored, {}
    return frames.encode_exactly(run.snapshot(stored.state_digest), None)


class Carried:
    """What a bundle carries so that some snapshots of a run can be decoded.

    One snapshot is decoded at a time, besides its base and the first one that was stored anew.

    Args:
        run: the run.
        digests: of the snapshots wanted, in the order of their steps.

    Attributes:
        records: by state digest; those wanted, and all that they are stored against.

    Raises:
        MissingError: data that the store no longer has.
        DamagedError: what the store holds is not what it should be.
        FullError: no room for the temporary file.
    """

    def __init__(self, run: Run, digests: Sequence[bytes]) -> None:
        self.records: dict[bytes, frames.StoredSnapshot] = {}
        self._run = run
        self._file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 # closed when this object goes
        weakref.finalize(self, self._file.close)
        self._places: dict[bytes, tuple[int, int]] = {}  # of frames made anew: start and length
        wanted = frozenset(digests)
        first: Snapshot | None = None
        for digest in digests:
            chain = self._own(run.stored_snapshots(digest))
            if len(chain) <= LONGEST:
                for stored in chain:
                    if stored.state_digest not in self.records:
                        self._keep(*alone(run, stored))
            elif chain[0].base in wanted:
                self.records[digest] = chain[0]
            else:
                snapshot = run.snapshot(digest)
                self._keep(*frames.encode_exactly(snapshot, first))
                first = snapshot if first is None else first

    def _own(self, chain: list[frames.StoredSnapshot]) -> list[frames.StoredSnapshot]:
        """Return that part of a chain that is of the run itself: up to its snapshot 0."""
        digests = [stored.state_digest for stored in chain]
        initial = self._run.manifest.initial.state
        return chain[: digests.index(initial) + 1] if initial in digests else chain

    def _keep(self, stored: frames.StoredSnapshot, blobs: Mapping[bytes, bytes]) -> None:
        """Carry a record, and the frames that were made for it."""
        self.records[stored.state_digest] = stored
        try:
            for digest, frame in blobs.items():
                if digest not in self._places:
                    self._places[digest] = self._file.seek(0, 2), len(frame)
                    self._file.write(frame)
        except OSError as error:
            raise file_error(error, "the temporary file for frames cannot be written") from error

    def blobs(self) -> dict[bytes, int]:
        """Return the digests of all frames that the records need, with their lengths in bytes."""
        needed = {digest for stored in self.records.values() for digest in stored.blobs}
        made = {digest: length for digest, (_, length) in self._places.items()}
        return {digest: made[digest] if digest in made else self._run.blob_size(digest) for digest in needed}

    def blob(self, digest: bytes) -> bytes:
        """Return a frame made anew, or else a blob of the run; raises `MissingError` or `DamagedError`."""
        if digest not in self._places:
            return self._run.blob(digest)
        start, length = self._places[digest]
        try:
            self._file.seek(start)
            return self._file.read(length)
        except OSError as error:
            raise file_error(error, "the temporary file for frames cannot be read") from error
