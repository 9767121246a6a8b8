from __future__ import annotations

import numpy as np
import pytest

from polstore.codec import halves, planes

pytestmark = pytest.mark.usefixtures("loops")

EVERY_HALF = np.arange(1 << 16, dtype="<u2")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_split_takes_byte_i_of_every_element(size: int) -> None:
    values = np.frombuffer(bytes(range(size * 5)), f"<u{size}")
    parts = planes.split(values)
    assert [part.tolist() for part in parts] == [[i + size * j for j in range(5)] for i in range(size)]
    assert planes.join(parts).tobytes() == values.tobytes()


@pytest.mark.parametrize("size", [2, 4, 8])
def test_split_and_join_of_nothing(size: int) -> None:
    assert planes.join(planes.split(np.empty(0, f"<u{size}"))).size == 0


def test_ordered_integers_have_the_order_of_the_numbers() -> None:
    numbers = EVERY_HALF.view("<f2").astype("<f8")
    integers = planes.ordered(EVERY_HALF)
    finite = np.isfinite(numbers)
    by_integer = numbers[finite][np.argsort(integers[finite])]
    assert (np.diff(by_integer) >= 0).all()
    assert integers[0x8000] == -1  # -0.0
    assert integers[0] == 0
    assert len(set(integers.tolist())) == 1 << 16
    assert (planes.unordered(integers) == EVERY_HALF).all()


def test_zigzag_counts_both_ways_and_comes_back() -> None:
    assert planes.zigzag(np.array([0, -1, 1, -2, 2], "<i4")).tolist() == [0, 1, 2, 3, 4]
    every = EVERY_HALF.view("<i2")
    assert (planes.unzigzag(planes.zigzag(every)) == every).all()
    assert sorted(planes.zigzag(every).tolist()) == list(range(1 << 16))


@pytest.mark.parametrize("size", [4, 8])
def test_wide_patterns_at_the_edges_come_back(size: int) -> None:
    top = (1 << (8 * size)) - 1
    values = np.array([0, 1, top, top - 1, top >> 1, (top >> 1) + 1, (top >> 1) + 2], f"<u{size}")
    assert (planes.unordered(planes.ordered(values)) == values).all()
    assert (planes.unzigzag(planes.zigzag(values.view(f"<i{size}"))) == values.view(f"<i{size}")).all()
    with np.errstate(all="raise"):
        difference = planes.ordered(values)[:, None] - planes.ordered(values)[None, :]
    back = planes.unzigzag(planes.zigzag(difference.reshape(-1))).reshape(difference.shape)
    assert (back + planes.ordered(values)[None, :] == planes.ordered(values)[:, None]).all()


def test_halves_to_float32_is_numpys_cast() -> None:
    assert halves.from_halves(EVERY_HALF).tobytes() == EVERY_HALF.view("<f2").astype("<f4").tobytes()


def test_float32_to_halves_is_numpys_cast_at_every_half_midpoint_and_neighbour() -> None:
    numbers = EVERY_HALF.view("<f2").astype("<f4")
    numbers = np.sort(numbers[np.isfinite(numbers)])
    midpoints = ((numbers[1:].astype("<f8") + numbers[:-1]) / 2).astype("<f4")
    seeds = np.concatenate([numbers, midpoints])
    values = np.concatenate([seeds, np.nextafter(seeds, np.float32(np.inf)), np.nextafter(seeds, np.float32(-np.inf))])
    values = np.concatenate([values, np.array([-0.0, 1e-45, -1e-45, 65519.996, -65519.996], "<f4")])
    values = values[np.abs(values) < 65520]
    assert halves.to_halves(values).tobytes() == values.astype("<f2").tobytes()


def test_float32_to_halves_is_numpys_cast_on_random_bits() -> None:
    values = np.random.default_rng(1).integers(0, 1 << 32, 1_000_000, "<u4").view("<f4")
    values = values[np.abs(values) < 65520]
    with np.errstate(all="ignore"):
        wanted = values.astype("<f2")
    assert values.size > 300_000
    assert halves.to_halves(values).tobytes() == wanted.tobytes()
