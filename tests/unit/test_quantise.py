from __future__ import annotations

import math
import struct
import threading
from fractions import Fraction

import numpy as np
import pytest

from polstore.codec import quantise as module
from polstore.codec.quantise import FIDELITIES, Role, quantise, quantise_tensors, role_of, roles_of
from polstore.codec.snapshot import Snapshot, Tensor
from polstore.errors import MalformedError, MissingError, TrainingError, UsageError

WRITEBACK = "float16-writeback"
WEIGHT, FIRST, SECOND = "parameter/w", "optimizer/w/exp_avg", "optimizer/w/exp_avg_sq"
INF, NAN = math.inf, math.nan


def one(values: list[float] | np.ndarray, name: str = WEIGHT) -> Snapshot:
    data = np.asarray(values, "<f4")
    return Snapshot((Tensor(name, "float32", (data.size,), data),), b"\xc0")


def run(values: list[float] | np.ndarray, base: list[float] | np.ndarray, name: str = WEIGHT) -> np.ndarray:
    return quantise(one(values, name), one(base, name), WRITEBACK).tensors[0].data


def same(a: np.ndarray, b: list[float] | np.ndarray) -> bool:
    return a.tobytes() == np.asarray(b, "<f4").tobytes()


# A slow reference: rounding done on exact rationals.


def rounded(value: Fraction, precision: int, lowest: int) -> Fraction:
    """Round to ``precision`` significant bits and to multiples of 2^lowest at the finest, ties to even."""
    if value == 0:
        return value
    exponent = math.floor(math.log2(abs(value)))
    while Fraction(2) ** exponent > abs(value):
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= abs(value):
        exponent += 1
    unit = Fraction(2) ** max(exponent - precision + 1, lowest)
    return round(value / unit) * unit


def single(value: Fraction) -> Fraction:
    return rounded(value, 24, -149)


def reference_scaled(values: list[Fraction]) -> list[Fraction]:
    largest = max(abs(v) for v in values)
    if largest == 0:
        return values
    e = -126
    while largest / Fraction(2) ** e >= 2**15:
        e += 1
    return [rounded(single(v / Fraction(2) ** e), 11, -24) * Fraction(2) ** e for v in values]


def reference_weight(x: np.ndarray, base: np.ndarray) -> list[Fraction]:
    xs, bs = [Fraction(float(v)) for v in x], [Fraction(float(v)) for v in base]
    deltas = reference_scaled([single(a - b) for a, b in zip(xs, bs, strict=True)])
    return [single(b + single(d)) for b, d in zip(bs, deltas, strict=True)]


SCALES = [1.0, 1e-3, 1e-30, 1e-38, 1e-42, 1e30, 1e38]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("ratio", [1.0, 1e-3, 1e-7])
def test_weights_follow_the_reference(scale: float, ratio: float) -> None:
    random = np.random.default_rng(2)
    base = (random.uniform(-1, 1, 64) * scale).astype("<f4")
    x = (base + random.uniform(-1, 1, 64) * scale * ratio * np.exp(-random.uniform(0, 20, 64))).astype("<f4")
    assert [Fraction(float(v)) for v in run(x, base)] == reference_weight(x, base)


@pytest.mark.parametrize("scale", SCALES)
def test_first_moments_follow_the_reference(scale: float) -> None:
    random = np.random.default_rng(3)
    x = (random.uniform(-1, 1, 64) * scale * np.exp(-random.uniform(0, 30, 64))).astype("<f4")
    wanted = [single(v) for v in reference_scaled([Fraction(float(v)) for v in x])]
    assert [Fraction(float(v)) for v in run(x, np.zeros(64), FIRST)] == wanted


@pytest.mark.parametrize("scale", [*SCALES, 1e-44])
def test_second_moments_follow_the_reference(scale: float) -> None:
    x = (np.random.default_rng(4).uniform(-1, 1, 64) * scale).astype("<f4")
    for got, value in zip(run(x, np.zeros(64), SECOND), x, strict=True):
        wanted = rounded(Fraction(float(value)), 11, -136)
        if value and not wanted:
            wanted = Fraction(2) ** -136 * (1 if value > 0 else -1)
        assert Fraction(float(got)) == wanted


