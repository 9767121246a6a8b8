"""Lanes in host memory: what `polstore.codec.live.lanes` does in torch, by the compiled loops, tensor by tensor.

Each tensor is read once for its largest magnitude and once to be quantised and written back, in as many threads as
torch trains with.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch.autograd.graph import increment_version

from polstore.codec import native
from polstore.codec.live.lanes import Strung
from polstore.codec.live.rules import SMALLEST
from polstore.codec.proportion import FINE_BITS, PLACE, exponent_of_steps, tensor_key
from polstore.codec.quantise import Role, dropped_bits, exponent_of
from polstore.codec.quantised import Scheme
from polstore.codec.threads import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from polstore.codec.live.lanes import Row, Rule
    from polstore.codec.snapshot import Array

__all__ = ["HostLane"]

PIECE = 1 << 18  # elements of one tensor that are worked on at a time
PORTION = 1 << 20  # elements for one thread at a time, at least: less is sooner done than another thread is awake

T = TypeVar("T")


class Piece(NamedTuple):
    """Elements of one tensor: tensor ``number`` of the lane from element ``start`` on, and its place in the items."""

    number: int
    start: int
    live: Array
    base: Array | None
    items: slice


class HostLane(Strung):
    """Tensors on the CPU that the compiled loops work through."""

    def __init__(self, role: Role, rule: Rule, rows: list[Row], fidelity: str) -> None:
        super().__init__(role, rule, rows, torch.device("cpu"))
        self._fidelity = fidelity
        self._pieces = list(self._cut())

    def only(self, rows: list[Row]) -> HostLane:
        """Return a lane of some of these tensors."""
        return self if rows == self.rows else HostLane(self.role, self.rule, rows, self._fidelity)

    def begin(self) -> None:
        """Do nothing yet: there is no device that could go on by itself."""

    def peaks(self) -> list[float]:
        """Return each tensor's largest magnitude, of weights less their base; NaN or infinite if these loops cannot."""
        self._gather()

        def peak(piece: Piece) -> float:
            return (
                native.compiled.peak(piece.live) if piece.base is None else native.compiled.peak(piece.live, piece.base)
            )

        numbers = (piece.number for piece in self._pieces)
        peaks = self._largest(zip(numbers, self._each(peak), strict=True))
        if self.rule.scheme is Scheme.STEPPED_DELTA:
            return [math.inf if 0 < found < SMALLEST else found for found in peaks]
        return peaks

    def exponents(self, peaks: Sequence[float]) -> list[int]:
        """Return the exponent of each tensor's scale."""
        if self.rule.scheme is Scheme.SCALED_DELTA:
            return [exponent_of(peak) for peak in peaks]
        if self.rule.scheme is not Scheme.STEPPED_DELTA:
            return [0] * len(peaks)
        tops = [math.frexp(peak)[1] for peak in peaks]
        sums = [(0, 0)] * len(peaks)

        def add_up(piece: Piece) -> tuple[int, int]:
            if piece.base is None:
                return 0, 0
            return native.compiled.fine_sums(piece.live, piece.base, 2.0 ** (FINE_BITS - tops[piece.number]))

        for piece, (squares, count) in zip(self._pieces, self._each(add_up), strict=True):
            known = sums[piece.number]
            sums[piece.number] = known[0] + squares, known[1] + count
        return [exponent_of_steps(top, *each) for top, each in zip(tops, sums, strict=True)]

    def quantise(self, exponents: Sequence[int], salt: bytes, items: torch.Tensor, *, write_back: bool) -> None:
        """Fill the items of all tensors, one after the other, and put the committed values into the live ones."""
        flat = self.rule.array(items)
        scheme, dropped = self.rule.scheme, dropped_bits(self._fidelity, self.role)
        keep = self.role is Role.SECOND_MOMENT
        rounded = scheme is not Scheme.SCALED_DELTA  # in proportion
        keys = [tensor_key(row.name, salt) if rounded else 0 for row in self.rows]
        loops = native.compiled

        def work(piece: Piece) -> None:
            own, exponent = flat[piece.items], exponents[piece.number]
            threshold = (keys[piece.number] + piece.start * PLACE) & 0xFFFFFFFF
            if piece.base is None:
                loops.to_upper(piece.live, own, threshold, dropped, keep, write_back)
            elif rounded:
                loops.to_steps(piece.live, piece.base, own, 2.0**-exponent, 2.0**exponent, threshold, write_back)
            else:
                loops.to_halves(piece.live, piece.base, own, 2.0**-exponent, 2.0**exponent, write_back)

        self._each(work)
        if write_back:
            self._put_back()
            for row in self.rows:
                increment_version(row.live)  # as torch does itself, so that backward() sees a change under its feet

    def _each(self, work: Callable[[Piece], T]) -> list[T]:
        """Return what ``work`` returns for each piece."""
        threads = torch.get_num_threads()
        portions: list[list[Piece]] = [[]]
        room = PORTION
        for piece in self._pieces:
            if room <= 0:
                portions.append([])
                room = PORTION
            portions[-1].append(piece)
            room -= piece.live.size
        found = in_order(lambda portion: [work(piece) for piece in portion], portions, threads)
        return list(chain.from_iterable(found))

    def _cut(self) -> Iterator[Piece]:
        first = 0
        for number, (row, flat) in enumerate(zip(self.rows, self._flat, strict=True)):
            live, base = flat.numpy(), None if row.base is None else row.base.numpy()
            for start in range(0, live.size, PIECE):
                some = slice(start, min(start + PIECE, live.size))
                place = slice(first + some.start, first + some.stop)
                yield Piece(number, start, live[some], None if base is None else base[some], place)
            first += live.size
