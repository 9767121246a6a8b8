"""Capturing the live state as it will be committed: quantised where it lives, written back, and copied out.

The values are those of `polstore.codec.quantise`, bit for bit; a property test compares the two. Here they come from a
few passes of torch over blocks that stay in the cache, on the device of the training, and only what has to be stored
leaves it: 2 bytes of 4 for weights and first moments. What is out of the ordinary (NaN, infinities, numbers near the
largest) goes through the reference implementation. Encoding, hashing and compressing are not done here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

from polstore.codec.live.arrays import dtype_name, to_host, to_torch
from polstore.codec.quantise import (
    Quantised,
    Role,
    Scheme,
    exponent_of,
    quantise_tensor,
    require_subnormals,
    roles_of,
    writes_back,
)
from polstore.codec.snapshot import Snapshot
from polstore.codec.values import DROPPED_BITS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from polstore.codec.snapshot import Tensor

__all__ = ["Capture", "Captured"]

BLOCK = {
    "cpu": 1 << 18,
    "cuda": 1 << 26,
}  # elements in flight: 1 MiB of float32 stays in a core's cache; a GPU has none
LARGEST = 2.0**127  # below this, no rounding on the way can reach infinity
FUSED = frozenset({"float16", "float16-writeback"})
SIGN = -0x80000000
MAGNITUDE = 0x7FFFFFFF


@dataclass(frozen=True)
class Captured:
    """A captured state: for each tensor how its committed values come about, and the canonical scalars.

    From a CUDA device the items may still be on their way to the host: call `wait` before reading them.
    """

    parts: tuple[Quantised, ...]
    scalars: bytes
    arrived: tuple[torch.cuda.Event, ...] = ()

    @property
    def committed(self) -> Snapshot:
        """The committed snapshot; its arrays are made on the first call."""
        self.wait()
        return Snapshot(tuple(part.tensor for part in self.parts), self.scalars)

    def wait(self) -> None:
        """Wait until all items are on the host."""
        for event in self.arrived:
            event.synchronize()


@dataclass(eq=False)
class _Row:
    """A live tensor and its place in the snapshot.

    ``flat`` holds its elements in row-major order: the same memory where it is contiguous, else a copy. ``base`` are
    those of the base, on the same device; only weights need them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    live: torch.Tensor
    partner: Tensor | None
    exponent: int = 0
    base: torch.Tensor | None = None

    @cached_property
    def flat(self) -> torch.Tensor:
        return self.live.contiguous().view(-1)

    def put(self, values: torch.Tensor) -> None:
        """Put values into the live tensor."""
        self.live.copy_(values.view(self.shape))


