"""What looks odd about a segment without replaying it: norms that stand out, moments that contradict the movement.

Honest training can look odd (an optimizer that is reset, a step in the learning rate), so nothing here rejects: it says
where to look, and a replay decides. Knows neither recipe nor torch. Implements specs/verification.md, section
"Plausibility", and the outliers of specs/challenge.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from polstore.errors import MissingError
from polstore.wire import canonical
from polstore.wire.fields import Fields
from polstore.wire.state import MAX_SCALARS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from polstore.codec.snapshot import Array, Snapshot, Tensor
    from polstore.wire.canonical import Value

__all__ = ["ODD_DEVIATIONS", "Movement", "movement", "norm_scores"]

ODD_DEVIATIONS = 8.0  # median absolute deviations: 5.4 standard deviations of a normal distribution
MIN_ODD = 5  # segments below which a median says nothing
FIRST_MOMENTS = ("exp_avg", "momentum_buffer")  # keys of torch.optim's Adam family and SGD
SECOND_MOMENT = "exp_avg_sq"
AGAINST = -0.2  # cosine below which a movement contradicts its moment; the least of honest runs is in the spec
ROUNDING = 2.0**-5  # relative: what rounding takes at most, of a second moment of fidelity compact-writeback
UNIT = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # of the last place, at 1
SMALLEST = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}  # normal number
STEP_UNITS = 4  # units of rounding per step: of beta, of the product, of the sum, of the square
BLOCK = 1 << 16  # elements at a time
LIST, TUPLE, DICT = 0, 1, 2  # tags of specs/state-digest.md, section "Scalars"


def norm_scores(norms: Sequence[tuple[float, ...]]) -> dict[int, float]:
    """Return how far the norms of segments stand out, for those in which one does.

    A score is the largest, over the distances, of |x - median| in units of the median absolute deviation (MAD), both
    medians the lower ones. NaN is equal to NaN and infinitely far from all numbers; so is any other value where the
    MAD is 0. Numbers are float64, each operation rounded once, so every implementation gets the same.

    Args:
        norms: for every segment its distances.

    Returns:
        Score by segment, for scores above `ODD_DEVIATIONS`; nothing for fewer than `MIN_ODD` segments.
    """
    scores: dict[int, float] = {}
    if len(norms) < MIN_ODD:
        return scores
    for column in zip(*norms, strict=True):
        middle = _lower_median(column)
        deviations = [_deviation(value, middle) for value in column]
        spread = _lower_median(deviations)
        for index, deviation in enumerate(deviations):
            score = _score(deviation, spread)
            if score > ODD_DEVIATIONS:
                scores[index] = max(score, scores.get(index, 0.0))
    return scores


def _lower_median(values: Sequence[float]) -> float:
    """Return the lower median, NaN being larger than any number."""
    ranked = sorted(values, key=lambda value: (math.isnan(value), 0.0 if math.isnan(value) else value))
    return ranked[(len(ranked) - 1) // 2]


def _deviation(value: float, middle: float) -> float:
    if value == middle or (math.isnan(value) and math.isnan(middle)):
        return 0.0
    difference = abs(value - middle)
    return math.inf if math.isnan(difference) else difference


def _score(deviation: float, spread: float) -> float:
    if deviation == 0 or deviation == spread:
        return 0.0
    return math.inf if spread == 0 else deviation / spread


@dataclass(frozen=True)
class Movement:
    """How the weights moved over a segment, held against the optimizer's moments at its end.

    Attributes:
        cosine: of the movement with the direction in which the first moments pull, over all weights that have one;
            None where there is nothing to compare (no moments, no movement, numbers that are not finite).
        decayed: an ``exp_avg_sq`` of which an element fell faster than beta₂ lets it, or None.
    """

    cosine: float | None
    decayed: str | None

    @property
    def against(self) -> bool:
        """Whether the weights moved against their moments."""
        return self.cosine is not None and self.cosine < AGAINST

    def __str__(self) -> str:
        found = [f"the weights moved against their moments, cosine {self.cosine:.3f}"] if self.against else []
        found += [f"{self.decayed} fell faster than beta2 lets it"] if self.decayed is not None else []
        return "; ".join(found) or "nothing odd"


def movement(start: Snapshot, end: Snapshot, steps: int) -> Movement:
    """Compare a segment's movement with its moments, and its second moments with their decay.

    Args:
        start: snapshot at the segment's start.
        end: snapshot at its end.
        steps: steps between them; steps that the optimizer skipped make the true number smaller, and the bound holds
            all the more.

    Raises:
        MalformedError: scalars that are none.
    """
    groups, before = _groups(end.scalars), _groups(start.scalars)
    decayed = None
    squares = {"moved": 0.0, "pull": 0.0, "both": 0.0}
    with np.errstate(all="ignore"):  # a diverged run has NaN and infinities
        for name, group in groups.items():
            _add(squares, start, end, name, -1.0 if group.get("maximize") is True else 1.0)
            betas = [beta for beta in map(_beta2, (group, before.get(name, group))) if beta is not None]
            if decayed is None and len(betas) == 2 and _decayed(start, end, name, min(betas), steps):
                decayed = f"optimizer/{name}/{SECOND_MOMENT}"
    scale = math.sqrt(squares["moved"]) * math.sqrt(squares["pull"])
    cosine = squares["both"] / scale if scale and math.isfinite(scale) else math.nan
    return Movement(None if math.isnan(cosine) else cosine, decayed)


def _add(sums: dict[str, float], start: Snapshot, end: Snapshot, name: str, sign: float) -> None:
    """Add one parameter's movement and pull, minus its first moment, to the sums of squares and products."""
    after = _tensor(end, f"parameter/{name}")
    moments = [tensor for key in FIRST_MOMENTS if (tensor := _tensor(end, f"optimizer/{name}/{key}")) is not None]
    if after is None or not moments or moments[0].shape != after.shape:
        return
    before = start.partner(after.name, after.dtype, after.shape)
    if before is None:
        return
    for ours, theirs, moment in zip(*map(_blocks, (before, after, moments[0])), strict=True):
        moved = theirs - ours
        sums["moved"] += float(np.einsum("i,i->", moved, moved))
        sums["pull"] += float(np.einsum("i,i->", moment, moment))
        sums["both"] -= sign * float(np.einsum("i,i->", moved, moment))


