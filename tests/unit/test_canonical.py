"""Canonical msgpack: one encoding per value, and everything else refused."""

from __future__ import annotations

import math
import struct

import pytest

from polstore.errors import MalformedError
from polstore.wire import canonical

CASES = [
    (None, "c0"),
    (False, "c2"),
    (True, "c3"),
    (0, "00"),
    (127, "7f"),
    (128, "cc80"),
    (255, "ccff"),
    (256, "cd0100"),
    (65535, "cdffff"),
    (65536, "ce00010000"),
    (2**32 - 1, "ceffffffff"),
    (2**32, "cf0000000100000000"),
    (2**64 - 1, "cfffffffffffffffff"),
    (-1, "ff"),
    (-32, "e0"),
    (-33, "d0df"),
    (-128, "d080"),
    (-129, "d1ff7f"),
    (-32768, "d18000"),
    (-32769, "d2ffff7fff"),
    (-(2**31), "d280000000"),
    (-(2**31) - 1, "d3ffffffff7fffffff"),
    (-(2**63), "d38000000000000000"),
    (0.0, "cb0000000000000000"),
    (-0.0, "cb8000000000000000"),
    (1.0, "cb3ff0000000000000"),
    (math.inf, "cb7ff0000000000000"),
    (math.nan, "cb7ff8000000000000"),
    ("", "a0"),
    ("é", "a2c3a9"),
    ("a" * 31, "bf" + "61" * 31),
    ("a" * 32, "d920" + "61" * 32),
    ("a" * 256, "da0100" + "61" * 256),
    ("a" * 65536, "db00010000" + "61" * 65536),
    (b"", "c400"),
    (b"\xff", "c401ff"),
    (b"a" * 256, "c50100" + "61" * 256),
    (b"a" * 65536, "c600010000" + "61" * 65536),
    ((), "90"),
    ((1, "a", (None,)), "9301a161" + "91c0"),
    ((0,) * 15, "9f" + "00" * 15),
    ((0,) * 16, "dc0010" + "00" * 16),
    ((0,) * 65536, "dd00010000" + "00" * 65536),
]


def decode(data: bytes) -> canonical.Value:
    return canonical.decode(data, limit=2**20, what="test")


@pytest.mark.parametrize(("value", "encoded"), CASES, ids=[encoded[:20] for _, encoded in CASES])
def test_every_value_has_its_one_encoding(value: canonical.Value, encoded: str) -> None:
    assert canonical.encode(value) == bytes.fromhex(encoded)
    again = decode(bytes.fromhex(encoded))
    assert type(again) is type(value)
    assert repr(again) == repr(value)  # tells -0.0 from 0.0, and takes NaN for NaN


FAULTS = {
    "nothing": "",
    "trailing byte": "0000",
    "reserved byte": "c1",
    "uint8 for a fixint": "cc7f",
    "uint16 for a uint8": "cd00ff",
    "uint32 for a uint16": "ce0000ffff",
    "uint64 for a uint32": "cf00000000ffffffff",
    "int8 for a fixint": "d0e0",
    "int8 for a positive": "d001",
    "int16 for an int8": "d1ff80",
    "int32 for an int16": "d2ffff8000",
    "int64 for an int32": "d3ffffffff80000000",
    "int64 for a positive": "d30000000000000001",
    "float32": "ca3f800000",
    "signalling NaN": "cb7ff0000000000001",
    "negative NaN": "cbfff8000000000000",
    "NaN with a payload": "cb7ff8000000000001",
    "str8 for a fixstr": "d90161",
    "str16 for a str8": "da002061" + "61" * 31,
    "str32 for a str16": "db00000100" + "61" * 256,
    "bin16 for a bin8": "c50001ff",
    "bin32 for a bin16": "c600000100" + "61" * 256,
    "array16 for a fixarray": "dc0001c0",
    "array32 for an array16": "dd00000010" + "c0" * 16,
    "not UTF-8": "a1ff",
    "a surrogate": "a3eda080",
    "overlong UTF-8": "a2c0af",
    "empty map": "80",
    "map": "8101c0",
    "map16": "de00010101",
    "map32": "df000000010101",
    "fixext": "d40100",
    "ext8 of no bytes": "c70001",
    "ext8": "c7010100",
    "timestamp": "d6ff00000000",
    "cut array": "92c0",
    "cut text": "a261",
    "cut bytes": "c402ff",
    "cut integer": "cd01",
    "cut float": "cb00",
    "array of absurd length": "ddffffffff",
    "text of absurd length": "dbffffffff",
    "bytes of absurd length": "c6ffffffff",
}


@pytest.mark.parametrize("encoded", FAULTS.values(), ids=FAULTS.keys())
def test_everything_else_is_refused(encoded: str) -> None:
    with pytest.raises(MalformedError, match="test is"):
        decode(bytes.fromhex(encoded))
    with pytest.raises(MalformedError, match="test is"):
        decode(bytes.fromhex("91" + encoded))


def test_depth() -> None:
    deep: canonical.Value = ()
    for _ in range(canonical.MAX_DEPTH - 1):
        deep = (deep,)
    assert decode(canonical.encode(deep)) == deep
    with pytest.raises(MalformedError, match="deeper"):
        canonical.encode((deep,))
    for depth in (canonical.MAX_DEPTH, 511, 512, 1023, 5000, 100_000):
        with pytest.raises(MalformedError):
            decode(b"\x91" * depth + b"\x90")


def test_the_length_is_checked_first() -> None:
    assert canonical.decode(b"\xc0", limit=1, what="test") is None
    with pytest.raises(MalformedError, match="too long"):
        canonical.decode(b"\xff\xff", limit=1, what="test")


def test_nan_is_one_nan() -> None:
    (odd,) = struct.unpack(">d", bytes.fromhex("fff8000000000123"))
    assert canonical.encode((odd,)) == canonical.encode((math.nan,))


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800", [1], {}, {1: 2}, {1}, 1j, bytearray(b"x"), object()])
def test_values_outside_the_subset(value: object) -> None:
    with pytest.raises(MalformedError):
        canonical.encode(value)  # type: ignore[arg-type]
    with pytest.raises(MalformedError):
        canonical.encode((value,))  # type: ignore[arg-type]
