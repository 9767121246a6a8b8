"""Encoding: a committed snapshot as a record and frames.

Tensors of the same encoding and item size are strung together into a stream, which is cut into groups of about 1 MiB;
each group is split into byte planes, and each plane becomes one frame. One group is worked on at a time, while it is in
the cache. What could go wrong unseen is undone and compared at once: items made of values, and compression. Of halves
and steps the values themselves were made, by the decoder's functions. Implements "Stored snapshot" of specs/codec.md,
the writer's part. Does no I/O: frames are handed out as bytes.
"""

from __future__ import annotations

from collections import deque
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from polstore.codec.estimate import smaller_as_difference
from polstore.codec.items import write_items
from polstore.codec.packing import Packing
from polstore.codec.quantise import quantise_tensors
from polstore.codec.quantised import Quantised, Scheme
from polstore.codec.snapshot import BLOCK, Array, Snapshot, bits
from polstore.codec.stored import (
    FLOATS,
    INTEGERS,
    SCALED,
    Encoding,
    StoredFrame,
    StoredGroup,
    StoredSnapshot,
    StoredTensor,
)
from polstore.codec.values import UPPER_BITS
from polstore.errors import DamagedError
from polstore.wire.state import state_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from polstore.codec.packing import Frames
    from polstore.codec.snapshot import Tensor
    from polstore.wire.state import TensorEntry

__all__ = ["encode", "encode_exactly", "encode_parts"]

GROUP = 1 << 20  # bytes of a full group: its planes fit the L2 cache, and reading one tensor fetches little else

_OF_SCHEME = {
    Scheme.SCALED_DELTA: Encoding.SCALED_DELTA,
    Scheme.STEPPED_DELTA: Encoding.STEPPED_DELTA,
    Scheme.BFLOAT16: Encoding.BFLOAT16,
    Scheme.SHORT_DIFFERENCE: Encoding.SHORT_DIFFERENCE,
}


def encode(
    snapshot: Snapshot, base: Snapshot | None, fidelity: str
) -> tuple[StoredSnapshot, dict[bytes, bytes], Snapshot]:
    """Quantise a live snapshot and encode the result.

    Args:
        snapshot: the live state.
        base: the committed snapshot to encode against, or None for a keyframe.
        fidelity: one of `polstore.codec.quantise.FIDELITIES`.

    Returns:
        The record; the frames by the SHA-256 of their bytes; and the committed snapshot, which `decode` gives back. It
        is ``quantise(snapshot, base, fidelity)``.

    Raises:
        UsageError: an unknown fidelity.
        TrainingError: this thread flushes subnormal numbers to zero.
        MalformedError, DamagedError: as `encode_parts` does.
    """
    against = None if base is None else base.digest()
    blobs: dict[bytes, bytes] = {}
    committed: list[Tensor] = []
    parts = quantise_tensors(snapshot, base, fidelity)
    stored = encode_parts(
        parts, snapshot.scalars, against, blobs.__setitem__, lambda part: committed.append(part.tensor)
    )
    return stored, blobs, Snapshot(tuple(committed), snapshot.scalars)


def encode_exactly(snapshot: Snapshot, base: Snapshot | None) -> tuple[StoredSnapshot, dict[bytes, bytes]]:
    """Encode a committed snapshot once more, by itself or against another base, to the last bit.

    Returns:
        The record, and the frames by the SHA-256 of their bytes.

    Raises:
        MalformedError: as `encode_parts` does.
        DamagedError: likewise, or what was stored would be another snapshot.
    """
    stored, blobs, _ = encode(snapshot, base, "lossless")
    if stored.state_digest != snapshot.digest():
        raise DamagedError("snapshot stored anew", expected=snapshot.digest(), got=stored.state_digest)
    return stored, blobs


def encode_parts(
    parts: Iterable[Quantised],
    scalars: bytes,
    base: bytes | None,
    put: Callable[[bytes, bytes], object],
    note: Callable[[Quantised], object],
    *,
    beside: bool = False,
) -> StoredSnapshot:
    """Encode tensors that were quantised before.

    Args:
        parts: the tensors in the order of their names' UTF-8 bytes; taken one by one, and each let go of once it is
            encoded, so that an iterator can hand out parts that nothing else keeps.
        scalars: canonical encoding of everything else.
        base: state digest of the committed snapshot whose tensors the parts' partners are; None if no part has one.
        put: takes the SHA-256 of each frame and the frame, as soon as there is one.
        note: told each part before it is encoded, for whoever needs its committed tensor, or all of its values once:
            who takes them block by block spares hashing a pass of its own.
        beside: whether another thread packs what this one encodes; ``put`` and ``note`` are called in this one.

    Returns:
        The record.

    Raises:
        MalformedError: tensors out of order, or scalars or tensors beyond the record's caps.
        DamagedError: undoing a step did not give back what was encoded, so memory or the zstd library is at fault.
    """
    rows: list[StoredTensor] = []
    with Packing(beside=beside) as packing:
        writer = _Writer(put, packing)
        for part in parts:
            note(part)
            rows.append(writer.add(part))
            part.forget()  # which others may hold
            del part  # before the next one is made
        groups = writer.finish()
    return StoredSnapshot(state_digest([row.entry for row in rows], scalars), base, scalars, tuple(rows), groups)


