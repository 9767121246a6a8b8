"""Capturing the live state as it will be committed: quantised where it lives, written back, and copied out.

The values are those of `polstore.codec.quantise`, bit for bit; a property test compares the two. Here they come from a
few passes of torch over blocks that stay in the cache, on the device of the training, and only what has to be stored
leaves it: 2 bytes of 4 for weights and first moments. What is out of the ordinary (NaN, infinities, numbers near the
largest) goes through the reference implementation. Encoding, hashing and compressing are not done here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
LARGEST = 2.0**126  # of a base and of what is added to it: no rounding on the way can reach infinity
LARGEST_BITS = 0x7E800000  # of 2^126
FUSED = frozenset({"float16", "float16-writeback"})
PINNED = None  # in place of a device
HALF = 1 << (DROPPED_BITS - 1)  # of the last bit that is kept


@dataclass(frozen=True)
class Captured:
    """A captured state: for each tensor how its committed values come about, and the canonical scalars.

    Its arrays are good until the next capture. From a CUDA device they may still be on their way to the host: call
    `wait` before reading them.
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


class Capture:
    """Captures one training's state again and again; keeps working memory, and the base where it is needed.

    Args:
        fidelity: one of `polstore.codec.quantise.FIDELITIES`.
    """

    def __init__(self, fidelity: str) -> None:
        self._fidelity = fidelity
        self._writes_back = writes_back(fidelity)
        self._memory: dict[tuple[object, ...], torch.Tensor] = {}
        self._bases: dict[str, tuple[Tensor, torch.Tensor]] = {}
        self._known: tuple[object, ...] = ()  # what the lanes were made for
        self._lanes: list[_Lane] = []
        self._rest: list[tuple[_Row, Role]] = []

    def take(self, tensors: Mapping[str, torch.Tensor], scalars: bytes, base: Snapshot | None) -> Captured:
        """Capture a live state; where the fidelity writes back, training goes on from the committed values.

        Args:
            tensors: by name, as `LiveState.walk` returns them.
            scalars: likewise.
            base: the committed snapshot that the values are quantised against; None makes a keyframe, which is exact.

        Raises:
            TrainingError: a state that cannot be committed, or a thread that flushes subnormal numbers to zero.
        """
        if self._fidelity != "lossless":
            require_subnormals()
        names = sorted(tensors, key=str.encode)
        known = (base, *((name, *_place(tensors[name])) for name in names))
        with torch.no_grad():
            if base is None or known != self._known:
                self._arrange([(name, tensors[name].detach()) for name in names], base)
                self._known = known
            parts, arrived, rest = self._fused()
            parts.update((row.name, self._by_reference(row, role)) for row, role in rest)
        return Captured(tuple(parts[name] for name in names), scalars, arrived)

    def _arrange(self, tensors: Sequence[tuple[str, torch.Tensor]], base: Snapshot | None) -> None:
        """Decide which tensors are worked on together."""
        rows = []
        for name, live in tensors:
            dtype, shape = dtype_name(name, live), tuple(live.shape)
            rows.append(_Row(name, dtype, shape, live, None if base is None else base.partner(name, dtype, shape)))
        lanes: dict[tuple[Role, torch.device], list[_Row]] = {}
        self._rest = []
        for row, role in zip(rows, roles_of(rows), strict=True):
            fused = self._fidelity in FUSED and role is not Role.EXACT and row.partner is not None and row.live.numel()
            if fused and (role is not Role.WEIGHT or self._has_ordinary_base(row)):
                lanes.setdefault((role, row.live.device), []).append(row)
            else:
                self._rest.append((row, role))
        self._lanes = [_Lane(role, own, self._block(device)) for (role, device), own in lanes.items()]

    def _by_reference(self, row: _Row, role: Role) -> Quantised:
        """Quantise a tensor on the host."""
        part = quantise_tensor(to_host(row.name, row.live), row.partner, role, self._fidelity)
        if self._writes_back and part.scheme is not Scheme.EXACT:
            row.live.copy_(to_torch(part.tensor))
        return part

    def _fused(self) -> tuple[dict[str, Quantised], tuple[torch.cuda.Event, ...], list[tuple[_Row, Role]]]:
        """Quantise the tensors of each lane together, and return besides which ones only the reference can do."""
        parts: dict[str, Quantised] = {}
        arrived = []
        rest = list(self._rest)
        peaks = [lane.peaks() for lane in self._lanes]  # all begun before the first is fetched
        for whole, found in zip(self._lanes, peaks, strict=True):
            lane, peak = whole, whole.largest(found)
            if not all(0 < each <= LARGEST for each in peak):  # something is out of the ordinary, NaN for instance
                ordinary = []
                for row, each in zip(whole.rows, peak, strict=True):
                    if not each <= LARGEST:
                        rest.append((row, whole.role))
                    elif whole.role is Role.WEIGHT and each == 0:
                        parts[row.name] = Quantised(row.name, row.dtype, row.shape, row.partner, Scheme.UNCHANGED)
                        if self._writes_back and row.base is not None:
                            row.put(row.base)  # zeros take the sign of the base's
                    else:
                        ordinary.append((row, each))
                lane = _Lane(whole.role, [row for row, _ in ordinary], whole.memory)
                peak = [each for _, each in ordinary]
            if lane.rows:
                exponents = [0 if lane.role is Role.SECOND_MOMENT else exponent_of(each) for each in peak]
                items = self._items(lane, lane.memory.device)
                lane.quantise(exponents, items, self._second(lane.memory), write_back=self._writes_back)
                if items.is_cuda:
                    items = self._items(lane, PINNED).copy_(items, non_blocking=True)
                    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    event.record()
                    arrived.append(event)
                parts.update((part.name, part) for part in lane.parts(exponents, items))
        return parts, tuple(arrived), rest

    def _block(self, device: torch.device) -> torch.Tensor:
        """Return the memory in which blocks are worked on."""
        return self._kept(("block", device), BLOCK.get(device.type, BLOCK["cuda"]), torch.float32, device)

    def _second(self, block: torch.Tensor) -> torch.Tensor:
        """Return as much memory again, of integers."""
        return self._kept(("second", block.device), block.numel(), torch.int32, block.device)

    def _items(self, lane: _Lane, device: torch.device | None) -> torch.Tensor:
        """Return memory for a lane's items; on no device, host memory that a CUDA device can write to by itself."""
        dtype = torch.float32 if lane.role is Role.SECOND_MOMENT else torch.half
        return self._kept((lane.role, lane.memory.device, device), lane.count, dtype, device)

    def _kept(
        self, key: tuple[object, ...], count: int, dtype: torch.dtype, device: torch.device | None
    ) -> torch.Tensor:
        """Return the memory of that name, the same each time: touching new memory costs more than filling it."""
        memory = self._memory.get(key)
        if memory is None or memory.numel() < count:
            memory = torch.empty(count, dtype=dtype, device=device or "cpu", pin_memory=device is PINNED)
            self._memory[key] = memory
        return memory[:count]

    def _has_ordinary_base(self, row: _Row) -> bool:
        """Put the base's values of a weight beside it, and say whether they are small enough for the fused passes."""
        partner = row.partner
        if partner is None:
            return False
        kept, values = self._bases.get(row.name, (None, None))
        if kept is not partner or values is None:
            data = partner.data if partner.data.flags.writeable else partner.data.copy()  # torch has no read-only views
            values = torch.from_numpy(data).to(row.live.device)
            self._bases[row.name] = partner, values
        row.base = values
        return bool(values.abs().max() <= LARGEST)