class Capture:
    """Captures one training's state again and again; keeps working memory and the base between calls.

    Args:
        fidelity: one of `polstore.codec.quantise.FIDELITIES`.
    """

    def __init__(self, fidelity: str) -> None:
        self._fidelity = fidelity
        self._writes_back = writes_back(fidelity)
        self._scratch: dict[torch.device, torch.Tensor] = {}
        self._bases: dict[str, tuple[Tensor, torch.Tensor]] = {}

    def take(self, tensors: Mapping[str, torch.Tensor], scalars: bytes, base: Snapshot | None) -> Captured:
        """Capture a live state; where the fidelity writes back, training goes on from the committed values.

        Args:
            tensors: by name, as `LiveState.walk` returns them.
            scalars: likewise.
            base: the committed snapshot that the values are quantised against; None makes a keyframe, which is exact.

        Raises:
            TrainingError: a state that cannot be committed, or a thread that flushes subnormal numbers to zero.
        """
        rows = []
        for name in sorted(tensors, key=str.encode):
            live = tensors[name].detach()
            dtype, shape = dtype_name(name, live), tuple(live.shape)
            rows.append(_Row(name, dtype, shape, live, None if base is None else base.partner(name, dtype, shape)))
        if self._fidelity != "lossless":
            require_subnormals()
        lanes: dict[tuple[Role, torch.device], list[_Row]] = {}
        rest: list[tuple[_Row, Role]] = []
        for row, role in zip(rows, roles_of(rows), strict=True):
            if self._fidelity in FUSED and role is not Role.EXACT and row.partner is not None and row.live.numel():
                lanes.setdefault((role, row.live.device), []).append(row)
            else:
                rest.append((row, role))
        with torch.no_grad():
            parts, arrived = self._fused(lanes, rest)
            parts.update((row.name, self._by_reference(row, role)) for row, role in rest)
        return Captured(tuple(parts[row.name] for row in rows), scalars, arrived)

    def _by_reference(self, row: _Row, role: Role) -> Quantised:
        """Quantise a tensor on the host."""
        part = quantise_tensor(to_host(row.name, row.live), row.partner, role, self._fidelity)
        if self._writes_back and part.scheme is not Scheme.EXACT:
            row.live.copy_(to_torch(part.tensor))
        return part

    def _fused(
        self, lanes: dict[tuple[Role, torch.device], list[_Row]], rest: list[tuple[_Row, Role]]
    ) -> tuple[dict[str, Quantised], tuple[torch.cuda.Event, ...]]:
        """Quantise the tensors of each role together, and add to ``rest`` what only the reference can do."""
        parts: dict[str, Quantised] = {}
        arrived = []
        peaks = []
        for (role, device), rows in lanes.items():
            for row in rows if role is Role.WEIGHT else ():
                row.base = self._base(row)
            peaks.append(_peaks(role, rows, self._block(device)))
        for ((role, device), rows), found in zip(lanes.items(), _on_host(peaks), strict=True):
            ordinary = []
            for row, (live, delta) in zip(rows, found, strict=True):
                if not (live <= LARGEST and delta <= LARGEST):  # NaN included
                    rest.append((row, role))
                elif role is Role.WEIGHT and delta == 0:
                    parts[row.name] = Quantised(row.name, row.dtype, row.shape, row.partner, Scheme.UNCHANGED)
                    if self._writes_back and row.base is not None:
                        row.put(row.base)  # zeros take the sign of the base's
                else:
                    row.exponent = 0 if role is Role.SECOND_MOMENT else exponent_of(delta)
                    ordinary.append(row)
            if ordinary:
                items = _quantised(role, ordinary, self._block(device), write_back=self._writes_back)
                if items.is_cuda:
                    host = torch.empty(items.shape, dtype=items.dtype, pin_memory=True)
                    items = host.copy_(items, non_blocking=True)
                    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    event.record()
                    arrived.append(event)
                parts.update((part.name, part) for part in _parts(role, ordinary, items))
        return parts, tuple(arrived)

    def _block(self, device: torch.device) -> torch.Tensor:
        """Return the memory in which blocks are worked on."""
        if device not in self._scratch:
            self._scratch[device] = torch.empty(BLOCK.get(device.type, BLOCK["cuda"]), device=device)
        return self._scratch[device]

    def _base(self, row: _Row) -> torch.Tensor:
        """Return the base's values of a tensor, flat; on another device they stay while the base is the same."""
        partner = row.partner
        if partner is None:
            raise AssertionError(f"{row.name} has no partner")
        kept, values = self._bases.get(row.name, (None, None))
        if kept is not partner or values is None:
            data = partner.data if partner.data.flags.writeable else partner.data.copy()  # torch has no read-only views
            values = torch.from_numpy(data).to(row.live.device)
            self._bases[row.name] = partner, values
        return values


class _Piece(NamedTuple):
    """A run of one tensor's elements; ``number`` is the tensor's among those of its role."""

    number: int
    live: torch.Tensor
    base: torch.Tensor | None


class _Block(NamedTuple):
    """Pieces that together fill some working memory, ``values``, of which ``views`` are the parts."""

    values: torch.Tensor
    views: list[torch.Tensor]
    pieces: list[_Piece]

    @property
    def live(self) -> list[torch.Tensor]:
        return [piece.live for piece in self.pieces]

    @property
    def bases(self) -> list[torch.Tensor]:
        return [piece.base for piece in self.pieces if piece.base is not None]


def _blocks(rows: Sequence[_Row], memory: torch.Tensor) -> Iterator[_Block]:
    """String the tensors together and cut them so that each block fills ``memory``."""
    pieces: list[_Piece] = []
    room = memory.numel()
    for number, row in enumerate(rows):
        start = 0
        while start < row.flat.numel():
            end = min(start + room, row.flat.numel())
            pieces.append(_Piece(number, row.flat[start:end], None if row.base is None else row.base[start:end]))
            room -= end - start
            start = end
            if not room:
                yield _whole(pieces, memory)
                pieces, room = [], memory.numel()
    if pieces:
        yield _whole(pieces, memory[: memory.numel() - room])


