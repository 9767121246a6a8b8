"""Whether tensors look as if they were drawn by one of PyTorch's usual initialisations: a test, never a proof.

For each tensor the Kolmogorov-Smirnov distance to every member of a public pool gives a p-value, and the largest one
counts (paper, V-D4 and VII-B). The scale of a member comes from the tensor's shape, as PyTorch's formulas have it, or
from a list of customary constants; nothing is fitted to the elements. An honest tensor whose initialisation is in the
pool falls below p with probability p at most, so Bonferroni's bound over all tests keeps the share of honest states
that fail below `FAMILY_LEVEL`, whatever depends on what. Weights that were chosen to look drawn pass: see
specs/lineage.md. Implements its section "Distribution". Pure numpy and scipy, no torch, no I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr
from scipy.stats import kstwo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from polstore.codec.snapshot import Array, Tensor

__all__ = ["FAMILY_LEVEL", "MIN_ELEMENTS", "Family", "Kind", "Member", "Report", "TensorTest", "pool", "run_tests"]

FAMILY_LEVEL = 0.01  # share of honest initial states that may fail, over all tensors of one
MIN_ELEMENTS = 32  # below, a distance of 0.3 is nothing unusual, and the test would only weaken those of the others
MAX_ELEMENTS = 1 << 24  # of one test, 128 MiB as float64; longer tensors are tested in parts, each of them
SLACK = {
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float32": 2.0**-24,
    "float64": 0.0,
}  # a dtype's grid, in probability
SPREAD = 8.0  # standard errors by which a tensor's variance may miss a member's: honest ones do so with chance 1e-15
EDGE = 1e-5  # relative: rounding at the ends of a bounded member's range

# torch.nn.init.calculate_gain: linear and sigmoid, ReLU, tanh, SELU, leaky ReLU with 0.2 and with sqrt(5), which is
# what Linear and the convolutions are reset with; and 1/sqrt(2), customary for projections that are stacked.
GAINS = (1.0, math.sqrt(2), 5 / 3, 3 / 4, math.sqrt(2 / 1.04), math.sqrt(1 / 3), math.sqrt(1 / 2))
DEVIATIONS = (1.0, 0.5, 0.1, 0.05, 0.02, 0.01, 0.006, 0.005, 0.001)  # customary constants, 0.02 above all
DEEPEST = 128  # layers n for which 0.02 / sqrt(2 n), GPT-2's initialisation of residual projections, is in the pool
BOUNDS = (1.0, 0.1, 0.08, 0.05, 0.01)  # customary uniform ranges
CUTS = (2.0, 3.0)  # standard deviations at which normal distributions are customarily truncated


class Family(Enum):
    """The shape of a distribution."""

    UNIFORM = "uniform"  # scale: half the width
    NORMAL = "normal"  # scale: standard deviation
    TRUNCATED_2 = "normal cut at 2 deviations"  # scale: standard deviation before the cut
    TRUNCATED_3 = "normal cut at 3 deviations"


TRUNCATED = dict(zip((Family.TRUNCATED_2, Family.TRUNCATED_3), CUTS, strict=True))


class Kind(Enum):
    """What could be done with a tensor."""

    TESTED = "tested"
    CONSTANT = "constant"  # one number throughout, or zeros and ones: nothing trained can hide in it
    SMALL = "too small"
    UNTESTABLE = "no real numbers"
    NOT_FINITE = "not finite"


@dataclass(frozen=True)
class Member:
    """One distribution of the pool."""

    family: Family
    scale: float
    mean: float = 0.0

    @property
    def deviation(self) -> float:
        """Its standard deviation."""
        if self.family is Family.UNIFORM:
            return self.scale / math.sqrt(3)
        if self.family in TRUNCATED:
            return self.scale * _deviation_of_cut(TRUNCATED[self.family])
        return self.scale

    @property
    def reach(self) -> float:
        """How far from its mean it goes."""
        return self.scale if self.family is Family.UNIFORM else self.scale * TRUNCATED.get(self.family, math.inf)

    def cdf(self, values: Array) -> Array:
        """Return the probability of less than each value (float64)."""
        scaled = (values - self.mean) / self.scale
        if self.family is Family.UNIFORM:
            return np.clip((scaled + 1) / 2, 0.0, 1.0)
        below: Array = ndtr(scaled)
        if self.family in TRUNCATED:
            low, high = ndtr(-TRUNCATED[self.family]), ndtr(TRUNCATED[self.family])
            below = np.clip((below - low) / (high - low), 0.0, 1.0)
        return below

    def __str__(self) -> str:
        around = f" around {self.mean:.3g}" if self.mean else ""
        return f"{self.family.value}, scale {self.scale:.3g}{around}"


@dataclass(frozen=True, eq=False)
class _Table:
    """A pool, with what is needed first of its members in arrays."""

    members: tuple[Member, ...]
    deviations: Array
    reaches: Array
    means: Array


@dataclass(frozen=True)
class TensorTest:
    """What came of one tensor, or of one part of a long one.

    Attributes:
        name: the tensor's.
        kind: what was done.
        p_value: the largest one over the pool; 0 if no member comes near, None where nothing was tested.
        member: the member that it belongs to.
    """

    name: str
    kind: Kind
    p_value: float | None = None
    member: Member | None = None


@dataclass(frozen=True)
class Report:
    """What came of all tensors of an initial state."""

    tests: tuple[TensorTest, ...]

    def of(self, kind: Kind) -> list[TensorTest]:
        """Return the tests of one kind."""
        return [test for test in self.tests if test.kind is kind]

    @property
    def level(self) -> float:
        """The p-value below which one test fails: Bonferroni's share of `FAMILY_LEVEL`."""
        return FAMILY_LEVEL / max(1, len(self.of(Kind.TESTED)))

    @property
    def smallest(self) -> TensorTest | None:
        """The test with the smallest p-value."""
        return min(self.of(Kind.TESTED), key=lambda test: test.p_value or 0.0, default=None)

    @property
    def fails(self) -> bool:
        """Whether the state is none that the pool could have drawn, at `FAMILY_LEVEL`."""
        worst = self.smallest
        return bool(self.of(Kind.NOT_FINITE)) or (worst is not None and (worst.p_value or 0.0) < self.level)


