"""Quantisation: which snapshot is committed, given the live state, the snapshot before it and the fidelity.

Normative: implements "Quantisation" of specs/codec.md. The result depends on the inputs alone, on every machine: it is
made of IEEE float32 additions, subtractions and multiplications by powers of two, and of integer operations. What a
tensor is (its `Role`) follows from its name, dtype and shape, so nothing in a proof can choose it. How the result is
stored is the business of `polstore.codec.frames`. Does no I/O.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import numpy as np

from polstore.codec.halves import to_halves
from polstore.codec.proportion import round_steps, round_upper, salt_of, step_exponent, tensor_key
from polstore.codec.quantised import Quantised, Scheme, settled
from polstore.codec.snapshot import Snapshot
from polstore.codec.values import (
    MIN_EXPONENT,
    SHORT_DIFFERENCE_BITS,
    SHORT_VALUE_BITS,
    TOP_EXPONENT,
    UPPER_BITS,
)
from polstore.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from polstore.codec.snapshot import Array, Tensor

__all__ = [
    "FIDELITIES",
    "FIRST_MOMENTS",
    "MOMENTS",
    "SECOND_MOMENTS",
    "Role",
    "base_is_previous",
    "dropped_bits",
    "exponent_of",
    "moment_scheme",
    "quantise",
    "quantise_tensor",
    "quantise_tensors",
    "replays_exactly",
    "require_subnormals",
    "role_of",
    "roles_of",
    "writes_back",
]

FIDELITIES = ("float16-writeback", "compact-writeback", "float16", "lossless")  # the first is what nothing said means

# Last components of the names of float32 optimizer tensors: keys of torch.optim, and of Hugging Face's Adafactor.
FIRST_MOMENTS = frozenset({"exp_avg", "momentum_buffer"})
SECOND_MOMENTS = frozenset(
    {
        "acc_delta",
        "col_var",
        "exp_avg_sq",
        "exp_avg_sq_col",
        "exp_avg_sq_row",
        "exp_inf",
        "max_exp_avg_sq",
        "row_var",
        "square_avg",
        "sum",
        "variance",
    }
)


class Named(Protocol):
    """Whatever has a name, a dtype and a shape, as tensors do."""

    @property
    def name(self) -> str:
        """As in `Tensor`."""

    @property
    def dtype(self) -> str:
        """As in `Tensor`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As in `Tensor`."""


class Role(Enum):
    """What a tensor is to the optimizer, which decides what precision it needs."""

    WEIGHT = "weight"
    FIRST_MOMENT = "first moment"
    SECOND_MOMENT = "second moment"
    EXACT = "exact"


MOMENTS = frozenset({Role.FIRST_MOMENT, Role.SECOND_MOMENT})


def base_is_previous(fidelity: str) -> bool:
    """Whether snapshots are taken against the one before them (or none), rather than against any of the last 64."""
    return fidelity == "compact-writeback"


def writes_back(fidelity: str) -> bool:
    """Whether training goes on from what was committed, where that differs from the live state."""
    return fidelity.endswith("-writeback")


def replays_exactly(fidelity: str) -> bool:
    """Whether a replay starts from the very values that training went on from, so that it must end in the same ones."""
    return fidelity == "lossless" or writes_back(fidelity)


def role_of(name: str, dtype: str, shape: tuple[int, ...]) -> Role:
    """Return the role of a tensor by itself; `roles_of` also knows the one exception that depends on its neighbours.

    A key that is not known is EXACT: an optimizer may keep there what so few bits would ruin, such as float32 master
    weights, averaged weights, or matrices that must stay positive definite.
    """
    if dtype != "float32":
        return Role.EXACT
    kind, _, path = name.partition("/")
    if kind == "parameter":
        return Role.WEIGHT
    if kind == "optimizer" and shape:
        key = path.rpartition("/")[2]
        if key in FIRST_MOMENTS:
            return Role.FIRST_MOMENT
        if key in SECOND_MOMENTS:
            return Role.SECOND_MOMENT
    return Role.EXACT


def roles_of(tensors: Iterable[Named]) -> list[Role]:
    """Return the role of every tensor of a snapshot.

    Centred RMSprop divides by sqrt(square_avg - grad_avg²). Rounding either of the two can make the difference negative
    and the weights NaN, so ``square_avg`` is EXACT wherever a ``grad_avg`` stands beside it, as is ``grad_avg`` itself.
    """
    tensors = list(tensors)
    names = {tensor.name for tensor in tensors}
    roles = []
    for tensor in tensors:
        parent, _, key = tensor.name.rpartition("/")
        centred = key == "square_avg" and f"{parent}/grad_avg" in names
        roles.append(Role.EXACT if centred else role_of(tensor.name, tensor.dtype, tensor.shape))
    return roles


def dropped_bits(fidelity: str, role: Role) -> int:
    """Return how many low bits of a moment a lossy fidelity drops: 7 bits of mantissa are left, or 3, or 5."""
    if fidelity != "compact-writeback":
        return UPPER_BITS
    return SHORT_VALUE_BITS if role is Role.FIRST_MOMENT else SHORT_DIFFERENCE_BITS


def moment_scheme(dropped: int) -> Scheme:
    """Return how moments come about of which so many low bits are dropped."""
    return Scheme.SHORT_DIFFERENCE if dropped == SHORT_DIFFERENCE_BITS else Scheme.BFLOAT16


def quantise(snapshot: Snapshot, base: Snapshot | None, fidelity: str) -> Snapshot:
    """Return the committed snapshot: what a reader gets back after everything was stored.

    Args:
        snapshot: the live state.
        base: the committed snapshot that the delta is taken against; None makes a keyframe, whose weights are exact.
        fidelity: one of `FIDELITIES`.

    Returns:
        A snapshot with the same names, dtypes, shapes and scalars; arrays are shared where the values are the same.

    Raises:
        UsageError: an unknown fidelity.
        TrainingError: this thread's floating-point unit flushes subnormal numbers to zero.
    """
    return Snapshot(tuple(part.tensor for part in quantise_tensors(snapshot, base, fidelity)), snapshot.scalars)


def quantise_tensors(snapshot: Snapshot, base: Snapshot | None, fidelity: str) -> Iterator[Quantised]:
    """Do the work of `quantise` and yield, tensor by tensor, how each value comes about; raises as `quantise` does."""
    if fidelity not in FIDELITIES:
        raise UsageError("unknown fidelity", expected=" or ".join(FIDELITIES), got=fidelity)
    if fidelity != "lossless":
        require_subnormals()
    return _quantise_each(snapshot, base, fidelity)


def _quantise_each(snapshot: Snapshot, base: Snapshot | None, fidelity: str) -> Iterator[Quantised]:
    salt = salt_of(snapshot.scalars)
    for tensor, role in zip(snapshot.tensors, roles_of(snapshot.tensors), strict=True):
        partner = base.partner(tensor.name, tensor.dtype, tensor.shape) if base is not None else None
        yield quantise_tensor(tensor, partner, role, fidelity, salt)


def quantise_tensor(tensor: Tensor, partner: Tensor | None, role: Role, fidelity: str, salt: bytes) -> Quantised:
    """Say how one tensor's committed values come about.

    Args:
        tensor: the live tensor.
        partner: the base's tensor like it, if there is one.
        role: that of `roles_of`.
        fidelity: one of `FIDELITIES`.
        salt: `salt_of` the live snapshot's scalars.
    """
    if fidelity == "lossless" or role is Role.EXACT or tensor.data.size == 0:
        return settled(tensor, partner)
    with np.errstate(all="ignore"):  # infinities and NaN are looked for, not trapped
        key = tensor_key(tensor.name, salt)
        if role is not Role.WEIGHT:
            return _moment(tensor, partner, role, dropped_bits(fidelity, role), key)
        if partner is None:
            return settled(tensor, partner)
        return _weight(tensor, partner, key if fidelity == "compact-writeback" else None)


def _weight(tensor: Tensor, partner: Tensor, key: int | None) -> Quantised:
    """Quantise a weight as steps, given the key to round them by, or as halves."""
    about = (tensor.name, tensor.dtype, tensor.shape, partner)
    delta = tensor.data - partner.data
    largest = _largest(delta)  # not finite if an operand has a NaN or an infinity, or if the two are too far apart
    if not math.isfinite(largest):
        return settled(tensor, partner)
    if largest == 0:
        return Quantised(*about, Scheme.UNCHANGED)
    if key is None:
        exponent = exponent_of(largest)
        part = Quantised(*about, Scheme.SCALED_DELTA, exponent, to_halves(delta * np.float32(2.0**-exponent)))
    else:
        exponent = step_exponent(delta)
        part = Quantised(*about, Scheme.STEPPED_DELTA, exponent, round_steps(delta, key, exponent))
    return part if math.isfinite(_largest(part.tensor.data)) else settled(tensor, partner)


def _moment(tensor: Tensor, partner: Tensor | None, role: Role, dropped: int, key: int) -> Quantised:
    """Quantise a moment by dropping bits."""
    if not math.isfinite(_largest(tensor.data)):
        return settled(tensor, partner)
    upper = round_upper(tensor.data, key, dropped, keep_nonzero=role is Role.SECOND_MOMENT)
    scheme = moment_scheme(dropped)
    about = (tensor.name, tensor.dtype, tensor.shape, None if scheme is Scheme.BFLOAT16 else partner)
    part = Quantised(*about, scheme, items=upper)
    return part if math.isfinite(_largest(part.tensor.data)) else settled(tensor, partner)


def _largest(values: Array) -> float:
    """Return the largest magnitude; NaN if there is one."""
    return max(float(values.max()), -float(values.min()))


def exponent_of(largest: float) -> int:
    """Return e such that ``largest · 2^-e`` lies in [2^14, 2^15), but at least `MIN_EXPONENT`; 0 for zero."""
    if largest == 0:
        return 0
    return max(math.frexp(largest)[1] - TOP_EXPONENT, MIN_EXPONENT)


def require_subnormals() -> None:
    """Refuse to work in a thread in which subnormal numbers count as zero (torch.set_flush_denormal, -ffast-math)."""
    smallest = np.array([1], "<u4").view("<f4")
    normal = np.array([2.0**-126], "<f4")
    if not (smallest + smallest > 0)[0] or not (normal * np.float32(0.5) > 0)[0]:
        raise TrainingError(
            "this thread's floating-point unit flushes subnormal numbers to zero, so what is committed here could not "
            "be reproduced elsewhere; call torch.set_flush_denormal(False)"
        )
