"""Canonical msgpack from specs/canonical.md: a decoder that knows only the shortest forms."""

from __future__ import annotations

import struct
from typing import Any

from tools.checker.faults import Case, refuse, require, same

__all__ = ["check", "decode", "described", "encode"]

MAX_DEPTH = 32
NAN = bytes.fromhex("7ff8000000000000")

# first byte: (bytes of the number, signed, smallest, largest) for which this form is the shortest
INTEGERS = {
    0xCC: (1, False, 2**7, 2**8 - 1),
    0xCD: (2, False, 2**8, 2**16 - 1),
    0xCE: (4, False, 2**16, 2**32 - 1),
    0xCF: (8, False, 2**32, 2**64 - 1),
    0xD0: (1, True, -(2**7), -33),
    0xD1: (2, True, -(2**15), -(2**7) - 1),
    0xD2: (4, True, -(2**31), -(2**15) - 1),
    0xD3: (8, True, -(2**63), -(2**31) - 1),
}
# first byte: (kind, bytes of the length, smallest length for which this form is the shortest)
LENGTHS = {
    0xD9: ("text", 1, 32),
    0xDA: ("text", 2, 2**8),
    0xDB: ("text", 4, 2**16),
    0xC4: ("bytes", 1, 0),
    0xC5: ("bytes", 2, 2**8),
    0xC6: ("bytes", 4, 2**16),
    0xDC: ("array", 2, 16),
    0xDD: ("array", 4, 2**16),
}


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        require(self.at + count <= len(self.data), "MalformedError", "the bytes end too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def value(self, depth: int) -> Any:
        first = self.take(1)[0]
        if first <= 0x7F:
            return first
        if first >= 0xE0:
            return first - 256
        if first in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[first]
        if first == 0xCB:
            eight = self.take(8)
            (number,) = struct.unpack(">d", eight)
            require(number == number or eight == NAN, "MalformedError", "a NaN other than the one")
            return number
        if first in INTEGERS:
            size, signed, low, high = INTEGERS[first]
            integer = int.from_bytes(self.take(size), "big", signed=signed)
            require(low <= integer <= high, "MalformedError", "an integer that is not in its shortest form")
            return integer
        if 0xA0 <= first <= 0xBF:
            return self.body("text", first - 0xA0, depth)
        if 0x90 <= first <= 0x9F:
            return self.body("array", first - 0x90, depth)
        require(first in LENGTHS, "MalformedError", f"the byte {first:02x} starts no value")
        kind, size, low = LENGTHS[first]
        length = int.from_bytes(self.take(size), "big")
        require(length >= low, "MalformedError", "a length that is not in its shortest form")
        return self.body(kind, length, depth)

    def body(self, kind: str, length: int, depth: int) -> Any:
        if kind == "array":
            require(depth < MAX_DEPTH, "MalformedError", "too many arrays inside each other")
            require(length <= len(self.data), "MalformedError", "more items than bytes")
            return [self.value(depth + 1) for _ in range(length)]
        content = self.take(length)
        if kind == "bytes":
            return content
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            refuse("MalformedError", "text that is not UTF-8")


def decode(data: bytes) -> Any:
    """Return the value: None, bool, int, float, str, bytes, or a list."""
    reader = _Reader(data)
    value = reader.value(0)
    require(reader.at == len(data), "MalformedError", "bytes after the value")
    return value


def encode(value: Any) -> bytes:
    """Return the encoding of a value."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        if 0 <= value < 2**7 or -32 <= value < 0:
            return bytes([value % 256])
        for first, (size, signed, low, high) in INTEGERS.items():
            if low <= value <= high:
                return bytes([first]) + value.to_bytes(size, "big", signed=signed)
        raise ValueError("integer out of range")
    if isinstance(value, float):
        return b"\xcb" + (struct.pack(">d", value) if value == value else NAN)
    if isinstance(value, str):
        return _head("text", len(value.encode()), 0xA0, 32) + value.encode()
    if isinstance(value, bytes):
        return _head("bytes", len(value), 0, 0) + value
    return _head("array", len(value), 0x90, 16) + b"".join(map(encode, value))


def _head(kind: str, length: int, short: int, below: int) -> bytes:
    if length < below:
        return bytes([short + length])
    found = max((low, first, size) for first, (what, size, low) in LENGTHS.items() if what == kind and length >= low)
    return bytes([found[1]]) + length.to_bytes(found[2], "big")


def described(value: Any) -> Any:
    """Return the JSON description of a value."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, list):
        return [described(item) for item in value]
    if isinstance(value, int):
        return {"int": str(value)}
    if isinstance(value, float):
        return {"float": struct.pack(">d", value).hex()}
    return {"text": value} if isinstance(value, str) else {"bytes": value.hex()}


def check(case: Case) -> None:
    """Check one case."""
    data = bytes.fromhex(case["bytes"])
    value = decode(data)
    same("value", described(value), case["value"])
    same("encoding", encode(value), data)