def test_error_bound_of_weights() -> None:
    random = np.random.default_rng(5)
    base = random.standard_normal(20_000).astype("<f4")
    x = (base + 1e-3 * random.standard_normal(20_000) * np.exp(-random.uniform(0, 25, 20_000))).astype("<f4")
    delta = np.abs(x.astype("<f8") - base)
    error = np.abs(run(x, base).astype("<f8") - x)
    ulp = np.spacing(np.maximum(np.abs(x), np.abs(base)))
    assert (error <= delta * 2.0**-11 + delta.max() * 2.0**-39 + ulp).all()


def test_error_bound_of_first_and_second_moments() -> None:
    random = np.random.default_rng(6)
    x = (random.standard_normal(20_000) * np.exp(-random.uniform(0, 60, 20_000))).astype("<f4")
    magnitude = np.abs(x.astype("<f8"))
    first = np.abs(run(x, np.zeros(20_000), FIRST).astype("<f8") - x)
    assert (first <= np.maximum(magnitude * 2.0**-11, magnitude.max() * 2.0**-39)).all()
    second = np.abs(run(x, np.zeros(20_000), SECOND).astype("<f8") - x)
    assert (second <= magnitude * 2.0**-11).all()


def test_worked_example_of_the_spec() -> None:
    base, x = [1.0, -2.0, 0.5], [1.001, -2.0005, 0.5]
    (part,) = quantise_tensors(one(x), one(base), WRITEBACK)
    assert part.exponent == -24
    assert part.items is not None
    assert part.items.tobytes().hex() == "197418f00000"
    assert part.tensor.data.tobytes().hex() == "c820803f300800c00000003f"
    assert run([1.0e-8, 2.5e-8], [0, 0], SECOND).tobytes().hex() == "00c02b3200c0d632"


# Special values


def test_equal_tensors_stay_the_base_bit_for_bit_and_share_its_array() -> None:
    base = one([-0.0, 1.0])
    out = quantise(one([0.0, 1.0]), base, WRITEBACK)
    assert out.tensors[0].data is base.tensors[0].data


def test_negative_zero_of_a_base_turns_positive_where_other_weights_move() -> None:
    assert same(run([-0.0, 2.0], [-0.0, 1.0]), [0.0, 2.0])
    assert same(run([-0.0, 2.0], [-0.0, 1.0], FIRST), [-0.0, 2.0])
    assert same(run([-0.0, 0.0], [-0.0, 1.0], SECOND), [-0.0, 0.0])


def test_zero_first_moments_keep_their_signs() -> None:
    assert same(run([-0.0, 0.0], [3.0, 3.0], FIRST), [-0.0, 0.0])


@pytest.mark.parametrize("name", [WEIGHT, FIRST, SECOND])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_tensor_that_holds_nan_or_inf_is_exact(name: str, bad: float) -> None:
    x = [bad, 1.00001, 1.2345678]
    assert same(run(x, [1, 1, 1], name), x)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_base_that_holds_nan_or_inf_makes_a_weight_exact_and_leaves_moments_alone(bad: float) -> None:
    x = [1.0, 1.2345678]
    assert same(run(x, [bad, 1]), x)
    assert same(run(x, [bad, bad]), x)
    for name in (FIRST, SECOND):
        assert same(run(x, [bad, 1], name), run(x, [0, 1], name))


@pytest.mark.parametrize("pattern", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F7FFFFF, 0xFF7FF000])
@pytest.mark.parametrize("name", [WEIGHT, FIRST, SECOND])
def test_nan_payloads_and_the_largest_floats_are_kept(pattern: int, name: str) -> None:
    # The finite two would round to infinity (second moments) or to 2^128 (the scaled ones).
    x = np.array([pattern, 0x3F800001], "<u4").view("<f4")
    assert same(run(x, [0, 1], name), x)


def test_a_delta_that_overflows_makes_the_tensor_exact() -> None:
    x = [3e38, 1.2345678]
    assert same(run(x, [-3e38, 1]), x)