@dataclass(eq=False)
class _Row:
    """A live tensor and its place in the snapshot; ``base`` are the base's values on its device, for weights."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    live: torch.Tensor
    partner: Tensor | None
    base: torch.Tensor | None = None

    def put(self, values: torch.Tensor) -> None:
        """Put values into the live tensor."""
        self.live.copy_(values.view(self.shape))


class _Block(NamedTuple):
    """Runs of elements that together fill some working memory, ``values``, of which ``views`` are the parts.

    ``numbers`` are those of the tensors that the runs belong to, ``live`` and ``bases`` the runs themselves.
    """

    values: torch.Tensor
    views: list[torch.Tensor]
    numbers: list[int]
    live: list[torch.Tensor]
    bases: list[torch.Tensor]


class _Lane:
    """The tensors of one role on one device, strung together and cut into blocks.

    A tensor that is not contiguous is copied into one that is, worked on there, and put back.
    """

    def __init__(self, role: Role, rows: list[_Row], memory: torch.Tensor) -> None:
        self.role = role
        self.rows = rows
        self.memory = memory
        self.count = sum(row.live.numel() for row in rows)
        self._flat = [row.live.contiguous().view(-1) for row in rows]
        self._strided = [
            (row, flat) for row, flat in zip(rows, self._flat, strict=True) if not row.live.is_contiguous()
        ]
        self._blocks = list(self._cut())

    def peaks(self) -> list[torch.Tensor]:
        """Return the smallest and the largest of the values to be quantised, or of second moments' bits, run by run."""
        for row, flat in self._strided:
            flat.view(row.shape).copy_(row.live)
        found: list[torch.Tensor] = []
        for block in self._blocks:
            runs = block.live
            if self.role is Role.WEIGHT:
                runs = block.views
                for live, base, view in zip(block.live, block.bases, block.views, strict=True):
                    torch.sub(live, base, out=view)
            elif self.role is Role.SECOND_MOMENT:
                runs = [live.view(torch.int32) for live in block.live]
            for run in runs:
                found += torch.aminmax(run)
        return [torch.stack(found)] if found else []

    def largest(self, found: list[torch.Tensor]) -> list[float]:
        """Return each tensor's largest magnitude, given what `peaks` found; NaN or more than LARGEST: not for here."""
        out = [0.0] * len(self.rows)
        numbers = [number for block in self._blocks for number in block.numbers]
        flat = found[0].tolist() if found else []
        for number, low, high in zip(numbers, flat[::2], flat[1::2], strict=True):
            if self.role is Role.SECOND_MOMENT:  # bits: without a sign, and of no number near the largest
                peak = 1.0 if low >= 0 and high <= LARGEST_BITS else math.inf
            else:
                peak = max(-low, high)
            if not (peak <= out[number] or math.isnan(out[number])):
                out[number] = peak
        return out

    def quantise(
        self, exponents: Sequence[int], items: torch.Tensor, second: torch.Tensor, *, write_back: bool
    ) -> None:
        """Fill the items of all tensors, one after the other, and put the committed values into the live ones."""
        start = 0
        for block in self._blocks:
            own = items[start : start + block.values.numel()]
            start += own.numel()
            if self.role is Role.WEIGHT:
                for live, base, view in zip(block.live, block.bases, block.views, strict=True):
                    torch.sub(live, base, out=view)
            else:
                torch._foreach_copy_(block.views, block.live)
            if self.role is Role.SECOND_MOMENT:
                _round_mantissa(block.values.view(torch.int32), second[: own.numel()])
                own.copy_(block.values)
            else:
                scales = [exponents[number] for number in block.numbers]
                torch._foreach_mul_(block.views, [2.0**-exponent for exponent in scales])
                own.copy_(block.values)  # rounds to float16
                block.values.copy_(own)
                torch._foreach_mul_(block.views, [2.0**exponent for exponent in scales])
            if not write_back:
                continue
            if self.role is Role.WEIGHT:
                for live, base, view in zip(block.live, block.bases, block.views, strict=True):
                    torch.add(base, view, out=live)
            else:
                torch._foreach_copy_(block.live, block.views)
        for row, flat in self._strided if write_back else ():
            row.put(flat)

    def parts(self, exponents: Sequence[int], items: torch.Tensor) -> Iterator[Quantised]:
        """Yield how each tensor's committed values come about."""
        schemes = {Role.WEIGHT: Scheme.SCALED_DELTA, Role.FIRST_MOMENT: Scheme.SCALED_VALUE}
        scheme = schemes.get(self.role, Scheme.ROUNDED)
        flat = items.numpy() if self.role is Role.SECOND_MOMENT else items.numpy().view("<u2")
        start = 0
        for row, exponent in zip(self.rows, exponents, strict=True):
            own = flat[start : start + row.live.numel()]
            start += own.size
            yield Quantised(row.name, row.dtype, row.shape, row.partner, scheme, exponent, own)

    def _cut(self) -> Iterator[_Block]:
        runs: list[tuple[int, int, int]] = []
        room = self.memory.numel()
        for number, flat in enumerate(self._flat):
            start = 0
            while start < flat.numel():
                end = min(start + room, flat.numel())
                runs.append((number, start, end))
                room -= end - start
                start = end
                if not room:
                    yield self._whole(runs)
                    runs, room = [], self.memory.numel()
        if runs:
            yield self._whole(runs)

    def _whole(self, runs: list[tuple[int, int, int]]) -> _Block:
        sizes = [end - start for _, start, end in runs]
        values = self.memory[: sum(sizes)]
        bases = [base[start:end] for number, start, end in runs if (base := self.rows[number].base) is not None]
        live = [self._flat[number][start:end] for number, start, end in runs]
        return _Block(values, list(torch.split(values, sizes)), [number for number, _, _ in runs], live, bases)


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return what tells one tensor's memory from another's."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device


def _round_mantissa(words: torch.Tensor, second: torch.Tensor) -> None:
    """Round the bits of non-negative float32 in place to 10 of mantissa: `polstore.codec.values.round_mantissa`."""
    vanishing = (words > 0) & (words <= HALF) if words.min() <= HALF else None
    torch.bitwise_right_shift(words, DROPPED_BITS, out=second)
    second &= 1  # a tie goes up just where that makes the result even
    second += HALF - 1
    words += second
    words &= -1 << DROPPED_BITS
    if vanishing is not None:  # nothing but zero becomes zero
        words.masked_fill_(vanishing, 1 << DROPPED_BITS)
