"""The record of a stored snapshot: which tensors, in which encodings, in which frames.

The record is physical. Nothing signs it, and an archive may write another one for the same snapshot; what it must lead
to is the state digest, which it holds beside the entries that the digest is computed from, so a record whose names,
shapes, hashes or scalars were changed contradicts itself. Everything that `polstore.codec.frames` allocates is bounded
by what is checked here. Implements "Stored snapshot" of specs/codec.md. Does no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from polstore.codec.snapshot import CARRIER, carrier_count
from polstore.codec.values import MAX_EXPONENT, MAX_STEP_EXPONENT, MIN_EXPONENT
from polstore.errors import MalformedError
from polstore.wire import canonical
from polstore.wire.fields import DIGEST_SIZE, Fields
from polstore.wire.state import ITEM_SIZE, MAX_SCALARS, MAX_TENSORS, TensorEntry, state_digest

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = [
    "MAX_GROUP",
    "MAX_RECORD",
    "TAG",
    "Encoding",
    "StoredFrame",
    "StoredGroup",
    "StoredSnapshot",
    "StoredTensor",
]

TAG = "polstore/snapshot/v1"
MAX_GROUP = 1 << 22  # bytes of a group before compression: what a reader decompresses to get at one element
MAX_GROUPS = 1 << 18  # 1 TiB at the size above
MAX_RECORD = 256 << 20  # bytes; a tensor takes about 100, so this is far beyond a million of them


class Encoding(IntEnum):
    """How the elements of a tensor are stored; the values are those of the format."""

    SAME = 0  # the base's tensor, no bytes
    EXACT = 1  # the bits
    DIFFERENCE = 2  # zigzag of the difference of (ordered) integers against the base's tensor
    SCALED_DELTA = 3  # float16 bits; times 2^exponent, plus the base's tensor
    STEPPED_DELTA = 4  # zigzag of 16-bit steps; times 2^exponent, plus the base's tensor
    BFLOAT16 = 5  # the upper 16 bits of float32, its sign last
    SHORT_DIFFERENCE = 6  # like DIFFERENCE, of float32 and the base's tensor without the low 18 bits


NEEDS_BASE = frozenset(
    {Encoding.SAME, Encoding.DIFFERENCE, Encoding.SCALED_DELTA, Encoding.STEPPED_DELTA, Encoding.SHORT_DIFFERENCE}
)
FLOAT32_ONLY = frozenset(Encoding) - {Encoding.SAME, Encoding.EXACT, Encoding.DIFFERENCE}
SCALED = frozenset({Encoding.SCALED_DELTA, Encoding.STEPPED_DELTA})
TWO_BYTES = SCALED | {Encoding.BFLOAT16, Encoding.SHORT_DIFFERENCE}  # an item; else it is as wide as the carrier's
FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})  # differences are between ordered integers
INTEGERS = frozenset({"int16", "uint16", "int32", "uint32", "int64", "uint64"})


@dataclass(frozen=True)
class StoredTensor:
    """One tensor: what is committed of it and how it is stored; ``exponent`` is 0 unless the encoding is scaled."""

    entry: TensorEntry
    encoding: Encoding
    exponent: int = 0

    @property
    def stream(self) -> tuple[Encoding, int]:
        """The stream its elements are part of: the encoding and the bytes of an item there."""
        if self.encoding in TWO_BYTES:
            return self.encoding, 2
        return self.encoding, np.dtype(CARRIER[self.entry.dtype]).itemsize

    @cached_property
    def count(self) -> int:
        """How many items it takes of its stream."""
        return carrier_count(self.entry.dtype, self.entry.shape)

    @property
    def holds_items(self) -> bool:
        """Whether it takes any items of its stream."""
        return self.encoding is not Encoding.SAME and self.count > 0

    @property
    def nbytes(self) -> int:
        """Size of the tensor itself in bytes."""
        return self.count * np.dtype(CARRIER[self.entry.dtype]).itemsize

    def check(self, *, has_base: bool) -> None:
        """Require an encoding that this tensor can have; raises `MalformedError`."""
        what = f"stored tensor {self.entry.name}"
        if self.encoding in NEEDS_BASE and not has_base:
            raise MalformedError(f"{what} is encoded against a base, but the snapshot has none")
        if self.encoding in FLOAT32_ONLY and self.entry.dtype != "float32":
            raise MalformedError(f"{what} has an encoding for float32", got=self.entry.dtype)
        if self.encoding is Encoding.DIFFERENCE and self.entry.dtype not in FLOATS | INTEGERS:
            raise MalformedError(f"{what} has an encoding for wider numbers", got=self.entry.dtype)
        if not self.count and self.encoding is not Encoding.EXACT:
            raise MalformedError(f"{what} has no elements", expected="encoding 1", got=int(self.encoding))
        low, high = (MIN_EXPONENT, MAX_EXPONENT) if self.encoding in SCALED else (0, 0)
        if self.encoding is Encoding.STEPPED_DELTA:
            high = MAX_STEP_EXPONENT
        if not low <= self.exponent <= high:
            raise MalformedError(f"{what}, exponent", expected=f"{low} to {high}", got=self.exponent)


@dataclass(frozen=True)
class StoredFrame:
    """One byte plane of a group: SHA-256 of the frame's bytes, and their number."""

    digest: bytes
    size: int


