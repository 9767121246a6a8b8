"""How every function of the codec's compiled loops is called, and memory that shows what was touched."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

GUARD = 64  # bytes on either side of a buffer
FILL = 0xA5

# 16384 elements are worked on with the interpreter's lock held, one more without; the others end in every place of a
# processor's wide registers.
SIZES = (0, 1, 7, 8, 9, 31, 33, 16384, 16385, 40000)


class Call(NamedTuple):
    """A function, the bytes of an element of each buffer (negative: written to), and the numbers that follow."""

    name: str
    sizes: tuple[int, ...]
    numbers: tuple[float, ...] = ()

    def buffers(self, count: int) -> list[bytearray]:
        """Return buffers of as many elements."""
        return [bytearray(abs(size) * count) for size in self.sizes]

    @property
    def written(self) -> list[int]:
        """Places of the buffers that are written to."""
        return [place for place, size in enumerate(self.sizes) if size < 0]


CALLS = (
    Call("add_halves", (4, 2, -4), (0.625,)),
    Call("add_steps", (4, 2, -4), (0.625,)),
    Call("difference", (4, 4, -4)),
    Call("distances", (4, 4), (4,)),
    Call("distances", (8, 8), (8,)),
    Call("fine_sums", (4, 4), (4.0,)),
    Call("from_difference", (4, 4, -4)),
    Call("from_rotated", (2, -4)),
    Call("from_short_difference", (2, 4, -4)),
    Call("from_upper", (2, -4)),
    Call("join", (1, 1, -2)),
    Call("join", (1, 1, 1, 1, -4)),
    Call("peak", (4,)),
    Call("peak", (4, 4)),
    Call("rotate_left", (2, -2)),
    Call("short_difference", (2, 4, -2)),
    Call("split", (2, -2), (2,)),
    Call("split", (4, -4), (4,)),
    Call("to_halves", (-4, 4, -2), (8.0, 0.125, True)),
    Call("to_steps", (-4, 4, -2), (8.0, 0.125, 0xC0FFEE11, True)),
    Call("to_upper", (-4, -2), (0xC0FFEE11, 20, True, True)),
    Call("unzigzag_steps", (2, -2)),
    Call("zigzag_steps", (2, -2)),
)


class Memory:
    """A copy of an array in writable memory that begins anywhere, between guards."""

    def __init__(self, array: np.ndarray, offset: int = 0) -> None:
        self._start = GUARD + offset
        self._bytes = bytearray([FILL]) * self._start + array.tobytes() + bytearray([FILL]) * GUARD
        self._end = self._start + array.nbytes
        self.array = np.frombuffer(self._bytes, array.dtype, array.size, self._start)

    def untouched_around(self) -> bool:
        """Say whether the guards are what they were."""
        around = self._bytes[: self._start] + self._bytes[self._end :]
        return around == bytes([FILL]) * len(around)


def any_words(count: int, dtype: str, seed: int = 1) -> np.ndarray:
    """Return any bits at all, with NaN, infinities, zeros of both signs and subnormals among those of floats."""
    random = np.random.default_rng(seed)
    size = np.dtype(dtype).itemsize
    words = random.integers(0, 1 << 8 * size, count, f"<u{size}")
    if size == 4:
        special = np.array(SPECIAL, "<u4")
        at = random.random(count) < 0.3
        words[at] = special[random.integers(0, special.size, int(at.sum()))]
    return words.view(dtype)


SPECIAL = [
    sign | word
    for sign in (0, 0x80000000)
    for word in (0, 1, 2, 0x007FFFFF, 0x00800000, 0x00800001, 0x33800000, 0x38800000, 0x3F7FFFFF, 0x3F800000,
                 0x3F803FFF, 0x477FE000, 0x477FF000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF)
]  # fmt: skip
