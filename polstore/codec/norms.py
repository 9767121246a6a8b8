"""The paper's distances between two snapshots' parameters: l1, l2, linf and cos, in float64.

Over all ``parameter/*`` tensors of a floating-point type strung together. Implements specs/run-records.md, section
"Norms" (paper, Table I and Algorithm 2), which leaves the order of summation free.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from polstore.codec import native
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
    """Distances between two snapshots whose parameters come one by one, both ends of each together."""

    def __init__(self) -> None:
        self._l1 = self._squares = self._largest = self._dot = self._start = self._end = 0.0

    def add(self, before: Tensor | Quantised, after: Tensor | Quantised | None) -> None:
        """Take a parameter of the start and that of the end into account.

        Raises:
            MalformedError: there is none at the end, or one of another dtype or shape.
        """
        if after is None or (before.dtype, before.shape) != (after.dtype, after.shape):
            raise MalformedError(f"tensor {before.name} is not the same at both ends", expected=before.shape, got=None)
        if before.dtype not in ("float16", "bfloat16", "float32", "float64"):
            return
        for start, end in zip(before.blocks(), after.blocks(), strict=True):
            l1, squares, largest, dot, own, other = _sums(_plain(before.dtype, start), _plain(before.dtype, end))
            self._l1 += l1
            self._squares += squares
            self._largest = largest if math.isnan(largest) or largest > self._largest else self._largest
            self._dot += dot
            self._start += own
            self._end += other

    def norms(self) -> Norms:
        """Return the distances; ``cos`` is 1 - cos(angle between the two weight vectors), 0 where either is zero."""
        scale = math.sqrt(self._start) * math.sqrt(self._end)
        cos = 1.0 - self._dot / scale if scale else 0.0
        return Norms(self._l1, math.sqrt(self._squares), self._largest, cos)


def _sums(before: Array, after: Array) -> tuple[float, float, float, float, float, float]:
    """Return sums over a block of float32 or float64; which ones, `polstore.codec._native.distances` says."""
    if native.compiled is not None:
        return native.compiled.distances(before, after, before.dtype.itemsize)
    with np.errstate(all="ignore"):  # a diverged run has NaN and infinities, and so have its norms
        before, after = before.astype("<f8", copy=False), after.astype("<f8", copy=False)
        between = np.abs(after - before)
        return (
            float(between.sum()),
            _dot(between, between),
            float(between.max(initial=0.0)),
            _dot(before, after),
            _dot(before, before),
            _dot(after, after),
        )


def _dot(one: Array, other: Array) -> float:
    """Return the inner product, computed in this thread: a BLAS would wake threads of its own beside the training's."""
    return float(np.einsum("i,i->", one, other))


def _plain(dtype: str, values: Array) -> Array:
    """Return numbers as float32 or float64."""
    if dtype == "bfloat16":  # the upper half of a float32
        return (values.astype("<u4") << 16).view("<f4")
    return values.astype("<f4") if dtype == "float16" else values