def test_largest_values_that_still_fit() -> None:
    assert same(run([2.0**127, 1.0], [0, 0], FIRST), [2.0**127, 0.0])
    edge = np.array([0x7F7FEFFF, 0x7F7FF000], "<u4").view("<f4")
    assert run(edge[:1], [0], SECOND).tobytes() == np.array([0x7F7FE000], "<u4").tobytes()
    assert same(run(edge, [0, 0], SECOND), edge)


def test_smallest_values() -> None:
    tiny = struct.unpack("<f", b"\1\0\0\0")[0]
    assert same(run([tiny, -3 * tiny], [0, 0]), [tiny, -3 * tiny])
    assert same(run([tiny, -3 * tiny], [0, 0], FIRST), [tiny, -3 * tiny])
    assert same(run([tiny, -tiny, 0.0], [0, 0, 0], SECOND), [2.0**-136, -(2.0**-136), 0.0])


@pytest.mark.parametrize("scale", SCALES)
def test_idempotence(scale: float) -> None:
    random = np.random.default_rng(7)
    x = (random.standard_normal(1000) * scale / 4).astype("<f4")
    once = run(x, np.zeros(1000), SECOND)
    assert same(run(once, np.ones(1000), SECOND), once)
    # First moments too, as long as the largest did not round up to a power of two.
    first = run(x, np.zeros(1000), FIRST)
    assert math.frexp(np.abs(first).max())[1] == math.frexp(np.abs(x).max())[1]
    assert same(run(first, np.ones(1000), FIRST), first)


def test_order_of_second_moments_is_kept() -> None:
    x = np.sort(np.random.default_rng(8).integers(0, 0x7F000000, 10_000, "<u4").view("<f4"))
    assert (np.diff(run(x, np.zeros(10_000), SECOND)) >= 0).all()


# Roles


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "role"),
    [
        ("parameter/a.weight", "float32", (2, 3), Role.WEIGHT),
        ("parameter/scale", "float32", (), Role.WEIGHT),
        ("parameter/a.weight", "bfloat16", (2, 3), Role.EXACT),
        ("parameter/a.weight", "float64", (2, 3), Role.EXACT),
        ("buffer/bn.running_mean", "float32", (2,), Role.EXACT),
        ("buffer/exp_avg", "float32", (2,), Role.EXACT),
        ("extra/ema/parameter/w", "float32", (2,), Role.EXACT),
        ("extra/ema/exp_avg_sq", "float32", (2,), Role.EXACT),
        ("optimizer/w/momentum_buffer", "float32", (2,), Role.FIRST_MOMENT),
        ("optimizer/a/b/exp_avg", "float32", (2,), Role.FIRST_MOMENT),
        ("optimizer/w/exp_avg", "float32", (), Role.EXACT),
        ("optimizer/w/exp_avg_sq", "float32", (2,), Role.SECOND_MOMENT),
        ("optimizer/w/sum", "float32", (2,), Role.SECOND_MOMENT),
        ("optimizer/w/exp_avg_sq", "bfloat16", (2,), Role.EXACT),
        ("optimizer/w/step", "float32", (), Role.EXACT),
        ("optimizer/w/grad_avg", "float32", (2,), Role.EXACT),
        ("optimizer/w/master_weight", "float32", (2,), Role.EXACT),
        ("optimizer/exp_avg.x/prev", "float32", (2,), Role.EXACT),
        ("optimizer", "float32", (2,), Role.EXACT),
    ],
)
def test_roles(name: str, dtype: str, shape: tuple[int, ...], role: Role) -> None:
    assert role_of(name, dtype, shape) is role


def test_every_key_of_torch_optim_is_known_or_exact_on_purpose() -> None:
    # From `state[...] =` in torch.optim 2.13; what divides by a square root must not be in the first group.
    assert frozenset({"exp_avg", "momentum_buffer"}) == module.FIRST_MOMENTS
    torch_keys = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf"}
    assert torch_keys | {"row_var", "col_var", "variance"} <= module.SECOND_MOMENTS


