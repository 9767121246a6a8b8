"""Fidelity compact-writeback: against a slow reference on exact numbers, and what rounding in proportion promises."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from polstore.codec import proportion
from polstore.codec.frames import Encoding, decode, encode
from polstore.codec.items import read_values, write_items
from polstore.codec.quantise import FIDELITIES, base_is_previous, quantise, quantise_tensors, writes_back
from polstore.codec.quantised import Scheme
from polstore.codec.snapshot import CARRIER, Snapshot, Tensor

pytestmark = pytest.mark.usefixtures("loops")

COMPACT = "compact-writeback"
SCALARS = b"\x90"
WEIGHT, FIRST, SECOND = "parameter/w", "optimizer/w/exp_avg", "optimizer/w/exp_avg_sq"
INF, NAN = math.inf, math.nan
SCALES = [1.0, 1e-3, 1e-30, 1e-38, 1e-42, 1e-45, 1e30, 1e38]


def one(values, name: str = WEIGHT, scalars: bytes = SCALARS) -> Snapshot:
    data = np.asarray(values, "<f4")
    return Snapshot((Tensor(name, "float32", (data.size,), data),), scalars)


def run(values, base, name: str = WEIGHT, scalars: bytes = SCALARS) -> np.ndarray:
    return quantise(one(values, name, scalars), one(base, name), COMPACT).tensors[0].data


def same(a: np.ndarray, b) -> bool:
    return a.tobytes() == np.asarray(b, "<f4").tobytes()


def word(value) -> int:
    return int(np.asarray(value, "<f4").view("<u4"))


# A slow reference: Python integers and exact rationals, element by element.


def threshold(name: str, place: int) -> int:
    salted = hashlib.sha256(SCALARS).digest() + name.encode()
    return (int.from_bytes(hashlib.sha256(salted).digest()[:4], "little") + place * 0x9E3779B1) % 2**32


def nearest(value: Fraction) -> Fraction:
    """The nearest float32, ties to even: through float64 only where that is exact."""
    if value == 0:
        return value
    exponent = 0
    while Fraction(2) ** exponent > abs(value):
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= abs(value):
        exponent += 1
    unit = Fraction(2) ** max(exponent - 23, -149)
    return round(value / unit) * unit


def reference_steps(live: np.ndarray, base: np.ndarray, name: str) -> tuple[int, list[int]]:
    deltas = [nearest(Fraction(float(a)) - Fraction(float(b))) for a, b in zip(live, base, strict=True)]
    top = -200
    while Fraction(2) ** top <= max(map(abs, deltas)):
        top += 1
    fine = [math.floor(abs(d) * Fraction(2) ** (12 - top)) for d in deltas]
    squares, count = sum(t * t for t in fine), sum(d != 0 for d in deltas)
    spread = -100
    while Fraction(4) ** (spread + 1) * count <= 2 * squares:
        spread += 1
    e = max(top - 12 + spread - 4, top - 14, -126)
    steps = []
    for place, d in enumerate(deltas):
        between = Fraction(threshold(name, place) >> 8, 2**24)
        q = math.floor(nearest(nearest(abs(d) / Fraction(2) ** e) + between))
        steps.append(q if d >= 0 else -q)
    return e, steps


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("ratio", [1.0, 1e-3, 1e-7])
@pytest.mark.parametrize("spread", [0, 20])
def test_weights_follow_the_reference(scale: float, ratio: float, spread: float) -> None:
    random = np.random.default_rng(2)
    with np.errstate(under="ignore"):
        base = (random.uniform(-1, 1, 64) * scale).astype("<f4")
        x = (base + random.uniform(-1, 1, 64) * scale * ratio * np.exp(-random.uniform(0, spread, 64))).astype("<f4")
    (part,) = quantise_tensors(one(x), one(base), COMPACT)
    if (x == base).all():
        assert part.scheme is Scheme.UNCHANGED
        return
    exponent, steps = reference_steps(x, base, WEIGHT)
    assert part.scheme is Scheme.STEPPED_DELTA
    assert (part.exponent, part.items.tolist()) == (exponent, steps)
    for got, before, q in zip(part.tensor.data, base, steps, strict=True):
        assert Fraction(float(got)) == nearest(Fraction(float(before)) + nearest(q * Fraction(2) ** exponent))


def test_sparse_updates_take_their_scale_from_what_moved() -> None:
    base = np.ones(5000)
    live = base.copy()
    live[::500] += 1e-3 * np.arange(1, 11)
    (part,) = quantise_tensors(one(live), one(base), COMPACT)
    assert (part.exponent, part.items.tolist()) == reference_steps(one(live).tensors[0].data, base, WEIGHT)
    assert np.count_nonzero(part.items) == 10
    one_among_many = np.ones(5000)
    one_among_many[4999] = 2.0
    (part,) = quantise_tensors(one(one_among_many), one(base), COMPACT)
    assert part.tensor.data.tolist() == one_among_many.tolist()
    faint = np.full((1 << 23) + 1, 2.0**-60, "<f4")  # each counts as 0 beside the large delta: the spread is below 1
    faint[0] = 1.0
    assert proportion.step_exponent(faint) == 1 - 14


def test_thresholds_go_on_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(4).standard_normal(300)
    whole = [run(x, np.zeros(300), name).tobytes() for name in (WEIGHT, FIRST, SECOND)]
    monkeypatch.setattr(proportion, "BLOCK", 7)
    assert [run(x, np.zeros(300), name).tobytes() for name in (WEIGHT, FIRST, SECOND)] == whole


def test_the_name_and_the_scalars_play_a_part() -> None:
    x = np.random.default_rng(4).standard_normal(300)
    assert run(x, np.zeros(300), "parameter/a").tobytes() != run(x, np.zeros(300), "parameter/b").tobytes()
    for name in (WEIGHT, FIRST, SECOND):
        found = {run(x, np.zeros(300), name, scalars).tobytes() for scalars in (SCALARS, b"\xc0", b"\x91\x01")}
        assert len(found) == 3
    whole = quantise(one(x, scalars=b"\xc0"), one(np.zeros(300)), COMPACT)  # the base's scalars play none
    assert whole.digest() == quantise(one(x, scalars=b"\xc0"), one(np.zeros(300), scalars=b"\xc0"), COMPACT).digest()


# What the specification states under "What it costs".


def test_error_bound_of_weights() -> None:
    random = np.random.default_rng(5)
    for spread in (0, 3, 25):
        base = random.standard_normal(20_000).astype("<f4")
        x = base + (1e-3 * random.standard_normal(20_000) * np.exp(-random.uniform(0, spread, 20_000))).astype("<f4")
        (part,) = quantise_tensors(one(x), one(base), COMPACT)
        delta = x.astype("<f8") - base
        moved = delta[delta != 0]
        step = 2.0**part.exponent
        assert step <= max(np.sqrt((moved**2).mean()) * math.sqrt(2) / 16, np.abs(delta).max() * 2.0**-13, 2.0**-126)
        ulp = np.spacing(np.maximum(np.abs(x), np.abs(base)))
        assert (np.abs(part.tensor.data.astype("<f8") - x) <= step * (1 + 2.0**-11) + ulp).all()
        assert np.abs(part.items.astype("<i4")).max() <= 2**14


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_moments_are_unbiased(name: str) -> None:
    """A hundred thousand copies of one value: the mean is the value, as closely as chance would have it."""
    count = 100_000
    for value in (1.03, 1.6, 1.999, 3.3e-8, 1e-39):
        x = np.full(count, value, "<f4")
        got = run(x, np.zeros(count), name).astype("<f8")
        gap = np.ptp(got)
        assert gap > 0
        assert abs(got.mean() - float(x[0])) < 4 * gap / 2 / math.sqrt(count)


def test_a_decay_far_below_a_step_is_not_lost() -> None:
    """Rounding to nearest would leave weights where they are that nothing but a faint noise moves besides."""
    count = 50_000
    random = np.random.default_rng(7)
    weights = np.ones(count, "<f4")
    for step in range(20):
        noise = random.standard_normal(count).astype("<f4")
        noise[: count // 2] *= np.float32(1e-5)
        noise[count // 2 :] *= np.float32(1e-3)
        live = weights * np.float32(1 - 2e-6) + noise
        (part,) = quantise_tensors(one(live, scalars=bytes((step,))), one(weights), COMPACT)
        assert 2.0**part.exponent > 4e-5
        weights = part.tensor.data
    lost = 1 - weights[: count // 2].astype("<f8").mean()
    assert lost == pytest.approx(20 * 2e-6, rel=0.1)


def test_a_steady_decay_from_the_same_value_arrives() -> None:
    """Weights that nothing moves but a decay of a fifteenth of a step: they stay, or go by one, as often as is due.

    A weight that stays is at the same place in every snapshot, so it is the snapshot's scalars that make the outcome
    another one each time.
    """
    count, snapshots = 500, 200
    kept = np.float32(1 - 2e-6)
    decay = 1 - float(kept)
    noise = np.random.default_rng(7).standard_normal(count).astype("<f4") * np.float32(1e-3)  # which sets the step
    weights, step = np.ones(2 * count, "<f4"), 0.0
    once = np.zeros(0)
    for number in range(snapshots):
        live = weights * kept
        live[count:] = weights[count:] + noise
        (part,) = quantise_tensors(one(live, scalars=bytes((number,))), one(weights), COMPACT)
        step = 2.0**part.exponent
        weights = part.tensor.data
        once = weights[:count] if number == 0 else once
    assert step > 10 * decay
    due = count * snapshots * decay / step  # expected number of moves, each by a step: a binomial variable
    moved = (1 - weights[:count].astype("<f8")).sum() / step
    assert abs(moved - due) < 4 * math.sqrt(due)
    assert np.count_nonzero(weights[:count] == 1) < count / 10  # while one snapshot moves few
    assert np.count_nonzero(once == 1) > count * 8 / 10


# Special values


@pytest.mark.parametrize("name", [WEIGHT, FIRST, SECOND])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_tensor_that_is_not_finite_is_exact(name: str, bad: float) -> None:
    x = [bad, 1.00001, 1.2345678]
    assert same(run(x, [1, 1, 1], name), x)


@pytest.mark.parametrize("pattern", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
@pytest.mark.parametrize("name", [WEIGHT, FIRST, SECOND])
def test_nan_payloads_are_kept(pattern: int, name: str) -> None:
    x = np.array([pattern, 0x3F800001], "<u4").view("<f4")
    assert same(run(x, [0, 1], name), x)


@pytest.mark.parametrize("name", [WEIGHT, FIRST, SECOND])
def test_values_that_would_round_to_infinity_make_the_tensor_exact(name: str) -> None:
    x = np.array([0x7F7FFFFF] * 8 + [0x3F800001], "<u4").view("<f4")
    (part,) = quantise_tensors(one(x, name), one(np.zeros(9), name), COMPACT)
    assert part.scheme is Scheme.EXACT
    assert same(part.tensor.data, x)


def test_a_base_that_is_not_finite_and_a_delta_that_overflows_make_a_weight_exact() -> None:
    x = [3e38, 1.2345678]
    for base in ([NAN, 1], [INF, 1], [-3e38, 1]):
        assert same(run(x, base), x)
    for name in (FIRST, SECOND):
        assert same(run(x, [NAN, 1], name), run(x, [0, 1], name))


def test_zeros_and_unchanged_weights() -> None:
    base = one([-0.0, 1.0])
    assert quantise(one([0.0, 1.0]), base, COMPACT).tensors[0].data is base.tensors[0].data
    assert same(run([-0.0, 2.0], [-0.0, 1.0]), [0.0, 2.0])
    for name in (FIRST, SECOND):
        assert same(run([-0.0, 0.0], [3.0, 3.0], name), [-0.0, 0.0])


def test_a_weight_without_a_partner_is_exact_and_a_moment_does_without() -> None:
    live = one([1.2345678])
    assert quantise(live, None, COMPACT).digest() == live.digest()
    assert quantise(live, one([1.0, 2.0]), COMPACT).digest() == live.digest()
    for name in (FIRST, SECOND):
        wanted = run([1.2345678], [1.0], name)
        assert not same(wanted, [1.2345678])
        for base in (None, one([1.0, 2.0], name), one([NAN], name)):
            assert same(quantise(one([1.2345678], name), base, COMPACT).tensors[0].data, wanted)


@pytest.mark.parametrize("fidelity", FIDELITIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float64", "int64"])
@pytest.mark.parametrize("name", [WEIGHT, FIRST, SECOND])
def test_other_dtypes_are_exact_in_every_fidelity(fidelity: str, dtype: str, name: str) -> None:
    def state(seed: int) -> Snapshot:
        raw = np.random.default_rng(seed).bytes(99 * np.dtype(CARRIER[dtype]).itemsize)
        return Snapshot((Tensor(name, dtype, (33, 3), np.frombuffer(raw, CARRIER[dtype])),), b"\xc0")

    record, blobs, committed = encode(state(2), state(1), fidelity)
    assert decode(record, state(1), blobs.__getitem__).digest() == committed.digest() == state(2).digest()


# How it is stored


def test_encodings_and_a_long_chain() -> None:
    random = np.random.default_rng(8)
    weights = random.standard_normal(500).astype("<f4")
    base = None
    for step in range(70):
        live = Snapshot(
            (
                Tensor(FIRST, "float32", (500,), (random.standard_normal(500) * 1e-3).astype("<f4")),
                Tensor(SECOND, "float32", (500,), np.exp(random.standard_normal(500) - 14).astype("<f4")),
                Tensor(WEIGHT, "float32", (500,), weights),
            ),
            b"\xc0",
        )
        record, blobs, committed = encode(live, base, COMPACT)
        assert decode(record, base, blobs.__getitem__).digest() == committed.digest() == record.state_digest
        assert quantise(live, base, COMPACT).digest() == committed.digest()
        first = [Encoding.BFLOAT16, Encoding.BFLOAT16, Encoding.EXACT]
        later = [Encoding.BFLOAT16, Encoding.SHORT_DIFFERENCE, Encoding.STEPPED_DELTA]
        assert [row.encoding for row in record.tensors] == (later if step else first)
        assert (record.row(WEIGHT).exponent != 0) == bool(step)
        base = committed
        weights = base.tensor(WEIGHT).data + random.standard_normal(500).astype("<f4") * np.float32(1e-3)


def test_every_bfloat16_comes_back_and_every_short_second_moment() -> None:
    """All 2^16 bfloat16, by an item each; all 2^14 second moments against others, and against any bits."""
    upper = np.arange(1 << 16, dtype="<u2")
    items, out = np.empty(upper.size, "<u2"), np.empty(upper.size, "<f4")
    assert write_items(Encoding.BFLOAT16, "float32", upper, None, items)
    assert items.tolist() == [(value << 1 | value >> 15) & 0xFFFF for value in range(1 << 16)]
    read_values(Encoding.BFLOAT16, "float32", 0, items, None, out)
    assert out.view("<u4").tolist() == [value << 16 for value in range(1 << 16)]
    short = np.arange(1 << 14, dtype="<u2") << 2
    values = (short.astype("<u4") << 16).view("<f4")
    bases = np.random.default_rng(9).integers(0, 1 << 32, short.size, dtype="<u4").view("<f4")
    items, out = np.empty(short.size, "<u2"), np.empty(short.size, "<f4")
    for partner in (bases, values, values[::-1].copy()):
        assert write_items(Encoding.SHORT_DIFFERENCE, "float32", short, partner, items)
        read_values(Encoding.SHORT_DIFFERENCE, "float32", 0, items, partner, out)
        assert out.tobytes() == values.tobytes()
        low_bits = (partner.view("<u4") ^ 0x3FFFF).view("<f4")  # which play no part
        read_values(Encoding.SHORT_DIFFERENCE, "float32", 0, items, low_bits, out)
        assert out.tobytes() == values.tobytes()
    for extra in (1, 2):  # what such a difference drops
        assert not write_items(Encoding.SHORT_DIFFERENCE, "float32", short | extra, values, items)


def reference_short_difference(item: int, partner: int) -> int:
    """Decode one item as specs/codec.md says, in plain integers."""
    under = partner - (1 << 32) if partner >> 31 else partner
    under = under ^ 0x7FFFFFFF if partner >> 31 else under
    whole = ((under >> 18) + (-(item + 1) // 2 if item & 1 else item // 2)) * (1 << 18) % (1 << 32)
    return (whole ^ 0x7FFFFFFF if whole >> 31 else whole) & 0xFFFC0000


def test_every_item_is_defined() -> None:
    """A hostile record may hold any item at all; each gives some value, the same each time, and no warning."""
    items = np.arange(1 << 16, dtype="<u2")
    for pattern in (0, 0x7F7FFFFF, 0xFF7FFFFF, 0x7FC00000, 0x3F800000, 0x80000001, 0xFFFFFFFF):
        partner = np.full(items.size, pattern, "<u4").view("<f4")
        out = np.empty(items.size, "<f4")
        for exponent in (124, -126):
            read_values(Encoding.STEPPED_DELTA, "float32", exponent, items, partner, out)
        read_values(Encoding.SHORT_DIFFERENCE, "float32", 0, items, partner, out)
        assert out.view("<u4").tolist() == [reference_short_difference(item, pattern) for item in items.tolist()]


def test_what_fidelities_mean() -> None:
    assert FIDELITIES[0] == "float16-writeback"
    assert [name for name in FIDELITIES if base_is_previous(name)] == [COMPACT]
    assert [name for name in FIDELITIES if writes_back(name)] == ["float16-writeback", COMPACT]
    rng = np.random.default_rng(10)
    live, base = one(rng.standard_normal(50)), one(rng.standard_normal(50))
    assert quantise(live, base, "float16").digest() == quantise(live, base, "float16-writeback").digest()


def test_worked_example_of_the_spec() -> None:
    text = " ".join((Path(__file__).parents[2] / "specs" / "codec.md").read_text().split())
    base, live = one([1.0, -2.0, 0.5]), one([1.001, -2.0005, 0.5])
    (part,) = quantise_tensors(live, base, COMPACT)
    assert (part.exponent, part.items.tolist()) == (-14, [16, -8, 0])
    assert "the steps are **16, -8, 0**" in text
    salt = proportion.salt_of(SCALARS)
    assert f"`{salt.hex()[:8]}…{salt.hex()[-6:]}`" in text
    assert f"the key is `{proportion.tensor_key(WEIGHT, salt):08x}`" in text
    thresholds = [threshold(WEIGHT, place) for place in range(3)]
    assert ", ".join(f"`{x:08x}`" for x in thresholds) in text
    assert ", ".join(f"{math.floor((x >> 8) / 2**24 * 1e5) / 1e5:.5f}…" for x in thresholds) in text
    assert ", ".join(f"`{word(value):08x}`" for value in part.tensor.data) in text
    frames = encode(live, base, COMPACT)[1].values()
    assert "make the frames " + " and ".join(f"`{frame.hex()}`" for frame in frames) in text


def test_worked_example_of_moments_in_the_spec() -> None:
    text = (Path(__file__).parents[2] / "specs" / "codec.md").read_text()
    for name in (FIRST, SECOND):
        for place in range(2):
            assert f"`{threshold(name, place):08x}`" in text
    differences = []
    rows = []
    for fidelity in ("float16-writeback", COMPACT):
        for name, values in ((FIRST, [1.2345679, -1.2345679]), (SECOND, [1.0e-8, 2.5e-8])):
            dropped = 16 if fidelity != COMPACT else 20 if name == FIRST else 18
            live = one(values, name)
            committed = quantise(live, None, fidelity).tensors[0].data
            record, blobs, _ = encode(live, None, fidelity)
            low, high = (blobs[frame.digest] for frame in record.groups[0].frames)
            for place, (value, result) in enumerate(zip(live.tensors[0].data, committed, strict=True)):
                digits = -(-dropped // 4)
                first = f"`{word(value) & ((1 << dropped) - 1):0{digits}x}`"
                second = f"`{threshold(name, place) >> (32 - dropped):0{digits}x}`"
                item = f"{high[1 + place]:02x}{low[1 + place]:02x}"
                rows.append((f"`{word(value):08x}` | {first} + {second} ", f"`{word(result):08x}` | `{item}` |"))
            if (fidelity, name) == (COMPACT, SECOND):
                record, blobs, _ = encode(live, one([0.0, 0.0], name), fidelity)
                assert [row.encoding for row in record.tensors] == [Encoding.SHORT_DIFFERENCE]
                low, high = (blobs[frame.digest] for frame in record.groups[0].frames)
                differences = [f"`{high[1 + place]:02x}{low[1 + place]:02x}`" for place in range(2)]
    lines = [line for line in text.split("\n") if " + `" in line and line.startswith("|")]
    assert len(lines) == len(rows) == 8
    for line, (begins, ends) in zip(lines, rows, strict=True):
        assert begins in line
        assert line.endswith(ends)
    assert f"items {differences[0]} and {differences[1]}" in " ".join(text.split())
