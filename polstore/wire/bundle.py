"""The bundle: opened segments with their inclusion proofs and the data to replay them.

A bundle file is a fixed first line, the SHA-256 and length of the index, the index (canonical msgpack), and then the
blobs, one after the other, in the order of the index. So every byte is covered: the index by its digest, each blob by
its own, and nothing may follow. Implements specs/bundle.md. Reads no file and verifies no proof: it says what is there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from polstore.errors import MalformedError
from polstore.wire import canonical
from polstore.wire.fields import DIGEST_SIZE, Fields
from polstore.wire.manifest import MAX_LEAF

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = ["HEADER_SIZE", "MAGIC", "MAX_INDEX_BYTES", "Bundle", "OpenedSegment", "Samples", "parse_header"]

MAGIC = b"polstore bundle v1\n"
HEADER_SIZE = len(MAGIC) + DIGEST_SIZE + 8  # bytes before the index
MAX_INDEX_BYTES = 2**28  # 256 MiB: the leaves of half a million segments
MAX_LEAVES = 2**24
MAX_PROOF = 48  # hashes: what a tree of 2**48 leaves needs
MAX_SNAPSHOTS = 2**20
MAX_STORED_SNAPSHOT = 256 * 2**20  # bytes of one stored snapshot's description
MAX_OPENED_SAMPLES = 2**26
MAX_SAMPLE_HASHES = 2**26
MAX_BLOBS = 2**24
MAX_BLOB = 2**40  # bytes


@dataclass(frozen=True)
class OpenedSegment:
    """A segment that the bundle opens, with the inclusion proof of its record (leaf ``index + 1``)."""

    index: int
    proof: tuple[bytes, ...]


@dataclass(frozen=True)
class Samples:
    """The opened samples of the dataset.

    Attributes:
        salts: (sample index, 32-byte salt), ascending.
        proof: the hashes that, with these samples' leaves, give the dataset's root.
    """

    salts: tuple[tuple[int, bytes], ...]
    proof: tuple[bytes, ...]


@dataclass(frozen=True)
class Bundle:
    """A bundle's index.

    Attributes:
        size: leaves under the signed root that the bundle was made for.
        root: that root.
        leaves: all of them: the manifest, then every segment record.
        opened: the opened segments, ascending; none where only the records or the snapshots are shown.
        snapshots: descriptions of the stored snapshots that they, or an audit, need (specs/codec.md), by ascending
            state digest.
        samples: the dataset's opened samples.
        blobs: (SHA-256, length in bytes) of each blob, ascending.
    """

    size: int
    root: bytes
    leaves: tuple[bytes, ...]
    opened: tuple[OpenedSegment, ...]
    snapshots: tuple[bytes, ...]
    samples: Samples
    blobs: tuple[tuple[bytes, int], ...]

    TAG = "polstore/bundle/v1"

    def head(self) -> bytes:
        """Return the file's bytes up to the first blob; raises `MalformedError` if the index is too long."""
        index = canonical.encode(
            (
                self.TAG,
                self.size,
                self.root,
                self.leaves,
                tuple((segment.index, segment.proof) for segment in self.opened),
                self.snapshots,
                (self.samples.salts, self.samples.proof),
                self.blobs,
            )
        )
        if len(index) > MAX_INDEX_BYTES:
            raise MalformedError(
                "bundle index is too long", expected=f"at most {MAX_INDEX_BYTES} bytes", got=len(index)
            )
        return MAGIC + hashlib.sha256(index).digest() + len(index).to_bytes(8, "big") + index

    @classmethod
    def parse_index(cls, digest: bytes, index: bytes) -> Bundle:
        """Parse the index, whose SHA-256 must be ``digest``; raises `MalformedError`."""
        got = hashlib.sha256(index).digest()
        if got != digest:
            raise MalformedError("bundle index is damaged", expected=digest, got=got)
        fields = Fields(canonical.decode(index, limit=MAX_INDEX_BYTES, what="bundle index"), "bundle", 8)
        fields.tag(cls.TAG)
        size, root = fields.integer("size", 2, MAX_LEAVES), fields.digest("root")
        leaves = _binaries(fields.array("leaves", MAX_LEAVES), "leaf", MAX_LEAF)
        if len(leaves) != size:
            raise MalformedError("bundle has the wrong number of leaves", expected=size, got=len(leaves))
        opened = tuple(map(_opened, fields.array("opened", size - 1)))
        _ascending([segment.index for segment in opened], "opened segments")
        if opened and opened[-1].index >= size - 1:
            raise MalformedError(
                "opened segments of the bundle", expected=f"each below {size - 1}", got=opened[-1].index
            )
        snapshots = _binaries(fields.array("snapshots", MAX_SNAPSHOTS), "stored snapshot", MAX_STORED_SNAPSHOT)
        samples = _samples(fields.value())
        blobs = tuple(map(_blob, fields.array("blobs", MAX_BLOBS)))
        _ascending([digest for digest, _ in blobs], "blobs")
        return cls(size, root, leaves, opened, snapshots, samples, blobs)


def parse_header(head: bytes) -> tuple[bytes, int]:
    """Return the index's SHA-256 and length from a file's first `HEADER_SIZE` bytes; raises `MalformedError`."""
    if head[: len(MAGIC)] != MAGIC:
        raise MalformedError("not a bundle", expected=MAGIC, got=head[: len(MAGIC)])
    if len(head) != HEADER_SIZE:
        raise MalformedError("bundle is cut short", expected=f"{HEADER_SIZE} bytes at least", got=f"{len(head)} bytes")
    length = int.from_bytes(head[-8:], "big")
    if length > MAX_INDEX_BYTES:
        raise MalformedError("bundle index is too long", expected=f"at most {MAX_INDEX_BYTES} bytes", got=length)
    return head[len(MAGIC) : -8], length


def _binaries(values: tuple[Value, ...], name: str, maximum: int) -> tuple[bytes, ...]:
    fields = Fields(values, "bundle", len(values))
    return tuple(fields.binary(name, maximum) for _ in values)


def _digests(values: tuple[Value, ...], name: str) -> tuple[bytes, ...]:
    fields = Fields(values, "bundle", len(values))
    return tuple(fields.digest(name) for _ in values)


def _opened(value: Value) -> OpenedSegment:
    fields = Fields(value, "bundle, opened segment", 2)
    return OpenedSegment(fields.integer("index"), _digests(fields.array("proof", MAX_PROOF), "inclusion proof"))


def _samples(value: Value) -> Samples:
    fields = Fields(value, "bundle, samples", 2)
    salts = []
    for item in fields.array("salts", MAX_OPENED_SAMPLES):
        pair = Fields(item, "bundle, sample", 2)
        salts.append((pair.integer("index"), pair.digest("salt")))
    _ascending([index for index, _ in salts], "opened samples")
    return Samples(tuple(salts), _digests(fields.array("proof", MAX_SAMPLE_HASHES), "sample proof"))


def _blob(value: Value) -> tuple[bytes, int]:
    fields = Fields(value, "bundle, blob", 2)
    return fields.digest("digest"), fields.integer("length", 0, MAX_BLOB)


def _ascending(keys: list[int] | list[bytes], what: str) -> None:
    for before, after in pairwise(keys):
        if not before < after:  # type: ignore[operator]  # both lists are homogeneous
            raise MalformedError(f"{what} of the bundle are not in ascending order, or not unique", got=after)