def run_tests(tensors: Iterable[Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Report:
    """Test tensors against the pool.

    Args:
        tensors: those to test.
        shapes: shapes of all parameters by name; a bias is drawn by the shape of its layer's weight.
    """
    tests: list[TensorTest] = []
    for tensor in tensors:
        tests.extend(_tests(tensor, _table(tensor.shape, _fans_of_siblings(tensor.name, shapes))))
    return Report(tuple(tests))


@lru_cache(maxsize=256)
def _table(shape: tuple[int, ...], siblings: tuple[int, ...]) -> _Table:
    members = pool(shape, siblings)
    return _Table(
        members,
        np.array([member.deviation for member in members]),
        np.array([member.reach for member in members]),
        np.array([member.mean for member in members]),
    )


def pool(shape: tuple[int, ...], siblings: tuple[int, ...] = ()) -> tuple[Member, ...]:
    """Return the distributions that a tensor of this shape may have been drawn from.

    Args:
        shape: its sizes.
        siblings: fan-in of the weights beside it, which the bounds of a bias follow from.
    """
    members = {Member(Family.NORMAL, deviation) for deviation in DEVIATIONS}
    members |= {Member(Family.UNIFORM, bound) for bound in BOUNDS}
    if len(shape) < 2:
        own = [size for size in _thirds(math.prod(shape)) if size >= 1]
        members |= {Member(Family.UNIFORM, 1 / math.sqrt(fan)) for fan in (*siblings, *own)}
        members.add(Member(Family.NORMAL, 0.02, 1.0))  # DCGAN's norms
        return tuple(sorted(members, key=_order))
    deviations = {0.02 / math.sqrt(2 * layers) for layers in range(1, DEEPEST + 1)} | set(DEVIATIONS)
    for fan in _fans(shape):
        for gain in GAINS:
            deviations.add(gain / math.sqrt(fan))
            members.add(Member(Family.UNIFORM, gain * math.sqrt(3 / fan)))
    for deviation in deviations:
        members.add(Member(Family.NORMAL, deviation))
        for family, cut in TRUNCATED.items():
            members.add(Member(family, deviation))
            members.add(
                Member(family, deviation / _deviation_of_cut(cut))
            )  # so that this is what remains after the cut
    return tuple(sorted(members, key=_order))


def _order(member: Member) -> tuple[str, float, float]:
    return member.family.value, member.scale, member.mean


def _fans(shape: tuple[int, ...]) -> set[float]:
    """Return fan-in and fan-out as PyTorch computes them, their mean (Xavier), and single sizes (RNNs, stacks)."""
    field = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * field, shape[0] * field
    fans = {float(fan_in), float(fan_out), (fan_in + fan_out) / 2, (shape[-1] + shape[-2]) / 2}
    for size in shape:
        fans |= {float(part) for part in _thirds(size)}
    return {fan for fan in fans if fan > 0}


def _thirds(size: int) -> list[int]:
    """Return a size and what it is per gate of a GRU (thirds) or an LSTM (quarters)."""
    return [size // parts for parts in (1, 3, 4) if size % parts == 0]


def _fans_of_siblings(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if len(shapes.get(name, ())) > 1:
        return ()
    prefix = name.rpartition(".")[0]
    beside = (shape for other, shape in shapes.items() if other.rpartition(".")[0] == prefix and len(shape) > 1)
    return tuple(sorted({math.prod(shape[1:]) for shape in beside if math.prod(shape[1:]) > 0}))


@lru_cache
def _deviation_of_cut(cut: float) -> float:
    """Return the standard deviation of a standard normal distribution that is cut at both ends."""
    density = math.exp(-cut * cut / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * cut * density / float(ndtr(cut) - ndtr(-cut)))


def _tests(tensor: Tensor, table: _Table) -> Iterator[TensorTest]:
    values = _values(tensor)
    if values is None:
        yield TensorTest(tensor.name, Kind.UNTESTABLE)
    elif not np.isfinite(values).all():
        yield TensorTest(tensor.name, Kind.NOT_FINITE)
    elif not values.size or (values == values[0]).all() or (len(tensor.shape) == 1 and np.isin(values, (0, 1)).all()):
        yield TensorTest(tensor.name, Kind.SMALL if values.size < 2 else Kind.CONSTANT)
    elif values.size < MIN_ELEMENTS:
        yield TensorTest(tensor.name, Kind.SMALL)
    else:
        values = _without_padding(values, tensor.shape)
        for part in np.array_split(values, -(-values.size // MAX_ELEMENTS)):
            yield _test(tensor, part, table)


def _values(tensor: Tensor) -> Array | None:
    """Return the elements as they are, or as float32 where numpy lacks the dtype; None if they are no real numbers."""
    if tensor.dtype == "bfloat16":
        return (tensor.data.astype("<u4") << np.uint32(16)).view("<f4")
    return tensor.data if tensor.dtype in SLACK else None


def _without_padding(values: Array, shape: tuple[int, ...]) -> Array:
    """Leave out one row of zeros, which an embedding has at its ``padding_idx``."""
    if len(shape) != 2 or shape[0] < 2:
        return values
    rows = values.reshape(shape)
    empty = np.flatnonzero(~rows.any(axis=1))
    return np.delete(rows, empty, axis=0).ravel() if empty.size == 1 else values


def _test(tensor: Tensor, values: Array, table: _Table) -> TensorTest:
    ordered = np.sort(values.astype(np.float64))
    count = ordered.size
    edge = EDGE + 2 * SLACK[tensor.dtype]
    mean, squares = float(np.mean(ordered)), float(np.mean(ordered * ordered))
    around = np.maximum(squares - 2 * mean * table.means + table.means**2, 0.0)  # mean square distance from each mean
    near = abs(np.sqrt(around) / table.deviations - 1) <= SPREAD / math.sqrt(2 * count) + edge
    reached = np.maximum(abs(ordered[0] - table.means), abs(ordered[-1] - table.means))
    best, nearest = None, 1.0
    for place in np.flatnonzero(near & (reached <= table.reaches * (1 + edge))):
        distance = _distance(table.members[place].cdf(ordered)) - SLACK[tensor.dtype]
        if best is None or distance < nearest:
            best, nearest = table.members[place], distance
    if best is None:
        return TensorTest(tensor.name, Kind.TESTED, 0.0)
    return TensorTest(tensor.name, Kind.TESTED, float(kstwo.sf(max(nearest, 0.0), count)), best)


def _distance(below: Array) -> float:
    """Return the Kolmogorov-Smirnov distance, from the probabilities of less than each of the sorted elements."""
    places = np.arange(below.size + 1) / below.size
    return max(float(np.max(places[1:] - below)), float(np.max(below - places[:-1])))
