"""Quantisation: which snapshot is committed, given the live state, the snapshot before it and the fidelity.

Normative: implements "Quantisation" of specs/codec.md. The result depends on the inputs alone, on every machine: it is
made of IEEE float32 additions, subtractions and multiplications by powers of two, and of integer operations. What a
tensor is (its `Role`) follows from its name, dtype and shape, so nothing in a proof can choose it. How the result is
stored is the business of `polstore.codec.frames`. Does no I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from polstore.codec.halves import BLOCK, from_halves, to_halves
from polstore.codec.snapshot import Array, Snapshot, Tensor, bits
from polstore.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "DROPPED_BITS",
    "FIDELITIES",
    "FIRST_MOMENTS",
    "MAX_EXPONENT",
    "MIN_EXPONENT",
    "SECOND_MOMENTS",
    "Quantised",
    "Role",
    "Scheme",
    "add_halves",
    "quantise",
    "quantise_tensors",
    "role_of",
    "roles_of",
    "round_mantissa",
    "scale_halves",
]

FIDELITIES = ("float16-writeback", "lossless")

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

TOP_EXPONENT = 15  # the largest magnitude is scaled into [2^14, 2^15): rounding cannot reach 65 520, half's infinity
MIN_EXPONENT = -126  # 2^-126 and its inverse are both normal float32 numbers, so one multiplication scales
MAX_EXPONENT = 128 - TOP_EXPONENT  # of a magnitude just below 2^128
DROPPED_BITS = 13  # low bits of float32's 23-bit mantissa that leave 10


class Role(Enum):
    """What a tensor is to the optimizer, which decides what precision it needs."""

    WEIGHT = "weight"
    FIRST_MOMENT = "first moment"
    SECOND_MOMENT = "second moment"
    EXACT = "exact"


class Scheme(Enum):
    """How a tensor's committed values came about."""

    EXACT = "exact"  # the live values
    UNCHANGED = "unchanged"  # the base's values
    SCALED_DELTA = "scaled delta"  # base + half · 2^exponent
    SCALED_VALUE = "scaled value"  # half · 2^exponent
    ROUNDED = "rounded"  # 10 bits of mantissa


@dataclass(frozen=True, eq=False)
class Quantised:
    """A committed tensor and how it came about.

    Attributes:
        tensor: the committed values.
        partner: the tensor of the base with the same name, dtype and shape, if there is one.
        scheme: how the values came about.
        exponent: of the scale, for the two scaled schemes; else 0.
        halves: 1-D ``<u2`` float16 bits, for the two scaled schemes; else None.
    """

    tensor: Tensor
    partner: Tensor | None
    scheme: Scheme = Scheme.EXACT
    exponent: int = 0
    halves: Array | None = None


