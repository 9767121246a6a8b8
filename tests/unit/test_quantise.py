from __future__ import annotations

import hashlib
import math
import struct
import threading
from fractions import Fraction

import numpy as np
import pytest

from polstore.codec import proportion
from polstore.codec import quantise as module
from polstore.codec.quantise import FIDELITIES, Role, quantise, quantise_tensors, role_of, roles_of
from polstore.codec.quantised import Scheme
from polstore.codec.snapshot import Snapshot, Tensor
from polstore.errors import MalformedError, MissingError, TrainingError, UsageError

pytestmark = pytest.mark.usefixtures("loops")

WRITEBACK, COMPACT = "float16-writeback", "compact-writeback"
SCALARS = b"\xc0"
WEIGHT, FIRST, SECOND = "parameter/w", "optimizer/w/exp_avg", "optimizer/w/exp_avg_sq"
INF, NAN = math.inf, math.nan


def one(values: list[float] | np.ndarray, name: str = WEIGHT, scalars: bytes = SCALARS) -> Snapshot:
    data = np.asarray(values, "<f4")
    return Snapshot((Tensor(name, "float32", (data.size,), data),), scalars)


def run(
    values: list[float] | np.ndarray,
    base: list[float] | np.ndarray,
    name: str = WEIGHT,
    scalars: bytes = SCALARS,
) -> np.ndarray:
    return quantise(one(values, name, scalars), one(base, name), WRITEBACK).tensors[0].data


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


def threshold(name: str, place: int, scalars: bytes = SCALARS) -> int:
    salted = hashlib.sha256(scalars).digest() + name.encode()
    return (int.from_bytes(hashlib.sha256(salted).digest()[:4], "little") + place * 0x9E3779B1) % 2**32


def reference_moment(value: np.float32, place: int, name: str, dropped: int) -> Fraction:
    """Round a number's magnitude to either of its two neighbours, as exact numbers, by the threshold of its place."""
    number = Fraction(float(value))
    exponent = -126
    while Fraction(2) ** (exponent + 1) <= abs(number):
        exponent += 1
    unit = Fraction(2) ** (exponent - 23 + dropped)  # between what is left of numbers of this size
    low = abs(number) // unit
    above = (abs(number) - low * unit) / unit
    up = above + Fraction(threshold(name, place) >> (32 - dropped), 2**dropped) >= 1
    if name == SECOND and number and not low:
        up = True
    return (low + up) * unit * (-1 if number < 0 else 1)


@pytest.mark.parametrize("scale", [*SCALES, 1e-44])
@pytest.mark.parametrize("fidelity", ["float16-writeback", "float16", "compact-writeback"])
@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_moments_follow_the_reference(scale: float, fidelity: str, name: str) -> None:
    dropped = 16 if fidelity != "compact-writeback" else 20 if name == FIRST else 18
    random = np.random.default_rng(3)
    x = (random.uniform(-1, 1, 64) * scale * np.exp(-random.uniform(0, 30, 64))).astype("<f4")
    wanted = [reference_moment(value, place, name, dropped) for place, value in enumerate(x)]
    for base in (None, one(np.ones(64), name), one(np.full(64, NAN), name), one(np.ones(3), name), Snapshot((), b"")):
        (got,) = quantise(one(x, name), base, fidelity).tensors
        assert [Fraction(float(value)) for value in got.data] == wanted
        assert not (got.data.view("<u4") & ((1 << dropped) - 1)).any()
        assert (np.signbit(got.data) == np.signbit(x)).all()


def test_error_bound_of_weights() -> None:
    random = np.random.default_rng(5)
    base = random.standard_normal(20_000).astype("<f4")
    x = (base + 1e-3 * random.standard_normal(20_000) * np.exp(-random.uniform(0, 25, 20_000))).astype("<f4")
    delta = np.abs(x.astype("<f8") - base)
    error = np.abs(run(x, base).astype("<f8") - x)
    ulp = np.spacing(np.maximum(np.abs(x), np.abs(base)))
    assert (error <= delta * 2.0**-11 + delta.max() * 2.0**-39 + ulp).all()


@pytest.mark.parametrize(
    ("fidelity", "name", "relative", "lowest"),
    [
        ("float16-writeback", FIRST, 2.0**-7, 2.0**-133),
        ("float16-writeback", SECOND, 2.0**-7, 2.0**-133),
        ("compact-writeback", FIRST, 2.0**-3, 2.0**-129),
        ("compact-writeback", SECOND, 2.0**-5, 2.0**-131),
    ],
)
def test_error_bound_of_moments_and_what_they_keep(fidelity: str, name: str, relative: float, lowest: float) -> None:
    random = np.random.default_rng(6)
    x = (random.standard_normal(20_000) * np.exp(-random.uniform(0, 95, 20_000))).astype("<f4")
    x[:3] = [0.0, -0.0, 1e-45]
    magnitude = np.abs(x.astype("<f8"))
    assert (magnitude[magnitude > 0] < 2.0**-126).sum() > 100
    (got,) = quantise(one(x, name), None, fidelity).tensors
    error = np.abs(got.data.astype("<f8") - x)
    assert (error <= np.maximum(magnitude * relative, lowest)).all()
    assert (error > magnitude * relative / 2)[magnitude > 2.0**-126].any()  # it is no nearest rounding
    assert (np.signbit(got.data) == np.signbit(x)).all()
    assert not got.data[x == 0].any()
    if name == SECOND:
        assert got.data[x != 0].all()
    for scalars in (SCALARS, b"\x01", b"\x02"):  # rounding again changes nothing, whatever the key
        assert same(quantise(one(got.data, name, scalars), None, fidelity).tensors[0].data, got.data)


