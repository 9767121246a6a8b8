"""Lanes: the tensors of one role on one device, strung together and worked through in blocks that stay in the cache.

What happens to a block is up to a rule (`polstore.codec.live.rules`). Knows no snapshot and decides nothing about what
is committed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from polstore.codec.proportion import PLACE
from polstore.codec.quantise import Role
from polstore.codec.quantised import Quantised, Scheme

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from polstore.codec.snapshot import Array, Tensor

__all__ = ["BLOCK", "Block", "Lane", "Row", "Rule", "Strung", "Workspace"]

# Elements in flight: 1 MiB of float32 stays in the cache of a core; a GPU has none of that size and wants few calls.
BLOCK = {"cpu": 1 << 18, "cuda": 1 << 26}


@dataclass(eq=False)
class Row:
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


class Workspace(NamedTuple):
    """Memory to work in, each part as large as a block: ``values`` float32, the others int32.

    ``places`` are the multiples 0, 1, 2, … of `polstore.codec.proportion.PLACE` modulo 2^32, and stay so.
    """

    values: torch.Tensor
    words: torch.Tensor
    more: torch.Tensor
    places: torch.Tensor

    @classmethod
    def on(cls, device: torch.device) -> Workspace:
        """Return new memory on a device."""
        size = BLOCK.get(device.type, BLOCK["cuda"])
        words, more = (torch.empty(size, dtype=torch.int32, device=device) for _ in range(2))
        places = torch.arange(size, dtype=torch.int64, device=device).mul_(PLACE).to(torch.int32)
        values = torch.empty(size, dtype=torch.float32, device=device)  # whatever torch's default dtype is
        return cls(values, words, more, places)


class Run(NamedTuple):
    """Elements of one tensor in a block: tensor ``number`` of the lane from element ``start`` on."""

    number: int
    start: int
    live: torch.Tensor
    base: torch.Tensor | None
    values: torch.Tensor


class Block(NamedTuple):
    """Runs that together fill the workspace, or the last part of a lane.

    ``values``, ``words`` and ``more`` are the workspace cut to their size, ``views`` the runs' parts of ``values``.
    """

    runs: list[Run]
    values: torch.Tensor
    words: torch.Tensor
    more: torch.Tensor
    views: list[torch.Tensor]

    def load(self) -> None:
        """Fill the values: the live ones, less the base's where there is one."""
        if self.runs[0].base is None:
            torch._foreach_copy_(self.views, [run.live for run in self.runs])
            return
        for run in self.runs:
            if run.base is not None:
                torch.sub(run.live, run.base, out=run.values)

    def write_back(self) -> None:
        """Put the values, plus the base's where there is one, into the live tensors."""
        if self.runs[0].base is None:
            torch._foreach_copy_([run.live for run in self.runs], self.views)
            return
        for run in self.runs:
            if run.base is not None:
                torch.add(run.base, run.values, out=run.live)


