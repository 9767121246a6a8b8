"""Canonical msgpack under arbitrary values and arbitrary bytes."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from polstore.errors import MalformedError
from polstore.wire import canonical

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=18).map(tuple), max_leaves=40)


@settings(deadline=None, max_examples=200)
@given(VALUES)
def test_values_come_back(value: canonical.Value) -> None:
    data = canonical.encode(value)
    again = canonical.decode(data, limit=len(data), what="test")
    assert repr(again) == repr(value)
    assert canonical.encode(again) == data


@settings(deadline=None, max_examples=200)
@given(VALUES, VALUES)
def test_different_values_differ(left: canonical.Value, right: canonical.Value) -> None:
    assert (canonical.encode(left) == canonical.encode(right)) == (repr(left) == repr(right))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_canonical_or_refused(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        assert canonical.encode(canonical.decode(data, limit=60, what="test")) == data


@settings(deadline=None, max_examples=100)
@given(VALUES, st.data())
def test_a_changed_byte_changes_the_value_or_is_refused(value: canonical.Value, data: st.DataObject) -> None:
    encoded = bytearray(canonical.encode(value))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(MalformedError):
        assert repr(canonical.decode(bytes(encoded), limit=len(encoded), what="test")) != repr(value)