def test_worked_example_of_the_spec() -> None:
    base, x = [1.0, -2.0, 0.5], [1.001, -2.0005, 0.5]
    (part,) = quantise_tensors(one(x), one(base), WRITEBACK)
    assert part.exponent == -24
    assert part.items is not None
    assert part.items.tobytes().hex() == "197418f00000"
    assert part.tensor.data.tobytes().hex() == "c820803f300800c00000003f"


# Special values


def test_equal_tensors_stay_the_base_bit_for_bit_and_share_its_array() -> None:
    base = one([-0.0, 1.0])
    out = quantise(one([0.0, 1.0]), base, WRITEBACK)
    assert out.tensors[0].data is base.tensors[0].data


def test_negative_zero_of_a_base_turns_positive_where_other_weights_move() -> None:
    assert same(run([-0.0, 2.0], [-0.0, 1.0]), [0.0, 2.0])


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_zero_moments_keep_their_signs(name: str) -> None:
    assert same(run([-0.0, 0.0, 2.0], [3.0, 3.0, 3.0], name), [-0.0, 0.0, 2.0])
    assert same(run([-0.0, 0.0], [-0.0, 1.0], name), [-0.0, 0.0])


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


@pytest.mark.parametrize("pattern", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F7FFFFF, 0xFF7FFFFF])
@pytest.mark.parametrize("name", [WEIGHT, FIRST, SECOND])
def test_nan_payloads_and_the_largest_floats_are_kept(pattern: int, name: str) -> None:
    # The finite two would round to infinity (moments) or to 2^128 (weights).
    x = np.array([0x3F800001] + [pattern] * 20, "<u4").view("<f4")
    assert same(run(x, np.zeros(21), name), x)


def test_a_delta_that_overflows_makes_the_tensor_exact() -> None:
    x = [3e38, 1.2345678]
    assert same(run(x, [-3e38, 1]), x)


def test_largest_values_that_still_fit() -> None:
    largest = np.array([0x7F7F0000, 0xFF7F0000, 0x3F9E0652], "<u4").view("<f4")
    for name in (FIRST, SECOND):
        got = run(largest, [0, 0, 0], name)
        assert same(got[:2], largest[:2])
        assert not same(got, largest)


def test_smallest_values() -> None:
    tiny = struct.unpack("<f", b"\1\0\0\0")[0]
    assert same(run([tiny, -3 * tiny], [0, 0]), [tiny, -3 * tiny])
    assert same(run([tiny, -3 * tiny], [0, 0], FIRST), [0.0, -0.0])
    assert same(run([tiny, -tiny, 0.0], [0, 0, 0], SECOND), [2.0**-133, -(2.0**-133), 0.0])


# Rounding in proportion


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_the_mean_over_many_snapshots_is_the_moment(name: str) -> None:
    """One state under the keys of two thousand snapshots: no element is off on the average, whatever its place."""
    x = (np.random.default_rng(8).uniform(1, 2, 200) * np.exp2(np.arange(200) % 40 - 20)).astype("<f4")
    rounds, total = 2000, np.zeros(200)
    for number in range(rounds):
        total += run(x, np.zeros(200), name, number.to_bytes(2, "little"))
    step = np.exp2(np.floor(np.log2(x)) - 7)
    off = (total / rounds - x) / step
    assert np.abs(off).max() < 5 * 0.5 / math.sqrt(rounds)  # five standard deviations of a coin, at most
    assert np.abs(run(x, np.zeros(200), name) - x).max() > 0  # while each snapshot is off


@pytest.mark.parametrize("name", [FIRST, SECOND])
@pytest.mark.parametrize("count", [10, 1000, 100_000])
def test_equal_elements_are_rounded_up_as_often_as_is_due(name: str, count: int) -> None:
    """Thresholds are spread evenly, so that it is not chance that decides: within a few, however many there are."""
    for word in (0x3F800001, 0x3F803456, 0x3F808000, 0x3F80FFFF):
        x = np.full(count, word, "<u4").view("<f4")
        for scalars in (b"\x01", b"\x02", b"\x03"):
            up = np.count_nonzero(run(x, np.zeros(count), name, scalars) > x)
            assert abs(up - count * (word & 0xFFFF) / 65536) < 4