@dataclass(frozen=True)
class StoredGroup:
    """A run of a stream's items: ``count`` of ``item_size`` bytes, one frame per byte plane, lowest first."""

    encoding: Encoding
    item_size: int
    count: int
    frames: tuple[StoredFrame, ...]

    def check(self) -> None:
        """Require sizes that belong together and stay within `MAX_GROUP`; raises `MalformedError`."""
        most = MAX_GROUP // self.item_size
        if not 1 <= self.count <= most:
            raise MalformedError("items of a stored group", expected=f"1 to {most}", got=self.count)
        if len(self.frames) != self.item_size:
            raise MalformedError("frames of a stored group", expected=self.item_size, got=len(self.frames))
        for frame in self.frames:
            if not 2 <= frame.size <= 1 + self.count:  # one byte says how it is stored, and raw is the fallback
                raise MalformedError("size of a frame", expected=f"2 to {1 + self.count} bytes", got=frame.size)


@dataclass(frozen=True)
class StoredSnapshot:
    """A snapshot as it is stored.

    Attributes:
        state_digest: of the snapshot that comes out, 32 bytes.
        base: state digest of the snapshot that the encodings refer to, or None.
        scalars: the snapshot's scalars, opaque to the codec.
        tensors: one row per tensor, in the snapshot's order.
        groups: in ascending order of (encoding, item size), then in the order of the items.

    Raises:
        MalformedError: the parts contradict each other or exceed a cap.
    """

    state_digest: bytes
    base: bytes | None
    scalars: bytes
    tensors: tuple[StoredTensor, ...]
    groups: tuple[StoredGroup, ...]

    def __post_init__(self) -> None:
        if len(self.scalars) > MAX_SCALARS:
            raise MalformedError("scalars are too long", expected=f"at most {MAX_SCALARS}", got=len(self.scalars))
        if len(self.groups) > MAX_GROUPS:
            raise MalformedError("too many stored groups", expected=f"at most {MAX_GROUPS}", got=len(self.groups))
        wanted: dict[tuple[int, int], int] = {}
        for tensor in self.tensors:
            tensor.check(has_base=self.base is not None)
            if tensor.holds_items:
                wanted[tensor.stream] = wanted.get(tensor.stream, 0) + tensor.count
        got = []
        for stream, groups in groupby(self.groups, key=lambda group: (group.encoding, group.item_size)):
            total = 0
            for group in groups:
                group.check()
                total += group.count
            got.append((stream, total))
        if got != sorted(wanted.items()):
            raise MalformedError(
                "stored groups do not hold what the tensors need", expected=sorted(wanted.items()), got=got
            )
        digest = state_digest([tensor.entry for tensor in self.tensors], self.scalars)
        if digest != self.state_digest:
            raise MalformedError("stored snapshot contradicts its state digest", expected=self.state_digest, got=digest)

    @property
    def nbytes(self) -> int:
        """Size of all tensors once decoded, in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def row(self, name: str) -> StoredTensor | None:
        """Return the row of the tensor of that name, if there is one."""
        return self._rows.get(name)

    def groups_of(self, stream: tuple[Encoding, int]) -> list[StoredGroup]:
        """Return the groups of a stream, in order."""
        return self._groups.get(stream, [])

    def offset_of(self, row: StoredTensor) -> int:
        """Return how many items of its stream come before those of one of the rows."""
        return self._offsets[row.entry.name]

    @cached_property
    def _rows(self) -> dict[str, StoredTensor]:
        return {row.entry.name: row for row in self.tensors}

    @cached_property
    def _groups(self) -> dict[tuple[int, int], list[StoredGroup]]:
        groups: dict[tuple[int, int], list[StoredGroup]] = {}
        for group in self.groups:
            groups.setdefault((group.encoding, group.item_size), []).append(group)
        return groups

    @cached_property
    def _offsets(self) -> dict[str, int]:
        offsets = {}
        ends: dict[tuple[int, int], int] = {}
        for row in self.tensors:
            offsets[row.entry.name] = ends.get(row.stream, 0)
            ends[row.stream] = offsets[row.entry.name] + row.count
        return offsets

    @property
    def blobs(self) -> tuple[bytes, ...]:
        """Digests of the frames it needs, in the record's order, each once."""
        return tuple(dict.fromkeys(frame.digest for group in self.groups for frame in group.frames))

    @property
    def stored_bytes(self) -> int:
        """Size of those frames in bytes, each counted once."""
        return sum({frame.digest: frame.size for group in self.groups for frame in group.frames}.values())

    def encode(self) -> bytes:
        """Return the record's bytes, canonical msgpack."""
        rows = tuple((row.entry.value(), int(row.encoding), row.exponent) for row in self.tensors)
        groups = tuple(
            (int(group.encoding), group.item_size, group.count, tuple((f.digest, f.size) for f in group.frames))
            for group in self.groups
        )
        return canonical.encode((TAG, self.state_digest, self.base, self.scalars, rows, groups))

    @classmethod
    def parse(cls, data: bytes) -> StoredSnapshot:
        """Parse a record of at most `MAX_RECORD` bytes; raises `MalformedError`."""
        fields = Fields(canonical.decode(data, limit=MAX_RECORD, what="stored snapshot"), "stored snapshot", 6)
        fields.tag(TAG)
        digest = fields.digest("state digest")
        base = fields.value()
        if base is not None and (not isinstance(base, bytes) or len(base) != DIGEST_SIZE):
            raise MalformedError("stored snapshot, field base", expected=f"{DIGEST_SIZE} bytes or nil", got=base)
        scalars = fields.binary("scalars", MAX_SCALARS)
        tensors = tuple(_tensor(value) for value in fields.array("tensors", MAX_TENSORS))
        groups = tuple(_group(value) for value in fields.array("groups", MAX_GROUPS))
        return cls(digest, base, scalars, tensors, groups)


def _tensor(value: Value) -> StoredTensor:
    fields = Fields(value, "stored tensor", 3)
    entry = TensorEntry.from_value(fields.value(), "entry of a stored tensor")
    encoding = Encoding(fields.integer("encoding", 0, max(Encoding)))
    return StoredTensor(entry, encoding, fields.integer("exponent", MIN_EXPONENT, MAX_STEP_EXPONENT))


def _group(value: Value) -> StoredGroup:
    fields = Fields(value, "stored group", 4)
    encoding = Encoding(fields.integer("encoding", Encoding.EXACT, max(Encoding)))
    item_size = fields.integer("item size", 1, max(ITEM_SIZE.values()))
    count = fields.integer("count", 1, MAX_GROUP)
    frames = []
    for item in fields.array("frames", max(ITEM_SIZE.values())):
        inner = Fields(item, "frame of a stored group", 2)
        frames.append(StoredFrame(inner.digest("digest"), inner.integer("size", 2, MAX_GROUP + 1)))
    return StoredGroup(encoding, item_size, count, tuple(frames))
