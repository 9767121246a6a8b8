"""Decoding: a snapshot, or one tensor of it, from its record and frames.

Takes a hostile record and hostile frames: sizes are checked before anything is allocated, and the outcome either has
the digests of the record or is refused. Implements "Stored snapshot" of specs/codec.md, the reader's part. Does no I/O:
frames are fetched through a function.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from polstore.codec.framing import Unpacker
from polstore.codec.items import read_values
from polstore.codec.snapshot import CARRIER, Snapshot, Tensor
from polstore.codec.stored import NEEDS_BASE, Encoding
from polstore.codec.threads import available, in_order
from polstore.errors import MalformedError, MissingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from polstore.codec.snapshot import Array
    from polstore.codec.stored import StoredGroup, StoredSnapshot, StoredTensor
    from polstore.wire.state import TensorEntry

__all__ = ["DEFAULT_MAX_BYTES", "decode", "decode_against", "decode_tensor", "require"]

DEFAULT_MAX_BYTES = 64 << 30  # of decoded tensors: a 5 G parameter AdamW state; larger ones are asked for knowingly
PORTION = 32 << 20  # bytes of tensors for one thread, at least: at its ends groups of 1 MiB are unpacked twice


def decode(
    stored: StoredSnapshot,
    base: Snapshot | None,
    fetch: Callable[[bytes], bytes],
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Snapshot:
    """Rebuild a snapshot from its record and frames, in a few threads where it is large.

    Args:
        stored: the record, possibly hostile.
        base: the snapshot whose digest is ``stored.base``; None if that is None.
        fetch: returns a frame's bytes, given their SHA-256; called from several threads at once. The bytes need not be
            checked against the digest: the outcome is. Of all that it raises and of all that is wrong, what concerns
            the first tensor in the record's order is raised.
        max_bytes: cap on the decoded size of all tensors. Besides these and the base, each thread holds one group of at
            most 4 MiB for each pair of encoding and item size in use.

    Returns:
        The snapshot, whose digest is ``stored.state_digest``. Tensors equal to the base's share its arrays.

    Raises:
        MalformedError: too large, another base than the record names, or frames that do not lead to the digest.
    """
    got = base.digest() if base is not None else None
    if got != stored.base:
        raise MalformedError("stored snapshot needs another base", expected=stored.base, got=got)
    return decode_against(stored, base, fetch, max_bytes=max_bytes, check=True)


def decode_against(
    stored: StoredSnapshot,
    base: Snapshot | None,
    fetch: Callable[[bytes], bytes],
    *,
    max_bytes: int,
    check: bool,
    only: frozenset[str] | None = None,
) -> Snapshot:
    """Do the work of `decode`, for `polstore.codec.chain`: the base is what it should be, or was decoded unchecked.

    Without ``check`` nothing is hashed and what comes out may be anything: use it as a base for `decode_against` only,
    whose checked outcome is right whatever it was decoded against, or `require` it to be right. With ``only``, no other
    tensors than those of these names are decoded, and no frames fetched that hold nothing else.
    """
    if stored.nbytes > max_bytes:
        raise MalformedError("stored snapshot is too large", expected=f"at most {max_bytes} bytes", got=stored.nbytes)

    def work(rows: list[StoredTensor]) -> list[Tensor]:
        unpacker = Unpacker()
        streams: dict[tuple[Encoding, int], _Stream] = {}
        tensors = []
        for row in rows:
            entry = row.entry
            partner = base.partner(entry.name, entry.dtype, entry.shape) if base is not None else None
            stream = None
            if row.holds_items:
                stream = streams.setdefault(row.stream, _Stream(stored.groups_of(row.stream), fetch, unpacker))
                stream.skip_to(stored.offset_of(row))
            tensor = _tensor(row, partner, stream)
            tensors.append(_checked(tensor, entry) if check else tensor)
        return tensors

    rows = [row for row in stored.tensors if only is None or row.entry.name in only]
    size = max(PORTION, stored.nbytes // (2 * available()))  # two for each thread, so that all are busy to the end
    tensors = chain.from_iterable(in_order(work, list(_portions(rows, size))))
    return Snapshot(tuple(tensors), stored.scalars)  # the record checked that its entries make its state digest


def require(stored: StoredSnapshot, snapshot: Snapshot) -> None:
    """Require a snapshot that was decoded unchecked to be the one of this record; raises `MalformedError`."""
    entries = {row.entry.name: row.entry for row in stored.tensors}
    in_order(lambda tensor: _checked(tensor, entries[tensor.name]), snapshot.tensors)


def _portions(rows: Iterable[StoredTensor], size: int) -> Iterator[list[StoredTensor]]:
    """Cut rows into portions of at least ``size`` bytes.

    They follow the record's order, and a row fails or not by itself: what is raised for the first is the same however
    they are cut.
    """
    portion: list[StoredTensor] = []
    held = 0
    for row in rows:
        portion.append(row)
        held += row.nbytes
        if held >= size:
            yield portion
            portion, held = [], 0
    if portion:
        yield portion


def decode_tensor(
    stored: StoredSnapshot,
    name: str,
    partner: Tensor | None,
    fetch: Callable[[bytes], bytes],
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Tensor:
    """Rebuild one tensor of a snapshot and fetch no other frames than those that hold some of it.

    Args:
        stored: the record, possibly hostile.
        name: of the tensor.
        partner: the tensor of that name in the base; None if there is none, or if the encoding does not need it.
        fetch: as for `decode`.
        max_bytes: cap on the decoded size of the tensor.

    Returns:
        The tensor, whose entry is that of the record.

    Raises:
        MissingError: the snapshot has no such tensor.
        MalformedError: too large, a partner that is missing or unlike it, or frames that do not lead to its digest.
    """
    row = stored.row(name)
    if row is None:
        raise MissingError(f"the snapshot has no tensor {name!r}")
    if row.nbytes > max_bytes:
        raise MalformedError(f"tensor {name} is too large", expected=f"at most {max_bytes} bytes", got=row.nbytes)
    like = partner is not None and (partner.dtype, partner.shape) == (row.entry.dtype, row.entry.shape)
    stream = None
    if row.holds_items:
        stream = _Stream(stored.groups_of(row.stream), fetch, Unpacker())
        stream.skip_to(stored.offset_of(row))
    return _checked(_tensor(row, partner if like else None, stream), row.entry)


class _Stream:
    """Hands out the items of one stream piece by piece and holds one group at a time.

    Args:
        groups: the stream's groups, in order.
        fetch: returns a frame by its SHA-256.
        unpacker: this thread's.
    """

    def __init__(self, groups: Iterable[StoredGroup], fetch: Callable[[bytes], bytes], unpacker: Unpacker) -> None:
        self._groups = iter(groups)
        self._fetch = fetch
        self._unpacker = unpacker
        self._position = 0  # of the next item to be handed out
        self._start = self._end = 0  # of the group that is held or was skipped last
        self._items: Array = np.empty(0, "|u1")

    def skip_to(self, position: int) -> None:
        """Go on to an item that is not before the next one; frames that hold nothing else are not fetched."""
        self._position = position

    def take(self, count: int) -> Iterator[Array]:
        """Yield the next ``count`` items, at least one, in pieces; the record made sure that they are there."""
        while count:
            while self._position >= self._end:
                self._next()
            piece = self._items[self._position - self._start :][:count]
            self._position += piece.size
            count -= piece.size
            yield piece

    def _next(self) -> None:
        group = next(self._groups)
        self._start, self._end = self._end, self._end + group.count
        if self._position < self._end:
            self._items = self._unpacker.unpack(group, self._fetch)


def _tensor(row: StoredTensor, partner: Tensor | None, stream: _Stream | None) -> Tensor:
    """Return the tensor of a row, unchecked; raises `MalformedError`."""
    entry = row.entry
    if partner is None and row.encoding in NEEDS_BASE:
        raise MalformedError(f"the base has no tensor like {entry.name}", expected=f"{entry.dtype} {entry.shape}")
    if row.encoding is Encoding.SAME and partner is not None:
        return partner
    if stream is None:
        data = np.empty(0, CARRIER[entry.dtype])
    else:
        data = _read(row, None if partner is None else partner.data, stream)
    return Tensor(entry.name, entry.dtype, entry.shape, data)


def _checked(tensor: Tensor, entry: TensorEntry) -> Tensor:
    """Return the tensor if it is that of the entry; raises `MalformedError`."""
    if tensor.entry() != entry:
        raise MalformedError(f"decoded tensor {entry.name}", expected=entry.digest, got=tensor.entry().digest)
    return tensor


def _read(row: StoredTensor, partner: Array | None, stream: _Stream) -> Array:
    """Return the values of a tensor that takes items of a stream, unchecked."""
    pieces = stream.take(row.count)
    first = next(pieces)  # so that nothing is allocated for a record whose frames do not exist
    data = np.empty(row.count, CARRIER[row.entry.dtype])
    start = 0
    for items in chain((first,), pieces):
        block = slice(start, start + items.size)
        under = None if partner is None else partner[block]
        read_values(row.encoding, row.entry.dtype, row.exponent, items, under, data[block])
        start += items.size
    return data
