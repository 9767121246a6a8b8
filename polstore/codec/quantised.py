"""One quantised tensor: how its committed values come about, and the values themselves when they are asked for.

Most of the time they are wanted only in passing, to be hashed and measured, so they can be had block by block without
the whole array ever being there. How a tensor is quantised is decided in `polstore.codec.quantise`. Does no I/O.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from polstore.codec.snapshot import BLOCK, CARRIER, Array, Tensor, carrier_count
from polstore.codec.values import add_halves, add_steps, from_upper
from polstore.errors import UsageError
from polstore.wire.state import TensorEntry

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Quantised", "Scheme", "settled"]


class Scheme(Enum):
    """How a tensor's committed values come about."""

    EXACT = "exact"  # the live values
    UNCHANGED = "unchanged"  # the base's values
    SCALED_DELTA = "scaled delta"  # base + half · 2^exponent
    STEPPED_DELTA = "stepped delta"  # base + step · 2^exponent
    BFLOAT16 = "bfloat16"  # 7 bits of mantissa or fewer
    SHORT_DIFFERENCE = "short difference"  # 5 bits of mantissa, close to the base's


_UPPER = frozenset({Scheme.BFLOAT16, Scheme.SHORT_DIFFERENCE})
_ON_PARTNER = frozenset({Scheme.UNCHANGED, Scheme.SCALED_DELTA, Scheme.STEPPED_DELTA})
_ITEMS = {Scheme.SCALED_DELTA: "<u2", Scheme.STEPPED_DELTA: "<i2"} | dict.fromkeys(_UPPER, "<u2")


@dataclass(frozen=True, eq=False)
class Quantised:
    """How the committed values of one tensor come about. The arrays belong to it from here on and must not change.

    Attributes:
        name: as in `Tensor`.
        dtype: likewise.
        shape: likewise.
        partner: the tensor of the base with the same name, dtype and shape, if there is one and the scheme has a use
            for it.
        scheme: how the values come about; others than EXACT are for float32, and UNCHANGED and the two deltas need a
            partner.
        exponent: of the scale, for the two deltas; else 0.
        items: 1-D. The bits of halves (``<u2``) for scaled deltas, the steps (``<i2``) for stepped ones, the upper 16
            bits of the committed words (``<u2``) for BFLOAT16 and SHORT_DIFFERENCE, None for UNCHANGED, and for EXACT
            the committed values in the carrier's dtype.

    Raises:
        UsageError: items or a partner that do not fit the scheme.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    partner: Tensor | None
    scheme: Scheme = Scheme.EXACT
    exponent: int = 0
    items: Array | None = None

    def __post_init__(self) -> None:
        wanted = _ITEMS.get(self.scheme) or CARRIER[self.dtype], carrier_count(self.dtype, self.shape)
        got = None if self.items is None else (self.items.dtype.str, self.items.size)
        fits = got is None if self.scheme is Scheme.UNCHANGED else got == wanted
        if self.scheme in _ON_PARTNER:
            fits = fits and self.partner is not None and self.partner.data.size == wanted[1]
        if not fits:
            partner = None if self.partner is None else self.partner.shape
            raise UsageError(
                f"quantised tensor {self.name}, {self.scheme.value}",
                expected=f"items {wanted} that fit its partner",
                got=f"{got}, partner {partner}",
            )

    @cached_property
    def tensor(self) -> Tensor:
        """The committed tensor, made of the items by the functions that decoding uses."""
        if self.scheme is Scheme.UNCHANGED and self.partner is not None:
            return self.partner
        if self.scheme is Scheme.EXACT and self.items is not None:
            return Tensor(self.name, self.dtype, self.shape, self.items)
        data = np.empty(math.prod(self.shape), "<f4")
        for start in range(0, data.size, BLOCK):
            self._compute(slice(start, start + BLOCK), data[start : start + BLOCK])
        return Tensor(self.name, self.dtype, self.shape, data)

    def blocks(self) -> Iterator[Array]:
        """Yield the committed values block by block, each good until the next; the hash is known once all are taken."""
        if self._whole():
            yield from self.tensor.blocks()
            return
        digest = None if "_entry" in self.__dict__ else hashlib.sha256()
        for block in self._made():
            if digest is not None:
                digest.update(block.data)
            yield block
        if digest is not None:
            self.__dict__["_entry"] = TensorEntry(self.name, self.dtype, self.shape, digest.digest())

    def entry(self) -> TensorEntry:
        """Return what is committed of the tensor; hashed on the first call, then kept."""
        if "_entry" not in self.__dict__:
            if self._whole():
                return self.tensor.entry()
            for _ in self.blocks():
                pass  # hashed on the way
        found: TensorEntry = self.__dict__["_entry"]
        return found

    def forget(self) -> None:
        """Let go of the committed tensor; it is made anew when it is asked for again."""
        found = self.__dict__.pop("tensor", None)
        if found is not None:
            self.__dict__["_entry"] = found.entry()

    def _whole(self) -> bool:
        """Whether the committed tensor is there without being made."""
        return self.scheme is Scheme.UNCHANGED or "tensor" in self.__dict__

    def _made(self) -> Iterator[Array]:
        """Yield the committed values block by block, in the same memory where they have to be made."""
        if self.items is None:
            return
        room = None if self.scheme is Scheme.EXACT else np.empty(min(self.items.size, BLOCK), "<f4")
        for start in range(0, self.items.size, BLOCK):
            block = slice(start, start + BLOCK)
            if room is None:
                yield self.items[block]
            else:
                out = room[: self.items.size - start]
                self._compute(block, out)
                yield out

    def _compute(self, block: slice, out: Array) -> None:
        """Make the committed values of some elements."""
        if self.items is None:
            return
        items = self.items[block]
        if self.scheme in _UPPER:
            from_upper(items, out)
        elif self.partner is not None:
            add = add_halves if self.scheme is Scheme.SCALED_DELTA else add_steps
            add(self.partner.data[block], items, self.exponent, out)


def settled(tensor: Tensor, partner: Tensor | None = None) -> Quantised:
    """Return a committed tensor as a part that needs no other to come about; ``partner`` is the base's like it."""
    part = Quantised(tensor.name, tensor.dtype, tensor.shape, partner, items=tensor.data)
    part.__dict__["tensor"] = tensor  # whose hash may be known already
    return part
