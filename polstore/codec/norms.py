"""The paper's distances between two snapshots' parameters: l1, l2, linf and cos, in float64.

Over all ``parameter/*`` tensors of a floating-point type strung together. Implements specs/run-records.md, section
"Norms" (paper, Table I and Algorithm 2).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from polstore.codec.snapshot import BLOCK
from polstore.errors import MalformedError
from polstore.wire.segment import Norms

if TYPE_CHECKING:
    from polstore.codec.quantised import Quantised
    from polstore.codec.snapshot import Array, Snapshot, Tensor

__all__ = ["Distances", "distances"]


def distances(start: Snapshot, end: Snapshot) -> Norms:
    """Return how far the parameters of ``end`` are from those of ``start``.

    Raises:
        MalformedError: the snapshots do not have the same parameters.
    """
    found = Distances()
    for before in start.tensors:
        if before.name.startswith("parameter/"):
            found.add(before, end.partner(before.name, before.dtype, before.shape))
    return found.norms()


class Distances:
    """Distances between two snapshots whose parameters come one by one, both ends of each together.

    Their values are strung together in float64, and summed up block by block.
    """

    def __init__(self) -> None:
        self._l1 = self._squares = self._largest = self._dot = self._start = self._end = 0.0
        self._before, self._after, self._between = (np.empty(BLOCK) for _ in range(3))
        self._filled = 0

    def add(self, before: Tensor | Quantised, after: Tensor | Quantised | None) -> None:
        """Take a parameter of the start and that of the end into account.

        Raises:
            MalformedError: there is none at the end, or one of another dtype or shape.
        """
        if after is None or (before.dtype, before.shape) != (after.dtype, after.shape):
            raise MalformedError(f"tensor {before.name} is not the same at both ends", expected=before.shape, got=None)
        if before.dtype not in ("float16", "bfloat16", "float32", "float64"):
            return
        with np.errstate(all="ignore"):  # a diverged run has NaN and infinities, and so have its norms
            for start, end in zip(before.blocks(), after.blocks(), strict=True):
                self._fill(_plain(before.dtype, start), _plain(before.dtype, end))

    def _fill(self, before: Array, after: Array) -> None:
        taken = 0
        while taken < before.size:
            some = slice(taken, taken + BLOCK - self._filled)
            room = slice(self._filled, self._filled + before[some].size)
            self._before[room] = before[some]
            self._after[room] = after[some]
            taken, self._filled = some.stop, room.stop
            if self._filled == BLOCK:
                self._sum_up()

    def _sum_up(self) -> None:
        before, after, between = (values[: self._filled] for values in (self._before, self._after, self._between))
        self._filled = 0
        with np.errstate(all="ignore"):
            np.subtract(after, before, out=between)
            self._squares += _dot(between, between)
            np.abs(between, out=between)
            self._l1 += float(between.sum())
            peak = float(between.max(initial=0.0))
            self._largest = peak if math.isnan(peak) or peak > self._largest else self._largest
            self._dot += _dot(before, after)
            self._start += _dot(before, before)
            self._end += _dot(after, after)

    def norms(self) -> Norms:
        """Return the distances; ``cos`` is 1 - cos(angle between the two weight vectors), 0 where either is zero."""
        self._sum_up()
        scale = math.sqrt(self._start) * math.sqrt(self._end)
        cos = 1.0 - self._dot / scale if scale else 0.0
        return Norms(self._l1, math.sqrt(self._squares), self._largest, cos)


def _dot(one: Array, other: Array) -> float:
    """Return the inner product, computed in this thread: a BLAS would wake threads of its own beside the training's."""
    return float(np.einsum("i,i->", one, other))


def _plain(dtype: str, values: Array) -> Array:
    if dtype == "bfloat16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values
