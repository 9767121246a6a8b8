"""The rules of quantisation in torch: for each fidelity and role, how a block of values becomes items.

Bit for bit what `polstore.codec.quantise` does on the host, in the ordinary case: every value finite, and none near the
largest. Implements "Quantisation" of specs/codec.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from polstore.codec.proportion import (
    FINE_BITS,
    HASH_FACTORS,
    HASH_SHIFTS,
    PLACE,
    exponent_of_steps,
    tensor_key,
)
from polstore.codec.quantise import Role, Scheme, exponent_of
from polstore.codec.values import DROPPED_BITS, SHORT_DIFFERENCE_BITS, SHORT_VALUE_BITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.codec.live.lanes import Block, Lane, Rule, Run
    from polstore.codec.snapshot import Array

__all__ = ["LARGEST", "rule_for"]

LARGEST = 2.0**126  # of a base and of what is added to it: no rounding on the way can reach infinity
LARGEST_BITS = 0x7E800000  # of 2^126
SMALLEST = 2.0**-100  # of the largest delta: powers of two that scale it stay float32 numbers
HALF = 1 << (DROPPED_BITS - 1)  # of the last bit that is kept
MAGNITUDE = 0x7FFFFFFF


def rule_for(fidelity: str, role: Role) -> Rule | None:
    """Return the rule for a role in a fidelity; None if the reference has to do it."""
    return RULES.get((fidelity, role))


class _OfValues:
    """What rules have in common that look at values."""

    def extremes(self, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = torch.aminmax(run.live if run.base is None else run.values)
        return low, high

    def peak(self, low: float, high: float) -> float:
        return max(-low, high)


class _OfBits:
    """What rules have in common whose items are the committed values, made by rounding the bits of non-negative ones.

    Second moments: seen as integers, a sign makes them negative, and infinities and NaN are large.
    """

    dtype = torch.float32

    def extremes(self, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = torch.aminmax(run.live.view(torch.int32))
        return low, high

    def peak(self, low: float, high: float) -> float:
        return 1.0 if low >= 0 and high <= LARGEST_BITS else math.inf

    def exponents(self, lane: Lane, peaks: Sequence[float]) -> list[int]:  # noqa: ARG002 - as the protocol has it
        return [0] * len(lane.rows)

    def array(self, items: torch.Tensor) -> Array:
        array: Array = items.numpy()
        return array


class _Halves(_OfValues):
    """Scaled float16: weights against their base, and first moments."""

    dtype = torch.half

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme

    def exponents(self, lane: Lane, peaks: Sequence[float]) -> list[int]:  # noqa: ARG002
        return [exponent_of(peak) for peak in peaks]

    def apply(self, lane: Lane, block: Block, exponents: Sequence[int], salt: bytes, items: torch.Tensor) -> None:  # noqa: ARG002
        scales = [exponents[run.number] for run in block.runs]
        torch._foreach_mul_(block.views, [2.0**-scale for scale in scales])
        items.copy_(block.values)  # rounds to nearest
        block.values.copy_(items)
        torch._foreach_mul_(block.views, [2.0**scale for scale in scales])

    def array(self, items: torch.Tensor) -> Array:
        return items.numpy().view("<u2")


class _Rounded(_OfBits):
    """Second moments to 10 bits of mantissa, ties to even."""

    scheme = Scheme.ROUNDED

    def apply(self, lane: Lane, block: Block, exponents: Sequence[int], salt: bytes, items: torch.Tensor) -> None:  # noqa: ARG002
        word, odd = block.values.view(torch.int32), block.words
        vanishing = (word > 0) & (word <= HALF) if word.min() <= HALF else None
        torch.bitwise_right_shift(word, DROPPED_BITS, out=odd)
        odd &= 1  # a tie goes up just where that makes the result even
        odd += HALF - 1
        word += odd
        word &= -1 << DROPPED_BITS
        if vanishing is not None:  # nothing but zero becomes zero
            word.masked_fill_(vanishing, 1 << DROPPED_BITS)
        items.copy_(block.values)


class _Steps(_OfValues):
    """Weights as steps from their base, rounded in proportion."""

    scheme = Scheme.STEPPED_DELTA
    dtype = torch.int16

    def peak(self, low: float, high: float) -> float:
        peak = max(-low, high)
        return math.inf if 0 < peak < SMALLEST else peak

    def exponents(self, lane: Lane, peaks: Sequence[float]) -> list[int]:
        tops = [math.frexp(peak)[1] for peak in peaks]
        squares, counts = [], []
        runs = [run for block in lane.blocks for run in block.runs]
        for block in lane.blocks:
            block.load()
            counts += [torch.count_nonzero(view) for view in block.views]
            block.values.abs_()
            torch._foreach_mul_(block.views, [2.0 ** (FINE_BITS - tops[run.number]) for run in block.runs])
            block.values.floor_()
            block.values.square_()  # integers of at most 24 bits, which float32 holds
            squares += [view.sum(dtype=torch.float64) for view in block.views]  # of at most 2^26: exact
        sums, numbers = [0] * len(peaks), [0] * len(peaks)
        for run, square, count in zip(runs, torch.stack(squares).tolist(), torch.stack(counts).tolist(), strict=True):
            sums[run.number] += int(square)
            numbers[run.number] += count
        return [exponent_of_steps(*each) for each in zip(tops, sums, numbers, strict=True)]

    def apply(self, lane: Lane, block: Block, exponents: Sequence[int], salt: bytes, items: torch.Tensor) -> None:
        scales = [exponents[run.number] for run in block.runs]
        _hash(lane, block, salt)
        words, between = block.words, block.more.view(torch.float32)
        words >>= 8
        words &= 0xFFFFFF
        between.copy_(words)
        between *= 2.0**-24
        torch._foreach_mul_(block.views, [2.0**-scale for scale in scales])
        between += block.values.abs()
        between.floor_()
        torch.copysign(between, block.values, out=between)
        items.copy_(between)
        block.values.copy_(items)  # without negative zeros
        torch._foreach_mul_(block.views, [2.0**scale for scale in scales])

    def array(self, items: torch.Tensor) -> Array:
        array: Array = items.numpy()
        return array


class _Short(_OfBits):
    """Moments with few bits of mantissa, rounded in proportion."""

    def __init__(self, scheme: Scheme, dropped: int) -> None:
        self.scheme = scheme
        self._dropped = dropped

    def apply(self, lane: Lane, block: Block, exponents: Sequence[int], salt: bytes, items: torch.Tensor) -> None:  # noqa: ARG002
        _hash(lane, block, salt)
        word, rounded = block.values.view(torch.int32), block.words
        rounded >>= 32 - self._dropped
        rounded &= (1 << self._dropped) - 1
        torch.bitwise_and(word, MAGNITUDE, out=block.more)
        rounded += block.more
        rounded >>= self._dropped
        self._keep(rounded, block.more)
        rounded <<= self._dropped
        word &= ~MAGNITUDE
        word |= rounded
        items.copy_(block.values)

    def _keep(self, rounded: torch.Tensor, magnitude: torch.Tensor) -> None:
        torch.maximum(rounded, magnitude.clamp_(max=1), out=rounded)  # nothing but zero becomes zero


class _ShortSigned(_Short):
    """First moments: with signs, and small ones may become zero."""

    def extremes(self, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = torch.aminmax(run.live)
        return low, high

    def peak(self, low: float, high: float) -> float:
        return max(-low, high)

    def _keep(self, rounded: torch.Tensor, magnitude: torch.Tensor) -> None:
        pass


def _hash(lane: Lane, block: Block, salt: bytes) -> None:
    """Fill the block's words with the hashes of its live values, as `polstore.codec.proportion` defines them."""
    x, shifted = block.words, block.more
    start = 0
    for run in block.runs:
        own = x[start : start + run.live.numel()]
        start += own.numel()
        key = tensor_key(lane.rows[run.number].name, salt)
        torch.bitwise_xor(run.live.view(torch.int32), _signed(key), out=own)
        torch.add(own, lane.workspace.numbers[: own.numel()], alpha=_signed(PLACE), out=own)
        own += _signed(run.start * PLACE)
    for bits, factor in zip(HASH_SHIFTS, (*HASH_FACTORS, None), strict=True):
        torch.bitwise_right_shift(x, bits, out=shifted)
        shifted &= (1 << 32 - bits) - 1  # torch shifts the sign in
        x ^= shifted
        if factor is not None:
            x *= _signed(factor)


def _signed(word: int) -> int:
    """Return the signed integer with the same low 32 bits."""
    return (word + 0x80000000) % 0x100000000 - 0x80000000


RULES: dict[tuple[str, Role], Rule] = {
    ("compact-writeback", Role.WEIGHT): _Steps(),
    ("compact-writeback", Role.FIRST_MOMENT): _ShortSigned(Scheme.SHORT_VALUE, SHORT_VALUE_BITS),
    ("compact-writeback", Role.SECOND_MOMENT): _Short(Scheme.SHORT_DIFFERENCE, SHORT_DIFFERENCE_BITS),
}
for _fidelity in ("float16-writeback", "float16"):
    RULES[_fidelity, Role.WEIGHT] = _Halves(Scheme.SCALED_DELTA)
    RULES[_fidelity, Role.FIRST_MOMENT] = _Halves(Scheme.SCALED_VALUE)
    RULES[_fidelity, Role.SECOND_MOMENT] = _Rounded()