def test_square_avg_beside_grad_avg_is_exact() -> None:
    def tensor(name: str) -> Tensor:
        return Tensor(name, "float32", (1,), np.array([1.2345678], "<f4"))

    tensors = [tensor("optimizer/v/square_avg"), tensor("optimizer/w/grad_avg"), tensor("optimizer/w/square_avg")]
    assert roles_of(tensors) == [Role.SECOND_MOMENT, Role.EXACT, Role.EXACT]


def test_centred_rmsprop_would_divide_by_the_root_of_a_negative_number() -> None:
    # The reason for the rule above: what rounding to 10 bits does to a nearly constant gradient.
    mean = np.float32(1.0002)
    square = run([float(mean) ** 2 * 1.00001], [0], SECOND)[0]
    assert square - mean * mean < 0


# Fidelities, keyframes, partners


def test_lossless_and_keyframes_are_the_identity() -> None:
    x = one([1.2345678, NAN])
    assert quantise(x, one([1, 1]), "lossless").tensors[0] is x.tensors[0]
    for fidelity in FIDELITIES:
        assert quantise(x, None, fidelity).digest() == x.digest()


def test_unknown_fidelity() -> None:
    with pytest.raises(UsageError, match="float16-writeback or compact-writeback or float16 or lossless"):
        quantise(one([1]), None, "int4")


@pytest.mark.parametrize("name", [WEIGHT, FIRST, SECOND])
def test_no_partner_no_quantisation(name: str) -> None:
    x = one([1.2345678], name)
    other_shape = Snapshot((Tensor(name, "float32", (1, 1), np.ones(1, "<f4")),), b"")
    other_dtype = Snapshot((Tensor(name, "int32", (1,), np.ones(1, "<i4")),), b"")
    for base in (other_shape, other_dtype, Snapshot((), b"")):
        assert quantise(x, base, WRITEBACK).digest() == x.digest()


def test_inputs_are_not_changed_and_names_dtypes_shapes_and_scalars_stay() -> None:
    x, base = one([1.2345678, 2.0]), one([1.0, 2.0])
    before = x.tensors[0].data.tobytes(), base.tensors[0].data.tobytes()
    out = quantise(x, base, WRITEBACK)
    assert before == (x.tensors[0].data.tobytes(), base.tensors[0].data.tobytes())
    assert (out.names, out.scalars, out.tensors[0].shape) == (x.names, x.scalars, (2,))


def test_a_thread_that_flushes_subnormals_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    caught: list[BaseException] = []

    def work() -> None:
        if not torch.set_flush_denormal(True):
            caught.append(TrainingError("not supported here"))
            return
        try:
            quantise(one([1.0]), None, WRITEBACK)
        except TrainingError as error:
            caught.append(error)
        finally:
            torch.set_flush_denormal(False)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(caught) == 1


# Snapshots as values


def test_snapshot_refuses_unsorted_and_duplicate_names() -> None:
    a, b = (Tensor(n, "uint8", (1,), np.zeros(1, "|u1")) for n in "ab")
    for tensors in ((b, a), (a, a)):
        with pytest.raises(MalformedError, match="not sorted or not unique"):
            Snapshot(tensors, b"")


@pytest.mark.parametrize(
    "data",
    [np.zeros(2, "<f8"), np.zeros((1, 2), "<f4"), np.zeros(3, "<f4"), np.zeros(4, "<f4")[::2], np.zeros(2, ">f4")],
)
def test_tensor_refuses_an_array_that_is_not_its_carrier(data: np.ndarray) -> None:
    with pytest.raises(UsageError):
        Tensor("a", "float32", (2,), data)


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [("", "uint8", (0,)), ("a\n", "uint8", (0,)), ("a", "object", (0,)), ("a", "uint8", (-1,))],
)
def test_tensor_refuses_what_no_snapshot_may_hold(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(MalformedError):
        Tensor(name, dtype, shape, np.zeros(0, "|u1"))


def test_snapshot_lookup() -> None:
    x = one([1.0])
    assert x.tensor(WEIGHT) is x.tensors[0]
    assert x.nbytes == 5
    with pytest.raises(MissingError):
        x.tensor("parameter/other")
