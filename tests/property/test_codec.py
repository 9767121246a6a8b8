from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polstore.codec import planes
from polstore.codec.frames import StoredSnapshot, decode, encode
from polstore.codec.quantise import FIDELITIES, Role, quantise, quantise_tensors, roles_of
from polstore.codec.quantised import Scheme
from polstore.codec.snapshot import CARRIER, Snapshot, Tensor, carrier_count
from polstore.errors import MalformedError
from polstore.wire import canonical

pytestmark = pytest.mark.usefixtures("loops")

KINDS = ["parameter/{}", "optimizer/{}/exp_avg", "optimizer/{}/exp_avg_sq", "optimizer/{}/z", "buffer/{}", "extra/e/{}"]
SPECIAL = [0, 1, 0x80000000, 0x80000001, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 0x00800000, 0x007FFFFF]
TAIL = [(1 << 32) - 1, 0x3F800000, 0x3F801000, 0x3F803000]

words = st.one_of(
    st.sampled_from(SPECIAL + TAIL),
    st.integers(0, (1 << 32) - 1),
    st.integers(0x38000000, 0x3FFFFFFF),
)


@st.composite
def states(draw, rows=None):
    if rows is None:
        names = draw(st.lists(st.tuples(st.sampled_from(KINDS), st.text("abé", min_size=1, max_size=2)), max_size=5))
        names = sorted({kind.format(name) for kind, name in names}, key=str.encode)
        dtypes = st.one_of(st.just("float32"), st.sampled_from(sorted(CARRIER)))
        rows = [(n, draw(dtypes), tuple(draw(st.lists(st.integers(0, 4), max_size=2)))) for n in names]
    tensors = []
    for name, dtype, shape in rows:
        carrier = np.dtype(CARRIER[dtype])
        count = carrier_count(dtype, shape)
        size = count * carrier.itemsize
        drawn = draw(st.lists(words, min_size=-(-size // 4), max_size=-(-size // 4)))
        data = np.array(drawn, "<u4").tobytes()[:size]
        tensors.append(Tensor(name, dtype, shape, np.frombuffer(data, carrier)))
    return Snapshot(tuple(tensors), draw(st.binary(max_size=8)))


@st.composite
def pairs(draw):
    base = draw(states())
    rows = [(t.name, t.dtype, t.shape) for t in base.tensors]
    kept = [row for row in rows if draw(st.integers(0, 7))]
    return base, draw(states(rows=kept))


@settings(deadline=None, max_examples=200)
@given(pairs(), st.sampled_from(FIDELITIES), st.booleans())
def test_encode_quantise_and_decode_agree(pair, fidelity, keyframe) -> None:
    base, live = pair
    base = None if keyframe else base
    record, blobs, committed = encode(live, base, fidelity)
    out = decode(StoredSnapshot.parse(record.encode()), base, blobs.__getitem__)
    wanted = quantise(live, base, fidelity)
    for a, b, c in zip(out.tensors, committed.tensors, wanted.tensors, strict=True):
        assert a.data.tobytes() == b.data.tobytes() == c.data.tobytes()
    assert out.digest() == committed.digest() == wanted.digest()
    for got, tensor, role in zip(out.tensors, live.tensors, roles_of(live.tensors), strict=True):
        if fidelity == "lossless" or role is Role.EXACT or (keyframe and role is Role.WEIGHT):
            assert got.entry() == tensor.entry()
    again = quantise(committed, None, fidelity)  # as the writer of a run expects of the first snapshot
    assert again.digest() == committed.digest()


@settings(deadline=None, max_examples=100)
@given(pairs(), st.sampled_from(["float16-writeback", "compact-writeback"]))
def test_what_is_not_finite_survives(pair, fidelity) -> None:
    base, live = pair
    for got, tensor in zip(quantise(live, base, fidelity).tensors, live.tensors, strict=True):
        if tensor.dtype != "float32":
            assert got is tensor
        elif not np.isfinite(tensor.data).all():
            assert got.data.tobytes() == tensor.data.tobytes()
        else:
            assert np.isfinite(got.data).all()


@settings(deadline=None, max_examples=200)
@given(
    st.lists(words, min_size=1, max_size=20),
    st.lists(words, min_size=20, max_size=20),
    st.sampled_from(KINDS[:3]),
    st.sampled_from(["float16-writeback", "compact-writeback"]),
    st.binary(max_size=4),
)
def test_what_is_rounded_stays_within_its_bounds(live, base, kind, fidelity, scalars) -> None:
    """The bounds of the specification; sign and zero kept; moments that were rounded stay as they are."""

    def state(patterns) -> Snapshot:
        data = np.array(patterns, "<u4").view("<f4")
        return Snapshot((Tensor(kind.format("w"), "float32", (data.size,), data),), scalars)

    before = state(base[: len(live)])
    (part,) = quantise_tensors(state(live), before, fidelity)
    got, x, under = (tensor.data for tensor in (part.tensor, state(live).tensors[0], before.tensors[0]))
    if part.scheme in (Scheme.EXACT, Scheme.UNCHANGED):
        assert got.tobytes() == (x if part.scheme is Scheme.EXACT else under).tobytes()
        return
    error = np.abs(got.astype("<f8") - x)
    if part.scheme in (Scheme.STEPPED_DELTA, Scheme.SCALED_DELTA):
        ulp = np.spacing(np.maximum(np.abs(x), np.abs(under))).astype("<f8")
        delta = np.abs(x - under).astype("<f8")
        bound = delta * 2.0**-11 + delta.max() * 2.0**-39
        if part.scheme is Scheme.STEPPED_DELTA:
            bound = 2.0**part.exponent * (1 + 2.0**-11)
        assert (error <= bound + ulp).all()
        return
    bits = 7 if fidelity != "compact-writeback" else 3 if "exp_avg_sq" not in kind else 5
    assert (error <= np.maximum(np.abs(x.astype("<f8")) * 2.0**-bits, 2.0 ** (-126 - bits))).all()
    assert (np.signbit(got) == np.signbit(x)).all()
    assert not got[x == 0].any()
    assert "exp_avg_sq" not in kind or got[x != 0].all()
    again = quantise(Snapshot((part.tensor,), b"other"), before, fidelity).tensors[0]
    assert again.data.tobytes() == got.tobytes()


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([1, 2, 4, 8]), st.binary(max_size=64), st.binary(max_size=64))
def test_differences_come_back(size, left, right) -> None:
    n = min(len(left), len(right)) // size * size
    a, b = (np.frombuffer(data[:n], f"<u{size}") for data in (left, right))
    assert planes.join(planes.split(a)).tobytes() == a.tobytes() if n else True
    codes = planes.zigzag(planes.ordered(a) - planes.ordered(b))
    assert planes.unordered(planes.ordered(b) + planes.unzigzag(codes)).tobytes() == a.tobytes()


values = st.recursive(
    st.one_of(st.none(), st.integers(-2, 300), st.binary(max_size=33), st.text("ab/", max_size=4), st.just(bytes(32))),
    lambda inner: st.lists(inner, max_size=6).map(tuple),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(st.lists(values, max_size=6))
def test_parse_raises_only_malformed(parts) -> None:
    with contextlib.suppress(MalformedError):
        StoredSnapshot.parse(canonical.encode(("polstore/snapshot/v1", *parts)))