class Rule(Protocol):
    """How the values of a role become items.

    Attributes:
        scheme: what comes out.
        dtype: of the items.
    """

    @property
    def scheme(self) -> Scheme:
        """As above."""

    @property
    def dtype(self) -> torch.dtype:
        """As above."""

    def extremes(self, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the smallest and the largest of what `peak` judges, two tensors without dimension."""

    def peak(self, low: float, high: float) -> float:
        """Return a tensor's largest magnitude; above `LARGEST` or NaN, this rule cannot do it."""

    def exponents(self, lane: Lane, peaks: Sequence[float]) -> list[int]:
        """Return the exponent of each tensor's scale."""

    def apply(self, lane: Lane, block: Block, exponents: Sequence[int], salt: bytes, items: torch.Tensor) -> None:
        """Turn the values of a block, of a tensor less its base, into committed ones, and fill in its items.

        The salt is that of the snapshot (`polstore.codec.proportion.salt_of`).
        """

    def array(self, items: torch.Tensor) -> Array:
        """Return items on the host as `Quantised` wants them."""


class Strung:
    """Tensors of one role on one device, one after the other.

    One that is not contiguous is copied before it is worked on, and put back at the end.
    """

    def __init__(self, role: Role, rule: Rule, rows: list[Row], device: torch.device) -> None:
        self.role = role
        self.rule = rule
        self.rows = rows
        self.device = device
        self.count = sum(row.live.numel() for row in rows)
        self._flat = [row.live.contiguous().view(-1) for row in rows]
        pairs = zip(rows, self._flat, strict=True)
        self._strided = [(row, flat) for row, flat in pairs if not row.live.is_contiguous()]

    def parts(self, exponents: Sequence[int], items: torch.Tensor) -> Iterator[Quantised]:
        """Yield how each tensor's committed values come about, given its items on the host."""
        flat = self.rule.array(items)
        alone = self.rule.scheme is Scheme.BFLOAT16
        start = 0
        for row, exponent in zip(self.rows, exponents, strict=True):
            own = flat[start : start + row.live.numel()]
            start += own.size
            partner = None if alone else row.partner
            yield Quantised(row.name, row.dtype, row.shape, partner, self.rule.scheme, exponent, own)

    def _gather(self) -> None:
        for row, flat in self._strided:
            flat.view(row.shape).copy_(row.live)

    def _put_back(self) -> None:
        for row, flat in self._strided:
            row.put(flat)

    def _largest(self, found: Iterable[tuple[int, float]]) -> list[float]:
        """Return each tensor's largest, given tensors by their numbers and magnitudes in them; NaN if there is one."""
        peaks = [0.0] * len(self.rows)
        for number, peak in found:
            known = peaks[number]
            if not peak <= known and known == known:  # neither smaller, nor is there a NaN already
                peaks[number] = peak
        return peaks


class Lane(Strung):
    """Tensors that torch works through, on any device."""

    def __init__(self, role: Role, rule: Rule, rows: list[Row], workspace: Workspace) -> None:
        super().__init__(role, rule, rows, workspace.values.device)
        self.workspace = workspace
        self.blocks = list(self._cut())
        self._extremes: torch.Tensor | None = None  # of each run, one after the other

    def only(self, rows: list[Row]) -> Lane:
        """Return a lane of some of these tensors."""
        return self if rows == self.rows else Lane(self.role, self.rule, rows, self.workspace)

    def begin(self) -> None:
        """Begin to find the smallest and the largest of every run, for `peaks`; a GPU need not be waited for."""
        self._gather()
        found: list[torch.Tensor] = []
        for block in self.blocks:
            if self.role is Role.WEIGHT:
                block.load()
            for run in block.runs:
                found += self.rule.extremes(run)
        self._extremes = torch.stack(found) if found else None

    def peaks(self) -> list[float]:
        """Return each tensor's largest magnitude by its rule, as `begin` found it; NaN if it has one."""
        flat = [] if self._extremes is None else self._extremes.tolist()
        runs = (run for block in self.blocks for run in block.runs)
        extremes = zip(runs, flat[::2], flat[1::2], strict=True)
        return self._largest((run.number, self.rule.peak(low, high)) for run, low, high in extremes)

    def exponents(self, peaks: Sequence[float]) -> list[int]:
        """Return the exponent of each tensor's scale."""
        return self.rule.exponents(self, peaks)

    def quantise(self, exponents: Sequence[int], salt: bytes, items: torch.Tensor, *, write_back: bool) -> None:
        """Fill the items of all tensors, one after the other, and put the committed values into the live ones."""
        start = 0
        for block in self.blocks:
            own = items[start : start + block.values.numel()]
            start += own.numel()
            block.load()
            self.rule.apply(self, block, exponents, salt, own)
            if write_back:
                block.write_back()
        if write_back:
            self._put_back()

    def _cut(self) -> Iterator[Block]:
        whole = self.workspace.values.numel()
        ranges: list[tuple[int, int, int]] = []
        room = whole
        for number, flat in enumerate(self._flat):
            start = 0
            while start < flat.numel():
                end = min(start + room, flat.numel())
                ranges.append((number, start, end))
                room -= end - start
                start = end
                if not room:
                    yield self._block(ranges)
                    ranges, room = [], whole
        if ranges:
            yield self._block(ranges)

    def _block(self, ranges: list[tuple[int, int, int]]) -> Block:
        sizes = [end - start for _, start, end in ranges]
        values, words, more, _ = (memory[: sum(sizes)] for memory in self.workspace)
        views = list(torch.split(values, sizes))
        runs = []
        for (number, start, end), view in zip(ranges, views, strict=True):
            base = self.rows[number].base
            live = self._flat[number][start:end]
            runs.append(Run(number, start, live, None if base is None else base[start:end], view))
        return Block(runs, values, words, more, views)
