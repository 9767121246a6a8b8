"""Snapshots to frames and back: what a store keeps and a bundle carries.

Tensors of the same encoding and item size are strung together, cut into groups, split into byte planes, and each plane
becomes one frame: a byte that says how, then the plane raw or as one zstd frame. What was encoded is decoded and
compared before it is returned. Decoding takes a hostile record and hostile frames: sizes are checked before anything
is allocated, and the outcome either has the state digest of the record or is refused. Implements "Stored snapshot" of
specs/codec.md. Does no I/O: frames are handed out as bytes and fetched through a function.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import zstandard

from polstore.codec import planes
from polstore.codec.quantise import (
    DROPPED_BITS,
    Quantised,
    Scheme,
    add_halves,
    quantise_tensors,
    round_mantissa,
    scale_halves,
)
from polstore.codec.snapshot import CARRIER, Array, Snapshot, Tensor, bits
from polstore.codec.stored import (
    FLOATS,
    INTEGERS,
    MAX_GROUP,
    NEEDS_BASE,
    SCALED,
    Encoding,
    StoredFrame,
    StoredGroup,
    StoredSnapshot,
    StoredTensor,
)
from polstore.errors import DamagedError, MalformedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "DEFAULT_MAX_BYTES",
    "Encoding",
    "StoredFrame",
    "StoredGroup",
    "StoredSnapshot",
    "StoredTensor",
    "decode",
    "encode",
]

DEFAULT_MAX_BYTES = 64 << 30  # of decoded tensors: a 5 G parameter AdamW state; larger ones are asked for knowingly
ZSTD_LEVEL = 1  # 3 gains nothing on these planes, 9 takes ten times as long
RAW, ZSTD = 0, 1  # a frame's first byte


def encode(
    snapshot: Snapshot, base: Snapshot | None, fidelity: str
) -> tuple[StoredSnapshot, dict[bytes, bytes], Snapshot]:
    """Quantise a live snapshot and encode the result.

    Args:
        snapshot: the live state.
        base: the committed snapshot to encode against, or None for a keyframe.
        fidelity: one of `polstore.codec.quantise.FIDELITIES`.

    Returns:
        The record; the frames by the SHA-256 of their bytes; and the committed snapshot, which is
        ``quantise(snapshot, base, fidelity)`` and what `decode` gives back.

    Raises:
        UsageError: an unknown fidelity.
        MalformedError: scalars or tensors beyond the record's caps.
        TrainingError: this thread flushes subnormal numbers to zero.
        DamagedError: decoding did not give back what was encoded, so memory or the zstd library is at fault.
    """
    parts = quantise_tensors(snapshot, base, fidelity)
    committed = Snapshot(tuple(part.tensor for part in parts), snapshot.scalars)
    rows = []
    streams: dict[tuple[Encoding, int], list[Array]] = {}
    for part in parts:
        encoding, items = _items(part)
        row = StoredTensor(part.tensor.entry(), encoding, part.exponent if encoding in SCALED else 0)
        rows.append(row)
        if items is not None:
            streams.setdefault(row.stream, []).append(items)
    groups: list[StoredGroup] = []
    frames: dict[bytes, bytes] = {}
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True)
    for (encoding, item_size), arrays in sorted(streams.items()):
        for chunk in _chunks(arrays, MAX_GROUP // item_size):
            stored = []
            for plane in planes.split(chunk):
                frame = _frame(plane, compressor)
                digest = hashlib.sha256(frame).digest()
                frames[digest] = frame
                stored.append(StoredFrame(digest, len(frame)))
            groups.append(StoredGroup(encoding, item_size, chunk.size, tuple(stored)))
    record = StoredSnapshot(
        committed.digest(), base.digest() if base is not None else None, snapshot.scalars, tuple(rows), tuple(groups)
    )
    for tensor, again in zip(committed.tensors, _arrays(record, base, frames.__getitem__), strict=True):
        if not np.array_equal(bits(tensor.data), bits(again)):
            raise DamagedError(f"tensor {tensor.name} does not decode to what was encoded: memory or zstd is at fault")
    return record, frames, committed


def decode(
    stored: StoredSnapshot,
    base: Snapshot | None,
    fetch: Callable[[bytes], bytes],
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Snapshot:
    """Rebuild a snapshot from its record and frames.

    Args:
        stored: the record, possibly hostile.
        base: the snapshot whose digest is ``stored.base``; None if that is None.
        fetch: returns a frame's bytes, given their SHA-256; whatever it raises passes through. The bytes need not be
            checked against the digest: the outcome is.
        max_bytes: cap on the decoded size of all tensors. Besides these and the base, one group of at most 256 MiB for
            each pair of encoding and item size in use, and a few copies of the largest tensor, are held.

    Returns:
        The snapshot, whose digest is ``stored.state_digest``. Tensors equal to the base's share its arrays.

    Raises:
        MalformedError: too large, another base than the record names, or frames that do not lead to the digest.
    """
    if stored.nbytes > max_bytes:
        raise MalformedError("stored snapshot is too large", expected=f"at most {max_bytes} bytes", got=stored.nbytes)
    got = base.digest() if base is not None else None
    if got != stored.base:
        raise MalformedError("stored snapshot needs another base", expected=stored.base, got=got)
    tensors = []
    for row, data in zip(stored.tensors, _arrays(stored, base, fetch), strict=True):
        tensor = Tensor(row.entry.name, row.entry.dtype, row.entry.shape, data)
        if tensor.entry() != row.entry:
            raise MalformedError(
                f"decoded tensor {row.entry.name}", expected=row.entry.digest, got=tensor.entry().digest
            )
        tensors.append(tensor)
    return Snapshot(tuple(tensors), stored.scalars)  # the record checked that these entries make its state digest


def _items(part: Quantised) -> tuple[Encoding, Array | None]:
    """Choose the encoding of a tensor and return its items, unsigned integers, or None where it takes none."""
    tensor, partner = part.tensor, part.partner
    if not tensor.data.size:
        return Encoding.EXACT, None  # the one encoding of nothing
    if partner is not None and (tensor is partner or np.array_equal(bits(tensor.data), bits(partner.data))):
        return Encoding.SAME, None
    if part.scheme is Scheme.SCALED_DELTA:
        return Encoding.SCALED_DELTA, part.halves
    if part.scheme is Scheme.SCALED_VALUE:
        return Encoding.SCALED_VALUE, part.halves
    if partner is None:
        return Encoding.EXACT, bits(tensor.data)
    if part.scheme is Scheme.ROUNDED:
        return Encoding.ROUNDED_DIFFERENCE, planes.zigzag(
            _rounded(tensor.data) - _rounded(round_mantissa(partner.data))
        )
    if tensor.dtype in FLOATS | INTEGERS:
        return Encoding.DIFFERENCE, planes.zigzag(_integers(tensor) - _integers(partner))
    return Encoding.EXACT, bits(tensor.data)


def _array(row: StoredTensor, partner: Tensor | None, items: Array) -> Array:
    """Return the carrier array of a tensor, given the items that `_items` made of it."""
    carrier = CARRIER[row.entry.dtype]
    if row.encoding is Encoding.SCALED_VALUE:
        return scale_halves(items, row.exponent)
    if row.encoding is Encoding.EXACT or partner is None:
        return items.view(carrier)
    if row.encoding is Encoding.SCALED_DELTA:
        return add_halves(partner.data, items, row.exponent)
    if row.encoding is Encoding.ROUNDED_DIFFERENCE:
        integers = _rounded(round_mantissa(partner.data)) + planes.unzigzag(items)
        pattern = planes.unordered(integers << DROPPED_BITS)
        pattern &= np.uint32(0xFFFFFFFF << DROPPED_BITS & 0xFFFFFFFF)
        return pattern.view(carrier)
    integers = _integers(partner) + planes.unzigzag(items)
    return (planes.unordered(integers) if row.entry.dtype in FLOATS else integers).view(carrier)


def _integers(tensor: Tensor) -> Array:
    """Return signed integers in the order of the numbers (of unsigned integers: the same bits)."""
    pattern = bits(tensor.data)
    return planes.ordered(pattern) if tensor.dtype in FLOATS else pattern.view(f"<i{pattern.dtype.itemsize}")


def _rounded(values: Array) -> Array:
    """Return ordered integers of float32 values without their low 13 bits."""
    return planes.ordered(bits(values)) >> DROPPED_BITS


def _chunks(arrays: list[Array], limit: int) -> Iterator[Array]:
    """Cut a stream of arrays into runs of ``limit`` items and a last shorter one."""
    pending: list[Array] = []
    room = limit
    for array in arrays:
        rest = array
        while rest.size:
            pending.append(rest[:room])
            room -= pending[-1].size
            rest = rest[pending[-1].size :]
            if not room:
                yield pending[0] if len(pending) == 1 else np.concatenate(pending)
                pending, room = [], limit
    if pending:
        yield pending[0] if len(pending) == 1 else np.concatenate(pending)


def _frame(plane: Array, compressor: zstandard.ZstdCompressor) -> bytes:
    """Return a plane as a frame: compressed if that is smaller."""
    compressed = compressor.compress(plane.data)
    if len(compressed) < plane.size:
        return bytes((ZSTD,)) + compressed
    return bytes((RAW,)) + plane.tobytes()


def _plane(frame: bytes, stored: StoredFrame, count: int, decompressor: zstandard.ZstdDecompressor) -> Array:
    """Return the ``count`` bytes of a plane; raises `MalformedError`."""
    if len(frame) != stored.size:
        raise MalformedError("size of a frame", expected=f"{stored.size} bytes", got=f"{len(frame)} bytes")
    body = memoryview(frame)[1:]
    if frame[0] == RAW:
        if len(body) != count:
            raise MalformedError("size of a raw frame", expected=f"{count} bytes", got=f"{len(body)} bytes")
        return np.frombuffer(body, "|u1")
    if frame[0] != ZSTD:
        raise MalformedError("first byte of a frame", expected=f"{RAW} or {ZSTD}", got=frame[0])
    try:
        declared = zstandard.get_frame_parameters(body).content_size
        if declared != count:
            raise MalformedError("content of a zstd frame", expected=f"{count} bytes", got=f"{declared} bytes")
        plane = decompressor.decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MalformedError(f"frame is not one zstd frame: {error}") from error
    if len(plane) != count:
        raise MalformedError("content of a zstd frame", expected=f"{count} bytes", got=f"{len(plane)} bytes")
    return np.frombuffer(plane, "|u1")


def _groups(groups: Iterable[StoredGroup], fetch: Callable[[bytes], bytes]) -> Iterator[Array]:
    """Fetch and decompress the groups of one stream, one at a time."""
    decompressor = zstandard.ZstdDecompressor()
    for group in groups:
        parts = [_plane(fetch(frame.digest), frame, group.count, decompressor) for frame in group.frames]
        yield planes.join(parts)


class _Stream:
    """Hands out the items of one stream tensor by tensor and holds one group at a time."""

    def __init__(self, groups: Iterator[Array]) -> None:
        self._groups = groups
        self._left: Array | None = None

    def take(self, count: int) -> Array:
        """Return the next ``count`` items, at least one; the record made sure that they are there."""
        taken: list[Array] = []
        while count:
            left = self._left if self._left is not None and self._left.size else next(self._groups)
            taken.append(left[:count])
            self._left = left[count:]
            count -= taken[-1].size
        return taken[0] if len(taken) == 1 else np.concatenate(taken)


def _arrays(stored: StoredSnapshot, base: Snapshot | None, fetch: Callable[[bytes], bytes]) -> Iterator[Array]:
    """Yield the carrier array of every tensor of a record, in its order; raises `MalformedError`."""
    streams: dict[tuple[int, int], _Stream] = {}
    for row in stored.tensors:
        entry = row.entry
        partner = base.partner(entry.name, entry.dtype, entry.shape) if base is not None else None
        if partner is None and row.encoding in NEEDS_BASE:
            raise MalformedError(f"the base has no tensor like {entry.name}", expected=f"{entry.dtype} {entry.shape}")
        if row.encoding is Encoding.SAME and partner is not None:
            yield partner.data
        elif not row.count:
            yield np.empty(0, CARRIER[entry.dtype])
        else:
            if row.stream not in streams:
                own = [group for group in stored.groups if (group.encoding, group.item_size) == row.stream]
                streams[row.stream] = _Stream(_groups(own, fetch))
            yield _array(row, partner, streams[row.stream].take(row.count))
