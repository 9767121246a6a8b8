"""The paper's distances between two snapshots' parameters: l1, l2, linf and cos, in float64.

Over all ``parameter/*`` tensors of a floating-point type strung together. Implements specs/run-records.md, section
"Norms" (paper, Table I and Algorithm 2).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from polstore.errors import MalformedError
from polstore.wire.segment import Norms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from polstore.codec.snapshot import Array, Snapshot, Tensor

__all__ = ["distances"]

BLOCK = 1 << 15  # elements converted to float64 at a time: 256 KiB each, so that all temporaries stay in the cache


def distances(start: Snapshot, end: Snapshot) -> Norms:
    """Return how far the parameters of ``end`` are from those of ``start``.

    ``cos`` is 1 - cos(angle between the two weight vectors); 0 where either is zero.

    Raises:
        MalformedError: the snapshots do not have the same parameters.
    """
    l1 = squares = largest = dot = start_squares = end_squares = 0.0
    with np.errstate(all="ignore"):  # a diverged run has NaN and infinities, and so have its norms
        for before, after in _pairs(start, end):
            difference = after - before
            squares += _dot(difference, difference)
            magnitude = np.abs(difference, out=difference)
            l1 += float(magnitude.sum())
            peak = float(magnitude.max())
            largest = peak if math.isnan(peak) or peak > largest else largest
            dot += _dot(before, after)
            start_squares += _dot(before, before)
            end_squares += _dot(after, after)
    scale = math.sqrt(start_squares) * math.sqrt(end_squares)
    return Norms(l1, math.sqrt(squares), largest, 1.0 - dot / scale if scale else 0.0)


def _pairs(start: Snapshot, end: Snapshot) -> Iterator[tuple[Array, Array]]:
    """Yield float64 blocks of each parameter at both ends."""
    for before in start.tensors:
        if not before.name.startswith("parameter/") or before.data.size == 0 or not _is_float(before):
            continue
        after = end.partner(before.name, before.dtype, before.shape)
        if after is None:
            raise MalformedError(f"tensor {before.name} is not the same at both ends", expected=before.shape, got=None)
        for first in range(0, before.data.size, BLOCK):
            block = slice(first, first + BLOCK)
            yield _wide(before, block), _wide(after, block)


def _dot(one: Array, other: Array) -> float:
    """Return the inner product, computed in this thread: a BLAS would wake threads of its own beside the training's."""
    return float(np.einsum("i,i->", one, other))


def _is_float(tensor: Tensor) -> bool:
    return tensor.dtype in ("float16", "bfloat16", "float32", "float64")


def _wide(tensor: Tensor, block: slice) -> Array:
    data = tensor.data[block]
    if tensor.dtype == "bfloat16":  # the upper half of a float32
        data = (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float64)