def role_of(name: str, dtype: str, shape: tuple[int, ...]) -> Role:
    """Return the role of a tensor by itself; `roles_of` also knows the one exception that depends on its neighbours.

    A key that is not known is EXACT: an optimizer may keep there what 10 bits would ruin, such as float32 master
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


def roles_of(tensors: Iterable[Tensor]) -> list[Role]:
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


def quantise(snapshot: Snapshot, base: Snapshot | None, fidelity: str) -> Snapshot:
    """Return the committed snapshot: what a reader gets back after everything was stored.

    Args:
        snapshot: the live state.
        base: the committed snapshot that the delta is taken against; None makes a keyframe, which is exact.
        fidelity: one of `FIDELITIES`.

    Returns:
        A snapshot with the same names, dtypes, shapes and scalars; arrays are shared where the values are the same.

    Raises:
        UsageError: an unknown fidelity.
        TrainingError: this thread's floating-point unit flushes subnormal numbers to zero.
    """
    return Snapshot(tuple(part.tensor for part in quantise_tensors(snapshot, base, fidelity)), snapshot.scalars)


def quantise_tensors(snapshot: Snapshot, base: Snapshot | None, fidelity: str) -> list[Quantised]:
    """Do the work of `quantise` and return, tensor by tensor, how each value came about."""
    if fidelity not in FIDELITIES:
        raise UsageError("unknown fidelity", expected=" or ".join(FIDELITIES), got=fidelity)
    partners = [base.partner(t.name, t.dtype, t.shape) if base is not None else None for t in snapshot.tensors]
    if fidelity == "lossless":
        return [Quantised(tensor, partner) for tensor, partner in zip(snapshot.tensors, partners, strict=True)]
    _require_subnormals()
    with np.errstate(all="ignore"):  # infinities and NaN are looked for, not trapped
        return [
            _quantised(tensor, partner, role)
            for tensor, partner, role in zip(snapshot.tensors, partners, roles_of(snapshot.tensors), strict=True)
        ]


def add_halves(base: Array, halves: Array, exponent: int) -> Array:
    """Return ``base + half · 2^exponent`` in float32, each operation rounded once (1-D ``<f4``)."""
    out = np.empty(base.size, "<f4")
    scale = np.float32(2.0**exponent)
    with np.errstate(all="ignore"):  # a hostile record may overflow; its digest will not match
        for start in range(0, base.size, BLOCK):
            part = from_halves(halves[start : start + BLOCK])
            part *= scale
            np.add(base[start : start + BLOCK], part, out=out[start : start + BLOCK])
    return out


def scale_halves(halves: Array, exponent: int) -> Array:
    """Return ``half · 2^exponent`` in float32, rounded once (1-D ``<f4``)."""
    out = np.empty(halves.size, "<f4")
    scale = np.float32(2.0**exponent)
    with np.errstate(all="ignore"):
        for start in range(0, halves.size, BLOCK):
            np.multiply(from_halves(halves[start : start + BLOCK]), scale, out=out[start : start + BLOCK])
    return out


def _quantised(tensor: Tensor, partner: Tensor | None, role: Role) -> Quantised:
    exact = Quantised(tensor, partner)
    if partner is None or role is Role.EXACT or tensor.data.size == 0:
        return exact
    if role is Role.SECOND_MOMENT:
        data = round_mantissa(tensor.data)
        # The live values are looked at as well: rounding the bits of a NaN can carry into the sign.
        if not math.isfinite(_largest(tensor.data)) or not math.isfinite(_largest(data)):
            return exact
        return Quantised(_with(tensor, data), partner, Scheme.ROUNDED)
    delta = tensor.data - partner.data if role is Role.WEIGHT else tensor.data
    largest = _largest(delta)  # not finite if an operand has a NaN or an infinity, or if the two are too far apart
    if not math.isfinite(largest):
        return exact
    if role is Role.WEIGHT and largest == 0:
        return Quantised(partner, partner, Scheme.UNCHANGED)
    exponent = _exponent(largest)
    halves = to_halves(delta * np.float32(2.0**-exponent))
    if role is Role.WEIGHT:
        data, scheme = add_halves(partner.data, halves, exponent), Scheme.SCALED_DELTA
    else:
        data, scheme = scale_halves(halves, exponent), Scheme.SCALED_VALUE
    if not math.isfinite(_largest(data)):
        return exact
    return Quantised(_with(tensor, data), partner, scheme, exponent, halves)


def _with(tensor: Tensor, data: Array) -> Tensor:
    return Tensor(tensor.name, tensor.dtype, tensor.shape, data)


def _largest(values: Array) -> float:
    """Return the largest magnitude; NaN if there is one."""
    return max(float(values.max()), -float(values.min()))


def _exponent(largest: float) -> int:
    """Return e such that ``largest · 2^-e`` lies in [2^14, 2^15), but at least `MIN_EXPONENT`; 0 for zero."""
    if largest == 0:
        return 0
    return max(math.frexp(largest)[1] - TOP_EXPONENT, MIN_EXPONENT)


def round_mantissa(values: Array) -> Array:
    """Round float32 (1-D ``<f4``) to 10 bits of mantissa, ties to even; sign and zero are kept, nothing else becomes 0.

    Defined on the bits of NaN and infinities too, where the result means nothing: frames predict from it.
    """
    out = np.empty(values.size, "<u4")
    for start in range(0, values.size, BLOCK):
        word = bits(values[start : start + BLOCK])
        magnitude = word & np.uint32(0x7FFFFFFF)
        rounded = magnitude >> np.uint32(DROPPED_BITS)
        rounded &= np.uint32(1)
        rounded += magnitude
        rounded += np.uint32((1 << (DROPPED_BITS - 1)) - 1)
        rounded >>= np.uint32(DROPPED_BITS)
        np.maximum(rounded, magnitude != 0, out=rounded)
        rounded <<= np.uint32(DROPPED_BITS)
        rounded |= word & np.uint32(0x80000000)
        out[start : start + BLOCK] = rounded
    return out.view("<f4")


def _require_subnormals() -> None:
    """Refuse to work in a thread in which subnormal numbers count as zero (torch.set_flush_denormal, -ffast-math)."""
    smallest = np.array([1], "<u4").view("<f4")
    normal = np.array([2.0**-126], "<f4")
    if not (smallest + smallest > 0)[0] or not (normal * np.float32(0.5) > 0)[0]:
        raise TrainingError(
            "this thread's floating-point unit flushes subnormal numbers to zero, so what is committed here could not "
            "be reproduced elsewhere; call torch.set_flush_denormal(False)"
        )
