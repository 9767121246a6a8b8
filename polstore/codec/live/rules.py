"""The rules of quantisation in torch: for each fidelity and role, how a block of values becomes items.

Bit for bit what `polstore.codec.quantise` does on the host, in the ordinary case: every value finite, and none near the
largest. Implements "Quantisation" of specs/codec.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from polstore.codec.proportion import FINE_BITS, PLACE, exponent_of_steps, tensor_key
from polstore.codec.quantise import FIDELITIES, Role, dropped_bits, exponent_of, moment_scheme
from polstore.codec.quantised import Scheme
from polstore.codec.values import UPPER_BITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.codec.live.lanes import Block, Lane, Rule, Run
    from polstore.codec.snapshot import Array

__all__ = ["LARGEST", "SMALLEST", "rule_for"]

LARGEST = 2.0**126  # of a base and of what is added to it: no rounding on the way can reach infinity
LARGEST_BITS = 0x7E800000  # of 2^126
SMALLEST = 2.0**-100  # of the largest delta: powers of two that scale it stay float32 numbers


def rule_for(fidelity: str, role: Role) -> Rule | None:
    """Return the rule for a role in a fidelity; None if the reference has to do it."""
    return _RULES.get((fidelity, role))


class _OfValues:
    """What rules have in common that look at values."""

    def extremes(self, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = torch.aminmax(run.live if run.base is None else run.values)
        return low, high

    def peak(self, low: float, high: float) -> float:
        return max(-low, high)


class _Halves(_OfValues):
    """Weights as scaled float16 against their base."""

    scheme = Scheme.SCALED_DELTA
    dtype = torch.half

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
        words, between = block.words, block.more.view(torch.float32)
        _thresholds(lane, block, 24, salt)
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


class _Moments:
    """Moments with few bits of mantissa, rounded in proportion."""

    dtype = torch.int16

    def __init__(self, dropped: int) -> None:
        self.scheme = moment_scheme(dropped)
        self._dropped = dropped

    def exponents(self, lane: Lane, peaks: Sequence[float]) -> list[int]:  # noqa: ARG002 - as the protocol has it
        return [0] * len(lane.rows)

    def apply(self, lane: Lane, block: Block, exponents: Sequence[int], salt: bytes, items: torch.Tensor) -> None:  # noqa: ARG002
        word, rounded = block.values.view(torch.int32), block.words
        _thresholds(lane, block, self._dropped, salt)
        rounded += word
        rounded >>= self._dropped
        self._keep(word, rounded)
        if self._dropped > UPPER_BITS:
            rounded <<= self._dropped - UPPER_BITS
        items.copy_(rounded)
        torch.bitwise_left_shift(rounded, UPPER_BITS, out=word)

    def array(self, items: torch.Tensor) -> Array:
        return items.numpy().view("<u2")

    def _keep(self, word: torch.Tensor, rounded: torch.Tensor) -> None:
        """Mend what must not become zero, given the words and what they are rounded to."""


class _FirstMoments(_OfValues, _Moments):
    """With signs, and small ones may become zero."""


class _SecondMoments(_Moments):
    """Never negative, and nothing but zero becomes zero; seen as integers, signs, infinities and NaN stand out."""

    def extremes(self, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = torch.aminmax(run.live.view(torch.int32))
        return low, high

    def peak(self, low: float, high: float) -> float:
        return 1.0 if low >= 0 and high <= LARGEST_BITS else math.inf

    def _keep(self, word: torch.Tensor, rounded: torch.Tensor) -> None:
        torch.maximum(rounded, word.clamp_(max=1), out=rounded)


def _thresholds(lane: Lane, block: Block, bits: int, salt: bytes) -> None:
    """Fill the block's words with the upper bits of its thresholds, as `polstore.codec.proportion` defines them."""
    words = block.words
    start = 0
    for run in block.runs:
        own = words[start : start + run.live.numel()]
        start += own.numel()
        first = tensor_key(lane.rows[run.number].name, salt) + run.start * PLACE
        torch.add(lane.workspace.places[: own.numel()], _signed(first), out=own)
    words >>= 32 - bits
    words &= (1 << bits) - 1  # torch shifts the sign in


def _signed(word: int) -> int:
    """Return the signed integer with the same low 32 bits."""
    return (word + 0x80000000) % 0x100000000 - 0x80000000


_RULES: dict[tuple[str, Role], Rule] = {}
for _fidelity in FIDELITIES:
    if _fidelity != "lossless":
        _RULES[_fidelity, Role.WEIGHT] = _Steps() if _fidelity == "compact-writeback" else _Halves()
        _RULES[_fidelity, Role.FIRST_MOMENT] = _FirstMoments(dropped_bits(_fidelity, Role.FIRST_MOMENT))
        _RULES[_fidelity, Role.SECOND_MOMENT] = _SecondMoments(dropped_bits(_fidelity, Role.SECOND_MOMENT))
