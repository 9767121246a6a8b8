"""Noise: how far replays of one segment end from one another when nothing but rounding differs.

The verifier measures it himself, by replaying the segment under settings that round differently, so no word of the
prover is in it. Values only; the replays are `polverify.replay`'s, and what the noise means is `polverify.tolerance`'s.
Implements specs/tolerance.md, section "Noise floor".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from polstore.codec.quantise import Role, roles_of
from polstore.codec.snapshot import BLOCK, CARRIER, Array, Snapshot, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from polstore.errors import ReplayError
    from polstore.wire.segment import SegmentRecord
    from polstore.wire.steps import Steps

__all__ = ["UNIT", "Floor", "Replayed", "Segment", "distance", "gap", "largest_gap", "measure", "shaken", "size"]

UNIT = {  # distance of 1 from the next number: the rounding unit of a dtype
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
    "complex64": 2.0**-23,
    "complex128": 2.0**-52,
}
# How far rounding moves at most what it rounds: half a step of float16, and, in proportion, a whole step of bfloat16.
DELTA_ROUNDING = 2.0**-11
MOMENT_ROUNDING = 2.0**-7
_PARTS = {"complex64": "<f4", "complex128": "<f8"}  # a complex tensor counts as its real and imaginary parts


@dataclass(frozen=True, eq=False)
class Segment:
    """All that a replay of one segment needs.

    Attributes:
        record: its record.
        steps: its step records.
        start: the committed snapshot that it starts from.
        base: the committed snapshot that its end is quantised against, or None.
        start_rounded: whether training went on from other values than those of ``start`` (fidelity ``float16``).
        start_base: the committed snapshot that ``start`` was quantised against, as far as it is at hand; ``start``
            itself where that is a keyframe, whose weights are exact.
        fidelity: of the run.
    """

    record: SegmentRecord
    steps: Steps
    start: Snapshot
    base: Snapshot | None
    start_rounded: bool = False
    start_base: Snapshot | None = None
    fidelity: str = "lossless"

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"segment {self.record.index}"


@dataclass(frozen=True, eq=False)
class Replayed:
    """What one replay came to.

    Attributes:
        end: the snapshot that it ended with, quantised as committed ones are.
        losses: the loss of every step, None where the recipe reports none.
        used: SHA-256 over the hyperparameters that every step used.
        mismatch: the first step whose hyperparameters were not the recorded ones, as the error that it is.
        drew: whether any step drew random numbers, which other devices draw differently.
    """

    end: Snapshot
    losses: tuple[float | None, ...]
    used: bytes
    mismatch: ReplayError | None = None
    drew: bool = False


@dataclass(frozen=True)
class Floor:
    """The noise of one segment: the largest differences that any setting made.

    Attributes:
        settings: names of the settings that were tried.
        tensors: per tensor of the end state the l2 distance, in float64; infinite where values that are not compared as
            numbers differ, or where one is not finite.
        losses: per step the distance of the losses; infinite likewise.
        unstable: whether scalars or hyperparameters differed: then even those hang on rounding.
    """

    settings: tuple[str, ...]
    tensors: dict[str, float]
    losses: tuple[float, ...]
    unstable: bool

    def joined(self, other: Floor) -> Floor:
        """Return the noise of the settings of both, which were measured against the same replay."""
        return Floor(
            self.settings + other.settings,
            {name: max(noise, other.tensors[name]) for name, noise in self.tensors.items()},
            tuple(map(max, self.losses, other.losses)),
            self.unstable or other.unstable,
        )


def measure(reference: Replayed, others: Iterable[tuple[str, Replayed]]) -> Floor:
    """Return the noise of one segment: how far replays under other settings end from ``reference``."""
    names = []
    tensors = dict.fromkeys(reference.end.names, 0.0)
    losses = [0.0] * len(reference.losses)
    unstable = False
    for setting, other in others:
        names.append(setting)
        unstable |= other.used != reference.used or other.end.scalars != reference.end.scalars
        unstable |= other.end.names != reference.end.names
        for tensor in reference.end.tensors:
            found = other.end.partner(tensor.name, tensor.dtype, tensor.shape)
            tensors[tensor.name] = max(tensors[tensor.name], gap(tensor, found))
        losses = [max(old, _loss_gap(*pair)) for old, *pair in zip(losses, reference.losses, other.losses, strict=True)]
    return Floor(tuple(names), tensors, tuple(losses), unstable)


def gap(one: Tensor, other: Tensor | None) -> float:
    """Return the l2 distance of two tensors in float64; 0 for equal bytes, infinite where there is no such number.

    That is where the other is missing, an element is not finite, or the dtype is none of a real or complex number: of
    integers, flags and 8-bit floats two are equal or not.
    """
    if other is None:
        return math.inf
    if one is other or one.entry() == other.entry():
        return 0.0
    if one.dtype not in UNIT:
        return math.inf
    return distance(one, other)


def largest_gap(one: Tensor, other: Tensor | None) -> float:
    """Return the largest difference of two elements, or the largest element where there is no other; may be NaN."""
    largest = 0.0
    with np.errstate(all="ignore"):
        for difference in _differences(one, other) if one.dtype in UNIT else ():
            largest = float(np.fmax(largest, np.abs(difference).max()))
    return largest


def size(tensor: Tensor) -> float:
    """Return the l2 norm of a tensor in float64; 0 for what is not compared as numbers."""
    return distance(tensor, None) if tensor.dtype in UNIT else 0.0


def distance(one: Tensor, other: Tensor | None) -> float:
    """Return the l2 distance of two tensors like each other in float64, or a norm; infinite if it is no number."""
    squares = 0.0
    with np.errstate(all="ignore"):
        for difference in _differences(one, other):
            squares += float(np.einsum("i,i->", difference, difference))
    return math.sqrt(squares) if math.isfinite(squares) else math.inf


def shaken(start: Snapshot, base: Snapshot | None, seed: int) -> Snapshot:
    """Return a start state as it may have been before fidelity ``float16`` rounded it: each value a little off.

    Weights were rounded as differences from ``base``, or from 0 if none is at hand, which overstates the noise; moments
    as values. What the codec keeps exactly stays as it is.
    """
    generator = np.random.default_rng(seed)
    tensors = []
    for tensor, role in zip(start.tensors, roles_of(start.tensors), strict=True):
        if role is Role.EXACT:
            tensors.append(tensor)
            continue
        weight = role is Role.WEIGHT
        partner = base.partner(tensor.name, tensor.dtype, tensor.shape) if base and weight else None
        tensors.append(_shaken(tensor, partner, DELTA_ROUNDING if weight else MOMENT_ROUNDING, generator))
    return Snapshot(tuple(tensors), start.scalars)


def _shaken(tensor: Tensor, base: Tensor | None, most: float, generator: np.random.Generator) -> Tensor:
    off = generator.uniform(-most, most, tensor.data.size).astype("<f4")
    with np.errstate(all="ignore"):
        way = tensor.data if base is None else tensor.data - base.data
        data: Array = (tensor.data + way * off).astype(CARRIER[tensor.dtype])
    data = np.where(np.isfinite(tensor.data), data, tensor.data)  # rounding touches neither NaN nor infinities
    return Tensor(tensor.name, tensor.dtype, tensor.shape, data)


def _differences(one: Tensor, other: Tensor | None) -> Iterator[Array]:
    """Yield one tensor less the other, where there is one, block by block in float64."""
    for first in range(0, one.data.size, BLOCK):
        block = _wide(one, first)
        yield block if other is None else block - _wide(other, first)


def _wide(tensor: Tensor, first: int) -> Array:
    data = tensor.data
    if tensor.dtype in _PARTS:
        data = data.view(_PARTS[tensor.dtype])[2 * first if tensor.dtype == "complex64" else first :]
        return data[: 2 * BLOCK if tensor.dtype == "complex64" else BLOCK].astype(np.float64)
    data = data[first : first + BLOCK]
    if tensor.dtype == "bfloat16":  # the upper half of a float32
        data = (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float64)


def _loss_gap(one: float | None, other: float | None) -> float:
    if one == other:
        return 0.0
    if one is None or other is None or not math.isfinite(one - other):
        return math.inf
    return abs(one - other)
