"""The codec's compiled loops and what numpy does in their place, on any bits: where one is called, and the other."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polstore.codec import items, native, norms, planes, values
from polstore.codec.stored import FLOATS, INTEGERS, NEEDS_BASE, SCALED, TWO_BYTES, Encoding
from tests.native_calls import SPECIAL

if native.compiled is None:
    pytest.skip("the codec's loops are not compiled here, or POLSTORE_NATIVE=0", allow_module_level=True)

CARRIED = {"float32": "<f4", "float64": "<f8", "float16": "<f2", "bfloat16": "<u2", "int32": "<i4", "uint16": "<u2"}
WORDS = st.one_of(st.sampled_from(SPECIAL), st.integers(0, (1 << 32) - 1), st.integers(0x3F800000, 0x3F80FFFF))
EITHER = settings(deadline=None, max_examples=200)


def both(work):
    """Return what there is with the compiled loops and without."""
    found = [work()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "compiled", None)
        found.append(work())
    return found


def any_bits(draw, dtype: str, count: int) -> np.ndarray:
    size = np.dtype(dtype).itemsize
    words = draw(hnp.arrays("<u4", -(-count * size // 4), elements=WORDS, fill=st.nothing()))
    return np.frombuffer(words.tobytes()[: count * size], dtype)


@st.composite
def tensors(draw):
    """An encoding, a dtype that it is for, an exponent, and items, base and values of as many elements."""
    encoding = draw(st.sampled_from([each for each in Encoding if each is not Encoding.SAME]))
    dtype = "float32"
    if encoding in (Encoding.EXACT, Encoding.DIFFERENCE):
        dtype = draw(st.sampled_from(["float32", *sorted(CARRIED)]))
    assert encoding is not Encoding.DIFFERENCE or dtype in FLOATS | INTEGERS
    count = draw(st.integers(0, 40))
    width = 2 if encoding in TWO_BYTES else np.dtype(CARRIED[dtype]).itemsize
    found = any_bits(draw, f"<u{width}", count)
    with_base = encoding in NEEDS_BASE or draw(st.booleans())
    base = any_bits(draw, CARRIED[dtype], count) if with_base else None
    exponent = draw(st.integers(values.MIN_EXPONENT, values.MAX_EXPONENT)) if encoding in SCALED else 0
    return encoding, dtype, exponent, found, base


@EITHER
@given(tensors())
def test_items_lead_to_the_same_values(drawn) -> None:
    encoding, dtype, exponent, found, base = drawn

    def read() -> bytes:
        out = np.zeros(found.size, CARRIED[dtype])
        items.read_values(encoding, dtype, exponent, found, base, out)
        return out.tobytes()

    one, other = both(read)
    assert one == other


@EITHER
@given(tensors(), st.data())
def test_values_lead_to_the_same_items(drawn, data) -> None:
    encoding, dtype, _, found, base = drawn
    source = found.view("<i2") if encoding is Encoding.STEPPED_DELTA else found
    if encoding in (Encoding.EXACT, Encoding.DIFFERENCE):
        source = any_bits(data.draw, CARRIED[dtype], found.size)
    elif encoding is Encoding.SHORT_DIFFERENCE and data.draw(st.booleans()):
        source = source & np.uint16(0xFFFC)

    def write() -> tuple[bool, bytes]:
        out = np.zeros_like(found)
        good = bool(items.write_items(encoding, dtype, source, base, out))
        return good, out.tobytes() if good else b""

    one, other = both(write)
    assert one == other


@pytest.mark.parametrize("encoding", [Encoding.DIFFERENCE, Encoding.SHORT_DIFFERENCE, Encoding.STEPPED_DELTA])
def test_without_a_base_items_are_the_same_too(encoding) -> None:
    """No record leads here; if one did, it would be to the same outcome."""
    source = np.arange(5, dtype="<i2" if encoding in TWO_BYTES else "<u4")

    def write() -> bytes:
        out = np.zeros(source.size, f"<u{source.itemsize}")
        assert items.write_items(encoding, "float32", source, None, out)
        return out.tobytes()

    one, other = both(write)
    assert one == other


@EITHER
@given(st.data(), st.integers(0, 40))
def test_halves_steps_and_upper_halves_lead_to_the_same_values(data, count) -> None:
    base = any_bits(data.draw, "<f4", count)
    words = any_bits(data.draw, "<u2", count)
    exponent = data.draw(st.integers(values.MIN_EXPONENT, values.MAX_STEP_EXPONENT))
    for one, other in (
        both(lambda: values.add_halves(base, words, exponent)),
        both(lambda: values.add_steps(base, words.view("<i2"), exponent)),
        both(lambda: values.from_upper(words)),
    ):
        assert one.tobytes() == other.tobytes()


@EITHER
@given(st.data(), st.sampled_from(["|u1", "<u2", "<i2", "<f4", "<u4", "<f8"]), st.integers(0, 40))
def test_planes_are_the_same(data, dtype, count) -> None:
    array = any_bits(data.draw, dtype, count)
    one, other = both(lambda: planes.split(array))
    assert [plane.tobytes() for plane in one] == [plane.tobytes() for plane in other]
    if array.itemsize > 1:
        one, other = both(lambda: planes.join(planes.split(array)))
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes() == array.tobytes()


@EITHER
@given(st.data(), st.sampled_from(["<f4", "<f8"]), st.integers(0, 40))
def test_distances_are_as_good_as_the_same(data, dtype, count) -> None:
    elements = st.one_of(st.floats(-1e9, 1e9, width=32), st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan]))
    before, after = (data.draw(hnp.arrays(dtype, count, elements=elements)) for _ in range(2))
    one, other = both(lambda: norms._sums(before, after))
    assert one[2] == pytest.approx(other[2], rel=0, abs=0, nan_ok=True)
    with np.errstate(all="ignore"):
        cancelled = float(np.abs(before.astype("<f8") * after).sum())  # of which the inner product may be a small part
    assert one == pytest.approx(other, rel=1e-12, abs=1e-12 * cancelled if np.isfinite(cancelled) else 0, nan_ok=True)
