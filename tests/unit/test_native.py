"""What the codec's compiled loops compute, function by function, against slow and obvious references."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest

from polstore.codec import native as seam
from polstore.codec import norms
from polstore.codec.proportion import PLACE, round_steps, round_upper
from polstore.codec.quantise import exponent_of
from tests.native_calls import SIZES, SPECIAL, Memory, any_words

if TYPE_CHECKING:
    from collections.abc import Callable

native = pytest.importorskip("polstore.codec._native")

MAGNITUDE = 0x7FFFFFFF
EVERY = np.arange(1 << 16, dtype="<u2")
OFFSETS = (0, 1, 2, 3)
THRESHOLD = 0xC0FFEE11


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"<u{array.dtype.itemsize}")


# References, on integers of 64 bits that nothing overflows


def integers(words: np.ndarray) -> np.ndarray:
    return words.astype("<i8")


def ordered(words: np.ndarray) -> np.ndarray:
    wide = integers(bits(words))
    return np.where(wide > MAGNITUDE, -(wide & MAGNITUDE) - 1, wide)


def unordered(values: np.ndarray) -> np.ndarray:
    return np.where(values < 0, 0x80000000 - values - 1, values)


def wrapped(values: np.ndarray, width: int) -> np.ndarray:
    half = 1 << (width - 1)
    return (values + half) % (2 * half) - half


def folded(values: np.ndarray) -> np.ndarray:
    return np.where(values < 0, -2 * values - 1, 2 * values)


def unfolded(codes: np.ndarray) -> np.ndarray:
    wide = integers(codes)
    return np.where(wide % 2 == 1, -(wide + 1) // 2, wide // 2)


def above(words: np.ndarray) -> np.ndarray:
    """The upper 14 bits of ordered integers."""
    return ordered(words) // (1 << 18)


def added(base: np.ndarray, part: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        total = base + part
    bits(total)[np.isnan(total)] = 0x7FC00000
    return total


def scaled(values: np.ndarray, scale: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        return values.astype("<f4") * np.float32(scale)


REFERENCES: dict[str, tuple[tuple[str, ...], str, Callable[..., np.ndarray]]] = {
    "add_halves": (("<f4", "<u2"), "<f4", lambda base, halves: added(base, scaled(halves.view("<f2"), 2.0**-3))),
    "add_steps": (("<f4", "<i2"), "<f4", lambda base, steps: added(base, scaled(steps, 2.0**-3))),
    "difference": (("<f4", "<f4"), "<u4", lambda new, base: folded(wrapped(ordered(new) - ordered(base), 32))),
    "from_difference": (
        ("<u4", "<f4"), "<u4", lambda items, base: unordered(wrapped(ordered(base) + unfolded(items), 32))
    ),
    "from_rotated": (("<u2",), "<u4", lambda items: integers(items) // 2 * 2**16 + integers(items) % 2 * 2**31),
    "from_short_difference": (
        ("<u2", "<f4"), "<u4",
        lambda items, base: unordered(wrapped((above(base) + unfolded(items)) * (1 << 18), 32)) & 0xFFFC0000,
    ),
    "from_upper": (("<u2",), "<u4", lambda upper: integers(upper) * 2**16),
    "rotate_left": (("<u2",), "<u2", lambda words: integers(words) * 2 % 2**16 + integers(words) // 2**15),
    "short_difference": (
        ("<u2", "<f4"), "<u2",
        lambda upper, base: folded(above((upper.astype("<u4") << 16).view("<f4")) - above(base)),
    ),
    "unzigzag_steps": (("<u2",), "<i2", unfolded),
    "zigzag_steps": (("<i2",), "<u2", lambda steps: folded(integers(steps))),
}  # fmt: skip


def check(name: str, *inputs: np.ndarray, offset: int = 0) -> None:
    _, dtype, reference = REFERENCES[name]
    numbers = (2.0**-3,) if name.startswith("add_") else ()
    held = [Memory(array, offset) for array in inputs]
    out = Memory(np.zeros(inputs[0].size, dtype), (offset + 1) % 4)
    getattr(native, name)(*(memory.array for memory in held), out.array, *numbers)
    assert np.array_equal(bits(out.array), bits(reference(*inputs).astype(dtype, copy=False)))
    assert out.untouched_around()
    for memory, array in zip(held, inputs, strict=True):
        assert memory.untouched_around()
        assert memory.array.tobytes() == array.tobytes()


@pytest.mark.parametrize("name", REFERENCES)
def test_any_bits_in_any_number_anywhere(name):
    dtypes = REFERENCES[name][0]
    for size in SIZES:
        for offset in OFFSETS if size < 100 else OFFSETS[:2]:
            check(name, *(any_words(size, dtype, seed) for seed, dtype in enumerate(dtypes)), offset=offset)


@pytest.mark.parametrize("name", [name for name, (dtypes, *_) in REFERENCES.items() if "2" in dtypes[-1] + dtypes[0]])
def test_every_16_bits(name):
    dtypes = REFERENCES[name][0]
    for seed in range(1 if len(dtypes) == 1 else 3):
        check(name, *(EVERY.view(dtype) if "2" in dtype else any_words(1 << 16, dtype, seed) for dtype in dtypes))


@pytest.mark.parametrize("name", ["difference", "from_difference"])
def test_special_words_against_each_other(name):
    one, other = np.meshgrid(np.array(SPECIAL, "<u4"), np.array(SPECIAL, "<u4"))
    check(name, one.ravel().view(REFERENCES[name][0][0]), other.ravel().view("<f4"))


def test_there_is_one_nan_whatever_it_comes_of():
    """Of two NaN a compiler may pass on either, and processors differ in the sign of what is left of two infinities."""
    base = np.array([0x7F800001, 0xFFC12345, 0x3F800000, 0x7F800000, 0xFF800000, 0xFF923456] * 7, "<u4").view("<f4")
    halves = np.array([0xFE33, 0x3C00, 0x7C01, 0xFC00, 0x7C00, 0xFC00] * 7, "<u2")
    out = np.empty(base.size, "<f4")
    native.add_halves(base, halves, out, 1.0)
    assert (bits(out) == 0x7FC00000).all()


@pytest.mark.parametrize("size", [2, 4])
def test_planes(size):
    for count in SIZES:
        for offset in OFFSETS if count < 100 else OFFSETS[:2]:
            items = Memory(any_words(count, f"<u{size}"), offset)
            wanted = [items.array >> 8 * place & 0xFF for place in range(size)]
            planes = Memory(np.zeros(count * size, "|u1"), offset)
            native.split(items.array, planes.array, size)
            assert planes.array.tolist() == [octet for plane in wanted for octet in plane.tolist()]
            out = Memory(np.zeros(count, f"<u{size}"), offset)
            native.join(*planes.array.reshape(size, count), out.array)
            assert (out.array == items.array).all()
            assert all(memory.untouched_around() for memory in (items, planes, out))


# Live values to items


def near_halves() -> np.ndarray:
    """Every half, the midpoints between them, the neighbours of all these, and what random bits there are."""
    halves = np.sort(EVERY.view("<f2")[np.isfinite(EVERY.view("<f2"))].astype("<f4"))
    middles = ((halves[1:].astype("<f8") + halves[:-1]) / 2).astype("<f4")
    seeds = np.concatenate([halves, middles])
    around = [np.nextafter(seeds, np.float32(side)) for side in (math.inf, -math.inf)]
    values = np.concatenate([seeds, *around, any_words(100_000, "<f4"), np.array([-0.0, 65519.996], "<f4")])
    return values[np.abs(values) < 65520]


@pytest.mark.parametrize("back", [False, True])
def test_to_halves_is_numpys_cast(back):
    values = near_halves()
    assert values.size > 4 << 16
    items = np.zeros(values.size, "<u2")
    live = values.copy()
    native.to_halves(live, np.zeros_like(live), items, 1.0, 1.0, back)
    sums = values - np.float32(0)
    with np.errstate(all="ignore"):
        wanted = sums.astype("<f2")
    assert np.array_equal(items, bits(wanted))
    left = wanted.astype("<f4") + np.float32(0) if back else values
    assert np.array_equal(bits(live), bits(left))


def states(size: int, offset: int, seed: int = 0) -> tuple[Memory, Memory, int]:
    """Return live values, a base that they are near in all ways, and the exponent of their halves."""
    random = np.random.default_rng(seed)
    base = any_words(size, "<f4", seed)
    base[~(np.abs(base) < 2.0**100)] = 1.5
    delta = random.standard_normal(size) * np.exp(-random.uniform(0, 30, size))
    live = np.where(random.random(size) < 0.2, base, base + delta).astype("<f4")
    largest = float(np.abs(live - base).max(initial=0.0))
    return Memory(live, offset), Memory(base, (offset + 3) % 4), exponent_of(largest)


def check_live(loop, live: Memory, base: Memory | None, items: Memory, wanted: np.ndarray, left: np.ndarray) -> None:
    """Call a loop on live values, without and with write-back."""
    before = live.array.copy()
    under = None if base is None else base.array.copy()
    for back in (False, True):
        items.array[:] = 0
        loop(live.array, *(() if base is None else (base.array,)), items.array, back)
        assert np.array_equal(items.array, wanted)
        assert np.array_equal(bits(live.array), bits(left if back else before))
        assert base is None or np.array_equal(bits(base.array), bits(under))
        assert live.untouched_around()
        assert items.untouched_around()


@pytest.mark.parametrize("size", SIZES)
def test_to_halves_against_a_base(size):
    for offset in OFFSETS if size < 100 else OFFSETS[:2]:
        live, base, exponent = states(size, offset)
        inverse, scale = 2.0**-exponent, 2.0**exponent
        halves = scaled(live.array - base.array, inverse).astype("<f2")
        check_live(
            lambda live, base, out, back: native.to_halves(live, base, out, inverse, scale, back),  # noqa: B023
            live, base, Memory(np.zeros(size, "<u2"), offset), bits(halves), base.array + scaled(halves, scale),
        )  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_to_steps_against_a_base(size):
    for offset in OFFSETS if size < 100 else OFFSETS[:2]:
        live, base, exponent = states(size, offset)
        exponent += 1  # so that the largest delta is below 2^14 steps
        inverse, scale = 2.0**-exponent, 2.0**exponent
        steps = round_steps(live.array - base.array, THRESHOLD, exponent)
        check_live(
            lambda live, base, out, back: native.to_steps(live, base, out, inverse, scale, THRESHOLD, back),  # noqa: B023
            live, base, Memory(np.zeros(size, "<i2"), offset), steps, base.array + scaled(steps, scale),
        )  # fmt: skip


@pytest.mark.parametrize("dropped", [16, 17, 18, 20, 31])
@pytest.mark.parametrize("keep", [False, True])
def test_to_upper(dropped, keep):
    for size in SIZES:
        for offset in OFFSETS if size < 100 else OFFSETS[:2]:
            live = Memory(any_words(size, "<f4", dropped), offset)
            upper = round_upper(live.array, THRESHOLD, dropped, keep_nonzero=keep)
            check_live(
                lambda live, out, back: native.to_upper(live, out, THRESHOLD, dropped, keep, back),
                live, None, Memory(np.zeros(size, "<u2"), offset), upper, (upper.astype("<u4") << 16).view("<f4"),
            )  # fmt: skip


def test_rounding_in_proportion_in_plain_integers():
    count = 500
    words = any_words(count, "<u4")
    thresholds = [(THRESHOLD + place * PLACE) % 2**32 for place in range(count)]
    for dropped, keep in ((16, True), (18, True), (20, False)):
        wanted = []
        for word, threshold in zip(words.tolist(), thresholds, strict=True):
            rounded = ((word + threshold // 2 ** (32 - dropped)) % 2**32) >> dropped
            if keep and word & MAGNITUDE and not rounded << dropped & MAGNITUDE:
                rounded += 1
            wanted.append(rounded << dropped >> 16)
        items = np.zeros(count, "<u2")
        native.to_upper(words.copy(), items, THRESHOLD, dropped, keep, False)
        assert items.tolist() == wanted
    deltas = (np.random.default_rng(1).integers(-(1 << 20), 1 << 20, count) / (1 << 8)).astype("<f4")  # exact below
    steps = np.zeros(count, "<i2")
    native.to_steps(deltas.copy(), np.zeros(count, "<f4"), steps, 0.5, 2.0, THRESHOLD, False)
    exact = [Fraction(float(delta)) / 2 for delta in deltas]
    whole = [math.floor(abs(value) + Fraction(t >> 8, 2**24)) for value, t in zip(exact, thresholds, strict=True)]
    near = [abs(value) + Fraction(t >> 8, 2**24) for value, t in zip(exact, thresholds, strict=True)]
    sure = [
        number for number, value in enumerate(near) if 2**-11 < value % 1 < 1 - 2**-11
    ]  # whatever float32 rounds to
    assert len(sure) > count * 0.9
    assert [int(steps[n]) for n in sure] == [whole[n] if exact[n] >= 0 else -whole[n] for n in sure]


# Numbers about whole buffers


@pytest.mark.parametrize("size", SIZES)
def test_sums_of_squares_of_what_is_left_of_a_comma(size):
    for offset in OFFSETS[:2]:
        live, base, exponent = states(size, offset)
        scale = 2.0 ** (12 - 15 - exponent)
        fine = [math.floor(abs(delta) * scale) for delta in (live.array - base.array).tolist()]
        wanted = sum(value * value for value in fine), int(np.count_nonzero(live.array - base.array))
        assert native.fine_sums(live.array, base.array, scale) == wanted
        assert size < 100 or wanted[0] > 0


def test_the_sums_of_many_large_differences_are_exact():
    live = np.full(40000, 1.0, "<f4")
    assert native.fine_sums(live, np.zeros_like(live), 4096.0) == (40000 << 24, 40000)


@pytest.mark.parametrize("size", SIZES)
def test_the_largest_magnitude(size):
    for offset in OFFSETS:
        live, base = (Memory(any_words(size, "<f4", seed), offset).array for seed in range(2))
        for values in (live, base):
            bits(values)[np.isnan(values)] = 0xBF800000
        assert native.peak(live) == np.abs(live).max(initial=0.0)
        with np.errstate(all="ignore"):
            difference = live - base
        found = native.peak(live, base)
        assert math.isnan(found) if np.isnan(difference).any() else found == np.abs(difference).max(initial=0.0)


@pytest.mark.parametrize("bad", [0x7F800001, 0xFF800001, 0x7FC00000, 0xFFFFFFFF])
def test_one_nan_is_the_largest_magnitude_wherever_it_is(bad):
    for place in range(33):
        values = np.full(33, math.inf, "<f4")
        bits(values)[place] = bad
        assert math.isnan(native.peak(values))
        assert math.isnan(native.peak(np.ones(33, "<f4"), values))
        assert math.isnan(native.peak(values, np.ones(33, "<f4")))
    assert native.peak(np.full(33, -math.inf, "<f4")) == math.inf
    assert math.isnan(native.peak(np.full(33, math.inf, "<f4"), np.full(33, math.inf, "<f4")))


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("size", SIZES)
def test_distances_are_exact_sums(dtype, size):
    random = np.random.default_rng(size)
    for offset in OFFSETS[:2]:
        before = Memory(random.standard_normal(size).astype(dtype), offset).array
        after = Memory((before + 1e-3 * random.standard_normal(size)).astype(dtype), offset).array
        l1, squares, largest, dot, start, end = native.distances(before, after, before.itemsize)
        b, a = before.astype("<f8"), after.astype("<f8")
        assert l1 == pytest.approx(math.fsum(abs(a - b)), rel=1e-12, abs=0)
        assert squares == pytest.approx(math.fsum((a - b) ** 2), rel=1e-12, abs=0)
        assert largest == abs(a - b).max(initial=0.0)
        assert dot == pytest.approx(math.fsum(a * b), rel=1e-12, abs=0)
        assert start == pytest.approx(math.fsum(b * b), rel=1e-12, abs=0)
        assert end == pytest.approx(math.fsum(a * a), rel=1e-12, abs=0)


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize(("one", "other"), [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, -math.inf),
                                            (math.inf, math.inf), (math.inf, -math.inf), (math.nan, math.nan),
                                            (0.0, math.inf), (-0.0, 0.0)])  # fmt: skip
def test_distances_of_what_is_not_finite_are_numpys(dtype, one, other, monkeypatch):
    for place in range(19):  # two rounds of sums side by side, and what is over
        before, after = np.linspace(1, 2, 19, dtype=dtype), np.linspace(2, 5, 19, dtype=dtype)
        before[place], after[place] = one, other
        found = native.distances(before, after, before.itemsize)
        with monkeypatch.context() as patch:
            patch.setattr(seam, "compiled", None)
            wanted = norms._sums(before, after)
        assert found == pytest.approx(wanted, rel=1e-12, nan_ok=True)


def test_distances_of_float64_may_overflow():
    large, most = np.full(9, 2.0**600), math.inf
    assert native.distances(large, -large, 8) == (9 * 2.0**601, most, 2.0**601, -most, most, most)
    smallest = np.full(9, 2.0**-1074)
    assert native.distances(smallest, -smallest, 8) == (9 * 2.0**-1073, 0.0, 2.0**-1073, 0.0, 0.0, 0.0)