def _whole(pieces: list[_Piece], values: torch.Tensor) -> _Block:
    views = torch.split(values, [piece.live.numel() for piece in pieces])
    return _Block(values, list(views), pieces)


def _peaks(role: Role, rows: Sequence[_Row], memory: torch.Tensor) -> torch.Tensor:
    """Return for each tensor bounds of its magnitudes and of those that are quantised, shape (rows, 2); NaN if any is.

    The first bound may be that of a neighbour in its block: it is there to tell the ordinary case from all others.
    """
    found: list[list[torch.Tensor]] = [[] for _ in rows]
    for block in _blocks(rows, memory):
        if role is Role.WEIGHT:
            torch._foreach_copy_(block.views, block.live)
            live = torch.stack(torch.aminmax(block.values))
            torch._foreach_sub_(block.views, block.bases)
            for piece, view in zip(block.pieces, block.views, strict=True):
                found[piece.number].append(torch.stack((live, torch.stack(torch.aminmax(view)))))
        else:
            for piece in block.pieces:
                own = torch.stack(torch.aminmax(piece.live))
                found[piece.number].append(torch.stack((own, own)))
    return torch.stack([torch.stack(each).abs().amax(dim=(0, 2)) for each in found])


def _on_host(peaks: Sequence[torch.Tensor]) -> list[list[tuple[float, float]]]:
    """Fetch all bounds at once: on a CUDA device each fetch would wait for it."""
    return [[(live, delta) for live, delta in each.tolist()] for each in peaks]


def _quantised(role: Role, rows: Sequence[_Row], memory: torch.Tensor, *, write_back: bool) -> torch.Tensor:
    """Return the items of all tensors, one after the other, and put the committed values into the live ones."""
    total = sum(row.flat.numel() for row in rows)
    dtype = torch.float32 if role is Role.SECOND_MOMENT else torch.half
    items = torch.empty(total, dtype=dtype, device=memory.device)
    start = 0
    for block in _blocks(rows, memory):
        own = items[start : start + block.values.numel()]
        start += own.numel()
        torch._foreach_copy_(block.views, block.live)
        if role is Role.SECOND_MOMENT:
            _round_mantissa(block.values)
            own.copy_(block.values)
        else:
            _to_halves(block, [rows[piece.number].exponent for piece in block.pieces], own)
        if write_back:
            torch._foreach_copy_(block.live, block.views)
    for row in rows:
        if write_back and not row.live.is_contiguous():
            row.put(row.flat)
    return items


def _to_halves(block: _Block, exponents: list[int], halves: torch.Tensor) -> None:
    """Scale, round to float16 and back; against the base where there is one."""
    bases = block.bases
    if bases:
        torch._foreach_sub_(block.views, bases)
    torch._foreach_mul_(block.views, [2.0**-exponent for exponent in exponents])
    halves.copy_(block.values)
    block.values.copy_(halves)
    torch._foreach_mul_(block.views, [2.0**exponent for exponent in exponents])
    if bases:
        torch._foreach_add_(block.views, bases)


def _round_mantissa(values: torch.Tensor) -> None:
    """Round float32 values in place to 10 bits of mantissa: `polstore.codec.values.round_mantissa`."""
    word = values.view(torch.int32)
    sign = word & SIGN
    word &= MAGNITUDE
    nonzero = word != 0
    odd = (word >> DROPPED_BITS) & 1
    word += odd
    word += (1 << (DROPPED_BITS - 1)) - 1
    word >>= DROPPED_BITS
    torch.maximum(word, nonzero, out=word)
    word <<= DROPPED_BITS
    word |= sign


def _parts(role: Role, rows: Sequence[_Row], items: torch.Tensor) -> Iterator[Quantised]:
    """Yield how each tensor's committed values come about."""
    scheme = {Role.WEIGHT: Scheme.SCALED_DELTA, Role.FIRST_MOMENT: Scheme.SCALED_VALUE}.get(role, Scheme.ROUNDED)
    flat = items.numpy() if role is Role.SECOND_MOMENT else items.numpy().view("<u2")
    start = 0
    for row in rows:
        own = flat[start : start + row.flat.numel()]
        start += own.size
        yield Quantised(row.name, row.dtype, row.shape, row.partner, scheme, row.exponent, own)
