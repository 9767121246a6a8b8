"""Names, salts and sizes from specs/archive-files.md."""

from __future__ import annotations

import string
from typing import Any

from tools.checker import canonical, records
from tools.checker.faults import Case, require, same

__all__ = ["check"]

LETTERS = string.ascii_letters + string.digits


def _formed(condition: object, message: str) -> None:
    require(condition, "MalformedError", message)


def _salts(data: bytes) -> list[tuple[int, bytes]]:
    value: Any = canonical.decode(data)
    _formed(isinstance(value, list) and len(value) == 2, "not an array of 2")
    _formed(value[0] == "polstore/salts/v1", "another tag")
    _formed(isinstance(value[1], list) and len(value[1]) <= 2**24, "not an array of salts")
    for pair in value[1]:
        _formed(isinstance(pair, list) and len(pair) == 2, "not a pair")
        records.integer(0, 2**48)(pair[0])
        records.digest(pair[1])
    records.ascending([pair[0] for pair in value[1]])
    return [(index, salt) for index, salt in value[1]]


def _size(data: bytes) -> int:
    _formed(2 <= len(data) <= 20 and data[-1:] == b"\n", "length")
    digits = data[:-1]
    _formed(all(byte in b"0123456789" for byte in digits), "digits")
    _formed(digits == b"0" or digits[:1] != b"0", "a leading zero")
    return int(digits)


def check(case: Case) -> None:
    """Check one case."""
    kind = case["kind"]
    if kind == "run":
        name = case["run"]
        _formed(1 <= len(name) <= 64 and name[0] in LETTERS, "first character or length")
        _formed(all(each in LETTERS + "._-" for each in name), "a character")
        same("folder", "run/" + name, case["name"])
    elif kind == "name":
        digest = case["digest"]
        same("blob", "/".join(["blob", digest[:2], digest]), case["blob"])
        same("snapshot", "/".join(["snapshot", digest]), case["snapshot"])
        same("salts", f"salts/{case['segment']}", case["salts"])
    elif kind == "salts":
        got = _salts(bytes.fromhex(case["bytes"]))
        same("salts", [[index, salt.hex()] for index, salt in got], case["salts"])
    else:
        same("kind", kind, "size")
        same("size", _size(bytes.fromhex(case["bytes"])), case["size"])
