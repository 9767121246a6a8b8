"""Distances of tensors and the decision on them, against slow and obvious references."""

import math

import numpy as np
import pytest

from polstore.codec.snapshot import BLOCK, Snapshot, Tensor
from polstore.errors import ReplayError, UsageError
from polverify.distance import METRICS, Criterion, check_d_ref, normalised, reproduction_error
from polverify.noise import Floor, Replayed, gap, largest_gap, measure, shaken, size

pytestmark = pytest.mark.usefixtures("loops")

GENERATOR = np.random.default_rng(1)


def tensor(values, dtype="float32", name="parameter/w"):
    carrier = {"float32": "<f4", "float64": "<f8", "float16": "<f2", "int64": "<i8", "bool": "|u1"}[dtype]
    data = np.ascontiguousarray(values, carrier)
    return Tensor(name, dtype, (data.size,), data)


def bfloat16(values):
    data = (np.asarray(values, "<f4").view("<u4") >> 16).astype("<u2")
    return Tensor("parameter/w", "bfloat16", (data.size,), data)


def complex64(values):
    data = np.asarray(values, "<c8").view("<u8")
    return Tensor("buffer/z", "complex64", (data.size,), data)


def complex128(values):
    data = np.asarray(values, "<c16").view("<u8")
    return Tensor("buffer/z", "complex128", (data.size // 2,), data)


@pytest.mark.parametrize("count", [1, 7, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
@pytest.mark.parametrize("make", [tensor, lambda v: tensor(v, "float64"), lambda v: tensor(v, "float16"), bfloat16])
def test_distances_of_real_tensors(make, count):
    one, other = (make(GENERATOR.standard_normal(count)) for _ in range(2))

    def wide(item):
        if item.dtype == "bfloat16":
            return np.array([float(np.uint32(int(bits) << 16).view(np.float32)) for bits in item.data])
        return np.array([float(value) for value in item.data])

    difference = wide(one) - wide(other)
    assert math.isclose(gap(one, other), math.sqrt(sum(difference**2)), rel_tol=1e-9)
    assert largest_gap(one, other) == abs(difference).max()
    assert largest_gap(one, None) == abs(wide(one)).max()
    assert math.isclose(size(one), math.sqrt(sum(wide(one) ** 2)), rel_tol=1e-9)
    assert gap(one, make(wide(one))) == 0


@pytest.mark.parametrize("make", [complex64, complex128])
def test_distances_of_complex_tensors(make):
    values = GENERATOR.standard_normal((2, 2 * BLOCK + 3)) + 1j * GENERATOR.standard_normal((2, 2 * BLOCK + 3))
    one, other = make(values[0]), make(values[1])
    assert math.isclose(gap(one, other), np.linalg.norm(values[0] - values[1]), rel_tol=1e-6)


def test_what_is_no_number_is_infinitely_far_away():
    one = tensor([1.0, 2.0])
    assert gap(one, None) == math.inf
    assert gap(one, tensor([1.0, math.nan])) == math.inf
    assert gap(one, tensor([1.0, math.inf])) == math.inf
    assert gap(tensor([math.nan]), tensor([math.nan])) == 0
    assert gap(tensor([1], "int64"), tensor([2], "int64")) == math.inf
    assert gap(tensor([1], "bool"), tensor([1], "bool")) == 0


def replayed(*tensors, losses=(1.0,), scalars=b"s", used=b"u"):
    return Replayed(Snapshot(tuple(tensors), scalars), losses, used)


def test_noise_is_the_largest_difference_of_any_setting():
    reference = replayed(tensor([1.0, 1.0]), losses=(1.0, 2.0))
    others = [
        ("a", replayed(tensor([1.0, 1.5]), losses=(1.0, 2.5))),
        ("b", replayed(tensor([4.0, 5.0]), losses=(0.75, math.nan))),
    ]
    assert measure(reference, others) == Floor(("a", "b"), {"parameter/w": 5.0}, (0.25, math.inf), unstable=False)
    for other in (replayed(tensor([1.0, 1.0]), scalars=b"t"), replayed(tensor([1.0, 1.0]), used=b"v")):
        assert measure(replayed(tensor([1.0, 1.0])), [("a", other)]).unstable


def test_a_shaken_start_is_off_by_its_rounding_at_most_and_elsewhere_as_it_was():
    weights = tensor([1.0, -3.0, math.nan, 0.0])
    base = Snapshot((tensor([1.5, -3.0, 1.0, 8.0]),), b"")
    moment = tensor([2.0, 0.0, 1e-30], name="optimizer/w/momentum_buffer")
    counter = tensor([3.0], name="optimizer/w/step")
    start = Snapshot((moment, counter, weights), b"")
    found = shaken(start, base, 1)
    off = found.tensor("parameter/w").data - weights.data
    assert 0 < abs(off[0]) <= 0.5 * 2**-11
    assert off[1] == 0
    assert math.isnan(off[2])
    assert 0 < abs(off[3]) <= 8 * 2**-11
    off = found.tensor("optimizer/w/momentum_buffer").data - moment.data
    assert 0 < abs(off[0]) <= 2 * 2**-7
    assert off[1] == 0
    assert found.tensor("optimizer/w/step") is counter
    assert shaken(start, base, 1).digest() == found.digest()
    assert shaken(start, base, 2).digest() != found.digest()
    most = max(abs(shaken(start, base, seed).tensor("optimizer/w/momentum_buffer").data[0] - 2.0) for seed in range(20))
    assert most > 2 * 2**-8  # by up to a step of bfloat16, as rounding in proportion may have moved it
    keyframe = shaken(start, start, 1)  # whose weights were not rounded
    assert keyframe.tensor("parameter/w").data.tobytes() == weights.data.tobytes()
    assert keyframe.tensor("optimizer/w/momentum_buffer").entry() == found.tensor("optimizer/w/momentum_buffer").entry()


def test_the_papers_distances():
    one, other = GENERATOR.standard_normal((2, 50)).astype("<f4")
    found = reproduction_error(replayed(tensor(one)).end, replayed(tensor(other)).end)
    one, other = one.astype(float), other.astype(float)
    wanted = {
        "l1": abs(one - other).sum(),
        "l2": np.linalg.norm(one - other),
        "linf": abs(one - other).max(),
        "cos": 1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other),
    }
    assert found == pytest.approx(wanted, rel=1e-9)
    assert normalised(found, {"l2": 2.0}) == {"l2": found["l2"] / 2}
    same = replayed(tensor(one)).end
    assert reproduction_error(same, same) == dict.fromkeys(METRICS, 0.0)


def test_the_criterion():
    error = {"l1": 1.0, "l2": 2.0, "linf": math.nan, "cos": 0.0}
    Criterion(2.0).require("segment 0", error, {})
    Criterion(1.0).require("segment 0", error, {"l2": 2.0})
    Criterion(0.0, "cos").require("segment 0", error, {})
    for criterion, d_ref in (
        (Criterion(1.9), {}),
        (Criterion(2.0), {"l2": 0.5}),
        (Criterion(1.9), {"l1": 1e9}),
        (Criterion(math.inf, "linf"), {}),
    ):
        with pytest.raises(ReplayError, match="the paper's criterion"):
            criterion.require("segment 0", error, d_ref)


@pytest.mark.parametrize(("delta", "metric"), [(-1.0, "l2"), (math.nan, "l2"), (1.0, "l3")])
def test_criteria_that_make_no_sense(delta, metric):
    with pytest.raises(UsageError):
        Criterion(delta, metric)


@pytest.mark.parametrize("d_ref", [{"l2": 0.0}, {"l2": -1.0}, {"l2": math.nan}, {"l2": math.inf}, {"l3": 1.0}])
def test_reference_distances_that_make_no_sense(d_ref):
    with pytest.raises(UsageError):
        check_d_ref(d_ref)