def _choose(part: Quantised, entry: TensorEntry) -> tuple[Encoding, Array | None]:
    """Return a tensor's encoding, and what its items are made of."""
    if not prod(part.shape):
        return Encoding.EXACT, part.items  # the one encoding of nothing
    if part.partner is not None and entry == part.partner.entry():
        return Encoding.SAME, None
    if part.scheme is Scheme.SHORT_DIFFERENCE and part.partner is None:
        return Encoding.BFLOAT16, part.items
    if part.scheme in _OF_SCHEME:
        return _OF_SCHEME[part.scheme], part.items
    if (upper := _upper_halves(part)) is not None:
        return Encoding.BFLOAT16, upper  # moments that are stored anew
    if part.partner is None or part.items is None or part.dtype not in FLOATS | INTEGERS:
        return Encoding.EXACT, part.items
    smaller = smaller_as_difference(part.dtype, part.items, part.partner.data)
    return Encoding.DIFFERENCE if smaller else Encoding.EXACT, part.items


class _Stream:
    """The items of one encoding and item size that are not yet in a full group."""

    def __init__(self, item_size: int) -> None:
        self.buffer = np.empty(max(GROUP // item_size, 1), f"<u{item_size}")
        self.filled = 0
        self.groups: list[StoredGroup] = []


class _Writer:
    """Takes parts one by one and makes the groups and frames of all streams."""

    def __init__(self, put: Callable[[bytes, bytes], object], packing: Packing) -> None:
        self._put = put
        self._packing = packing
        self._streams: dict[tuple[Encoding, int], _Stream] = {}
        self._begun: deque[tuple[tuple[Encoding, int], _Stream, int, Future[Frames]]] = (
            deque()
        )  # groups, by their items

    def add(self, part: Quantised) -> StoredTensor:
        """Encode a tensor and return its row."""
        entry = part.entry()
        encoding, source = _choose(part, entry)
        row = StoredTensor(entry, encoding, part.exponent if encoding in SCALED else 0)
        if row.holds_items and source is not None:
            stream = self._streams.get(row.stream)
            if stream is None:
                stream = self._streams[row.stream] = _Stream(row.stream[1])
            for elements, room in self._rooms(row, stream):
                _write(row, part, elements, source, room)
        return row

    def finish(self) -> tuple[StoredGroup, ...]:
        """Return the groups of all streams, in the record's order."""
        streams = sorted(self._streams.items(), key=lambda item: item[0])
        for key, stream in streams:
            self._flush(key, stream)
        while self._begun:
            self._take()
        return tuple(group for _, stream in streams for group in stream.groups)

    def _rooms(self, row: StoredTensor, stream: _Stream) -> Iterator[tuple[slice, Array]]:
        """Yield ranges of a tensor's elements with the room for their items, which is filled when asked for more."""
        start, count = 0, row.count
        while start < count:
            taken = min(count - start, stream.buffer.size - stream.filled)
            yield slice(start, start + taken), stream.buffer[stream.filled : stream.filled + taken]
            stream.filled += taken
            start += taken
            if stream.filled == stream.buffer.size:
                self._flush(row.stream, stream)

    def _flush(self, key: tuple[Encoding, int], stream: _Stream) -> None:
        if not stream.filled:
            return
        items = stream.buffer[: stream.filled]
        self._begun.append((key, stream, items.size, self._packing.begin(items)))
        if len(self._begun) > self._packing.ahead:
            self._take()
        if self._begun:  # this one is the last of them
            stream.buffer = np.empty_like(stream.buffer)
        stream.filled = 0

    def _take(self) -> None:
        """Hand out the frames of the first group that is being packed."""
        key, stream, count, packed = self._begun.popleft()
        found = []
        for digest, frame in packed.result():
            self._put(digest, frame)
            found.append(StoredFrame(digest, len(frame)))
        stream.groups.append(StoredGroup(*key, count, tuple(found)))


def _write(row: StoredTensor, part: Quantised, elements: slice, source: Array, out: Array) -> None:
    """Make the items of a range of elements."""
    partner = None if part.partner is None else part.partner.data[elements]
    if not write_items(row.encoding, row.entry.dtype, source[elements], partner, out):
        raise DamagedError(f"tensor {part.name} does not decode to what was encoded")


def _upper_halves(part: Quantised) -> Array | None:
    """Return the upper 16 bits of a tensor's words, which is float32; None if there is more to it."""
    if part.dtype != "float32" or part.items is None or not part.items.size:
        return None
    word = bits(part.items)
    if any(np.bitwise_or.reduce(word[start : start + BLOCK]) & 0xFFFF for start in range(0, word.size, BLOCK)):
        return None
    return (word >> UPPER_BITS).astype("<u2")