def test_a_slow_decay_survives_a_snapshot_after_every_step() -> None:
    """A second moment of gradients that are 0 falls by a thousandth a step; rounded to nearest it stays where it is."""
    start, beta, steps = np.linspace(1, 2, 400).astype("<f4"), np.float32(0.999), 700
    proportional, nearest = start.copy(), start.copy()
    for step in range(steps):
        proportional = run(proportional * beta, start, SECOND, step.to_bytes(2, "little"))
        words = (nearest * beta).view("<u4")
        nearest = ((words + 0x7FFF + (words >> 16 & 1)) & 0xFFFF0000).view("<f4")
    fallen = proportional.astype("<f8").mean() / start.mean()
    assert fallen == pytest.approx(0.999**steps, rel=0.01)
    assert nearest.astype("<f8").mean() / start.mean() > 0.99


def test_another_element_snapshot_or_tensor_meets_another_threshold() -> None:
    x = np.full(300, 1.0 + 2.0**-8)
    found = run(x, np.zeros(300), FIRST)
    assert 100 < np.count_nonzero(found > x) < 200
    others = [run(x, np.zeros(300), FIRST, scalars) for scalars in (b"\x01", b"\x02")]
    others += [run(x, np.zeros(300), name) for name in (SECOND, "optimizer/v/exp_avg")]
    assert len({each.tobytes() for each in (found, *others)}) == 5
    base = Snapshot(one(np.zeros(300), FIRST).tensors, b"\xc0")  # whose scalars play no part
    assert same(quantise(one(x, FIRST), base, WRITEBACK).tensors[0].data, found)


def test_thresholds_go_on_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(4).standard_normal(300)
    whole = [run(x, np.zeros(300), name).tobytes() for name in (FIRST, SECOND)]
    monkeypatch.setattr(proportion, "BLOCK", 7)
    assert [run(x, np.zeros(300), name).tobytes() for name in (FIRST, SECOND)] == whole
    key = threshold(FIRST, 0)
    for start in (0, 5, 2**16, 2**40 + 3):  # places are taken modulo 2^32
        wanted = [threshold(FIRST, start + place) for place in range(7)]
        assert proportion._thresholds(7, key, start).tolist() == wanted


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
    # The reason for the rule above: what rounding does to a nearly constant gradient.
    mean = np.full(8, 1.0002, "<f4")
    square = run(mean.astype("<f8") ** 2 * 1.00001, np.zeros(8), SECOND)
    assert (square - mean * mean < 0).any()


# Fidelities, keyframes, partners


def test_lossless_is_the_identity_and_so_are_keyframes_of_weights() -> None:
    for name in (WEIGHT, FIRST, SECOND):
        x = one([1.2345678, 3.0], name)
        assert quantise(x, one([1, 1], name), "lossless").tensors[0] is x.tensors[0]
        for fidelity in FIDELITIES:
            exact = name == WEIGHT or fidelity == "lossless"
            assert (quantise(x, None, fidelity).digest() == x.digest()) == exact


def test_unknown_fidelity() -> None:
    with pytest.raises(UsageError, match="float16-writeback or compact-writeback or float16 or lossless"):
        quantise(one([1]), None, "int4")


def test_a_weight_without_a_partner_is_exact() -> None:
    x = one([1.2345678])
    other_shape = Snapshot((Tensor(WEIGHT, "float32", (1, 1), np.ones(1, "<f4")),), b"")
    other_dtype = Snapshot((Tensor(WEIGHT, "int32", (1,), np.ones(1, "<i4")),), b"")
    for base in (None, other_shape, other_dtype, Snapshot((), b"")):
        for fidelity in FIDELITIES:
            assert quantise(x, base, fidelity).digest() == x.digest()


def test_parts_have_a_partner_only_where_it_is_of_use() -> None:
    """What lets a writer keep of a base no more than others are quantised against."""
    for fidelity in FIDELITIES:
        for name in (WEIGHT, FIRST, SECOND):
            (part,) = quantise_tensors(one([1.2345678], name), one([1.0], name), fidelity)
            alone = part.scheme is Scheme.BFLOAT16
            assert (part.partner is None) == alone
            assert alone == (name != WEIGHT and fidelity != "lossless" and (fidelity, name) != (COMPACT, SECOND))


def test_entry_of_a_part_is_that_of_its_tensor() -> None:
    rng = np.random.default_rng(1)
    for fidelity in FIDELITIES:
        for name in (WEIGHT, FIRST, SECOND):
            live, base = one(rng.standard_normal(100_000), name), one(rng.standard_normal(100_000), name)
            (part,) = quantise_tensors(live, base, fidelity)
            entry = part.entry()
            assert entry == part.tensor.entry() == quantise(live, base, fidelity).tensors[0].entry()
            part.forget()
            assert part.entry() == entry


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