def _decayed(start: Snapshot, end: Snapshot, name: str, beta: float, steps: int) -> bool:
    """Say whether an element of Adam's second moment is below beta^steps times what it was, rounding allowed for."""
    before = _tensor(start, f"optimizer/{name}/{SECOND_MOMENT}")
    if before is None:
        return False
    after = end.partner(before.name, before.dtype, before.shape)
    if after is None:
        return False  # state of another shape: for the replay to judge
    slack = ROUNDING + steps * STEP_UNITS * UNIT[before.dtype]
    if slack >= 1:
        return False
    factor = beta**steps * (1 - slack)
    return any(
        bool(np.any(theirs < ours * factor - SMALLEST[before.dtype]))
        for ours, theirs in zip(_blocks(before), _blocks(after), strict=True)
    )


def _tensor(snapshot: Snapshot, name: str) -> Tensor | None:
    """Return a floating-point tensor of that name, if there is one."""
    try:
        found = snapshot.tensor(name)
    except MissingError:
        return None
    return found if found.dtype in UNIT else None


def _blocks(tensor: Tensor) -> Iterator[Array]:
    """Yield a tensor's elements in float64, block by block."""
    for first in range(0, tensor.data.size, BLOCK):
        data = tensor.data[first : first + BLOCK]
        if tensor.dtype == "bfloat16":  # the upper half of a float32
            data = (data.astype(np.uint32) << 16).view(np.float32)
        yield data.astype(np.float64)


def _beta2(group: dict[str, Value]) -> float | None:
    """Return a group's beta₂, if it has one that is a number from 0 to 1."""
    betas = group.get("betas")
    if not isinstance(betas, tuple) or len(betas) != 3 or betas[0] not in (LIST, TUPLE):
        return None
    beta = betas[2]
    return beta if isinstance(beta, float) and 0 <= beta <= 1 else None


def _groups(scalars: bytes) -> dict[str, dict[str, Value]]:
    """Return the hyperparameters of every parameter's group, by the parameter's name; raises `MalformedError`."""
    fields = Fields(canonical.decode(scalars, limit=MAX_SCALARS, what="scalars"), "scalars", 4)
    fields.tag("polstore/scalars/v1")
    fields.integer("step")
    groups: dict[str, dict[str, Value]] = {}
    optimizer = _dictionary(fields.value())
    for item in _items(optimizer.get("#groups")):
        group = _dictionary(item)
        for name in _items(group.get("params")):
            if isinstance(name, str):
                groups[name] = group
    return groups


def _dictionary(value: Value) -> dict[str, Value]:
    """Return the entries of a tree's dictionary that have text as keys; none for anything else."""
    if not isinstance(value, tuple) or not value or value[0] != DICT:
        return {}
    pairs = (item for item in value[1:] if isinstance(item, tuple) and len(item) == 2)
    return {pair[0]: pair[1] for pair in pairs if isinstance(pair[0], str)}


def _items(value: Value) -> tuple[Value, ...]:
    """Return the items of a tree's list; none for anything else."""
    return value[1:] if isinstance(value, tuple) and value and value[0] in (LIST, TUPLE) else ()
