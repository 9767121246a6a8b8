"""Vectors of specs/canonical.md.

A value is written in JSON as null, true, false, a list, or an object with one key: int (decimal text), float (its 8
bytes in hex), text, or bytes (hex).
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from polstore.errors import MalformedError
from polstore.wire import canonical
from tools.vectors.cases import Case, File, expect, file, invalid, valid

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = ["described", "run", "vectors"]

VALID: list[tuple[str, Value]] = [
    ("nil", None),
    ("false", False),
    ("true", True),
    *((f"int_{number}".replace("-", "minus_"), number) for number in (0, 127, 128, 255, 256, 65535, 65536)),
    *((f"int_{number}".replace("-", "minus_"), number) for number in (2**32 - 1, 2**32, 2**64 - 1)),
    *((f"int_{number}".replace("-", "minus_"), number) for number in (-1, -32, -33, -128, -129, -32768, -32769)),
    *((f"int_{number}".replace("-", "minus_"), number) for number in (-(2**31), -(2**31) - 1, -(2**63))),
    ("float_zero", 0.0),
    ("float_minus_zero", -0.0),
    ("float_one", 1.0),
    ("float_tenth", 0.1),
    ("float_infinity", math.inf),
    ("float_minus_infinity", -math.inf),
    ("float_nan", math.nan),
    ("text_empty", ""),
    ("text_accent", "é"),
    ("text_31", "a" * 31),
    ("text_32", "a" * 32),
    ("text_256", "a" * 256),
    ("bytes_empty", b""),
    ("bytes_255", b"\xff" * 255),
    ("bytes_256", b"\xff" * 256),
    ("array_empty", ()),
    ("array_15", (None,) * 15),
    ("array_16", (None,) * 16),
    ("example", (0, "fc.weight", "float32", (2, 300), b"\x00\xff", True, None, 0.1, -1)),
    ("array_nested", (0, "parameter/weight", "float32", (2, 3), b"\x00" * 4, ((), (True, -1.5)))),
]
INVALID = [
    ("nothing", "no value", ""),
    ("two_values", "a value and a byte after it", "c0c0"),
    ("reserved", "the byte that msgpack never uses", "c1"),
    ("int_uint8", "127 in two bytes", "cc7f"),
    ("int_uint16", "255 in three bytes", "cd00ff"),
    ("int_uint32", "65535 in five bytes", "ce0000ffff"),
    ("int_uint64", "2**32 - 1 in nine bytes", "cf00000000ffffffff"),
    ("int_int8", "-32 in two bytes", "d0e0"),
    ("int_int16", "-128 in three bytes", "d1ff80"),
    ("int_int32", "-32768 in five bytes", "d2ffff8000"),
    ("int_int64", "-2**31 in nine bytes", "d3ffffffff80000000"),
    ("int_signed_positive", "1 in a signed form", "d001"),
    ("float32", "float32 is not used", "ca3f800000"),
    ("nan_signalling", "a NaN other than the one", "cb7ff0000000000001"),
    ("nan_negative", "a NaN with its sign set", "cbfff8000000000000"),
    ("nan_payload", "a NaN with a payload", "cb7ff8000000000001"),
    ("text_str8", "1 byte of text in the 8-bit form", "d90161"),
    ("text_str16", "1 byte of text in the 16-bit form", "da000161"),
    ("text_str32", "1 byte of text in the 32-bit form", "db0000000161"),
    ("text_not_utf8", "text that is not UTF-8", "a1ff"),
    ("text_surrogate", "a surrogate in UTF-8", "a3eda080"),
    ("text_overlong", "a slash in two bytes", "a2c0af"),
    ("text_cut", "less text than announced", "a261"),
    ("text_huge", "4 GiB announced", "dbffffffff"),
    ("bytes_bin16", "1 byte in the 16-bit form", "c50001ff"),
    ("bytes_bin32", "1 byte in the 32-bit form", "c600000001ff"),
    ("bytes_cut", "fewer bytes than announced", "c402ff"),
    ("array_array16", "1 item in the 16-bit form", "dc0001c0"),
    ("array_array32", "1 item in the 32-bit form", "dd00000001c0"),
    ("array_cut", "fewer items than announced", "92c0"),
    ("array_huge", "2**32 - 1 items announced", "ddffffffff"),
    ("map_empty", "maps are not used", "80"),
    ("map", "maps are not used", "8101c0"),
    ("map16", "maps are not used", "de00010101"),
    ("map32", "maps are not used", "df000000010101"),
    ("extension_fixed", "extension types are not used", "d40100"),
    ("extension", "extension types are not used", "c7010100"),
    ("timestamp", "extension types are not used", "d6ff00000000"),
    ("depth_33", "33 arrays inside each other", "91" * 32 + "90"),
    ("depth_2000", "2000 arrays inside each other", "91" * 1999 + "90"),
]


def vectors() -> File:
    """Return the whole file."""
    deep: Value = ()
    for _ in range(canonical.MAX_DEPTH - 1):
        deep = (deep,)
    cases = [
        valid(name, "a value and its one encoding", value=described(value), bytes=canonical.encode(value).hex())
        for name, value in [*VALID, ("depth_32", deep)]
    ]
    cases += [invalid(name, comment, MalformedError, bytes=encoded) for name, comment, encoded in INVALID]
    return file("canonical", "specs/canonical.md", cases)


def run(case: Case) -> None:
    """Put one case through polstore."""
    data = bytes.fromhex(case["bytes"])
    value = canonical.decode(data, limit=2**16, what=case["id"])
    expect("value", described(value), case["value"])
    expect("encoding", canonical.encode(value), data)


def described(value: Value) -> object:
    """Return the JSON description of a value."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, tuple):
        return [described(item) for item in value]
    if isinstance(value, int):
        return {"int": str(value)}
    if isinstance(value, float):
        return {"float": struct.pack(">d", value).hex()}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return {"text": value}
