"""When rounding a segment's end against its base counts as hiding its training, and when not."""

import math

import numpy as np
import pytest

from polstore.codec.quantise import quantise
from polstore.codec.snapshot import BLOCK, Snapshot, Tensor
from polverify.rounding import hides_training

pytestmark = pytest.mark.usefixtures("loops")

SIZE = BLOCK + 1000  # so that there is more than one block


def drawn(seed: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, SIZE).astype("<f4")


def state(**weights: np.ndarray) -> Snapshot:
    tensors = [Tensor(f"parameter/{name}", "float32", data.shape, data) for name, data in sorted(weights.items())]
    return Snapshot(tuple(tensors), b"s")


def found(start: np.ndarray, trained: np.ndarray, base: np.ndarray, **others: np.ndarray) -> str | None:
    end = state(w=trained, **others)
    return hides_training(state(w=start, **others), end, quantise(end, state(w=base, **others), "float16-writeback"))


@pytest.mark.parametrize("update", [0.0, 1e-9, 1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("base", [0.0, 1.0, 5.0])
def test_any_base_that_training_leads_away_from_will_do(update, base):
    """Updates at the end of a schedule are far below rounding, and are not held against an honest run."""
    assert found(drawn(1), drawn(1) + drawn(2, update), drawn(3, base)) is None


@pytest.mark.parametrize("update", [0.0, 1e-3, 1e-1])
def test_a_base_with_one_huge_weight_hides_all(update):
    base = drawn(3)
    base[0] = 2.0**100
    text = found(drawn(1), drawn(1) + drawn(2, update), base)
    assert text is not None
    apart = math.sqrt(float(np.sum((drawn(1) + drawn(2, update) - base)[1:].astype("<f8") ** 2)))
    assert f"moved the weights by {apart:.2g}" in text


def test_what_training_moved_further_is_no_matter():
    base = drawn(3) + np.float32(30)
    assert found(drawn(1), drawn(1) + drawn(2, 1e-3), base) is not None
    assert found(drawn(1), drawn(1) + drawn(2, 1.0), base) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_tensor_of_no_numbers_hides_nothing(value):
    """Its values are not rounded at all, and do not cover up for others."""
    base = drawn(3)
    base[0] = 2.0**100
    odd = np.full(3, value, "<f4")
    assert found(drawn(1), drawn(1) + drawn(2, 1e-3), base, odd=odd) is not None
    base[0] = value
    assert found(drawn(1), drawn(1) + drawn(2, 1e-3), base) is None
