"""The compiled loops of `_native.c`.

Buffers are C-contiguous arrays of as many elements each, in the widths given; what is filled is named ``out``, or
``live`` where values are put back. A ``threshold`` is that of the buffer's first element, modulo 2^32. All raise
ValueError for sizes that do not belong together, for memory that is written to and given twice, and for arrays that are
not contiguous or not writable (BufferError, if they are not numpy's); TypeError for too few arguments or too many.
"""

from polstore.codec.snapshot import Array

def add_halves(base: Array, halves: Array, out: Array, scale: float) -> None:
    """Fill float32 with ``base + half · scale``; halves as 16 bits, and one NaN for all that is none."""

def add_steps(base: Array, steps: Array, out: Array, scale: float) -> None:
    """Fill float32 with ``base + step · scale``; steps as int16, and one NaN for all that is none."""

def difference(values: Array, base: Array, out: Array) -> None:
    """Fill 32-bit items with the zigzag codes of differences between the ordered integers of float32."""

def distances(before: Array, after: Array, item_size: int) -> tuple[float, float, float, float, float, float]:
    """Return, of float32 or float64 (by size of an item), in float64: of the differences the sums of magnitudes and of
    squares and the largest magnitude; the inner product; and the sums of squares of ``before`` and of ``after``.
    """

def fine_sums(live: Array, base: Array, scale: float) -> tuple[int, int]:
    """Return, of float32, the sum of the squares of ``floor(|live - base| · scale)``, each of which is at most 2^12,
    and how many differences are not zero.
    """

def from_difference(items: Array, base: Array, out: Array) -> None:
    """Undo `difference`."""

def from_rotated(items: Array, out: Array) -> None:
    """Undo `rotate_left` and `from_upper` at once: 16 bits to float32."""

def from_short_difference(items: Array, base: Array, out: Array) -> None:
    """Fill float32 with the numbers that `short_difference` was given the upper halves of."""

def from_upper(upper: Array, out: Array) -> None:
    """Fill float32 whose upper 16 bits these are, the rest being 0."""

def join(*planes_and_out: Array) -> None:
    """Fill items of 2 or 4 bytes from as many planes, lowest first; the items come last."""

def peak(live: Array, base: Array = ...) -> float:
    """Return the largest magnitude of float32, or of differences of float32; NaN if there is one."""

def rotate_left(words: Array, out: Array) -> None:
    """Rotate 16-bit words by one bit."""

def short_difference(upper: Array, base: Array, out: Array) -> None:
    """Fill 16-bit items with zigzag codes of differences between the ordered integers of float32, 18 bits dropped.

    Of the values only the upper 16 bits are given, the lower two of them being 0.
    """

def split(items: Array, planes: Array, item_size: int) -> None:
    """Fill bytes with the planes of items of 2 or 4 bytes, one plane after the other, lowest first. Sizes in bytes."""

def to_halves(live: Array, base: Array, out: Array, inverse: float, scale: float, write_back: bool) -> None:
    """Fill 16 bits with the halves nearest to ``(live - base) · inverse``; write back ``base + half · scale``."""

def to_steps(
    live: Array, base: Array, out: Array, inverse: float, scale: float, threshold: int, write_back: bool
) -> None:
    """Fill int16 with ``(live - base) · inverse``, rounded in proportion; write back ``base + step · scale``."""

def to_upper(live: Array, out: Array, threshold: int, dropped: int, keep_nonzero: bool, write_back: bool) -> None:
    """Fill 16 bits with the upper half of float32 rounded in proportion to what is left without ``dropped`` bits."""

def unzigzag_steps(items: Array, out: Array) -> None:
    """Undo `zigzag_steps`."""

def zigzag_steps(steps: Array, out: Array) -> None:
    """Fill 16-bit items with the zigzag codes of int16."""
