"""The state digest from specs/state-digest.md."""

from __future__ import annotations

from hashlib import sha256
from math import prod
from typing import Any

from tools.checker import canonical, merkle, records
from tools.checker.faults import Case, require, same

__all__ = ["check", "entry"]

DTYPES = {"bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"}
DTYPES |= {"float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "float64", "complex64", "complex128"}


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def entry(value: Any) -> None:
    """Refuse a value that is no tensor's entry."""
    require(isinstance(value, list) and len(value) == 5, "MalformedError", "an entry has five fields")
    kind, name, dtype, shape, digest = value
    require(_integer(kind) and kind == 0, "MalformedError", "kind")
    records.text(512)(name)
    require(isinstance(dtype, str) and dtype in DTYPES, "MalformedError", "dtype")
    require(isinstance(shape, list) and len(shape) <= 16, "MalformedError", "number of dimensions")
    require(all(_integer(size) and 0 <= size <= 2**40 for size in shape), "MalformedError", "shape")
    require(prod(shape) <= 2**40, "MalformedError", "number of elements")
    require(isinstance(digest, bytes) and len(digest) == 32, "MalformedError", "digest")


def check(case: Case) -> None:
    """Check one case."""
    if case["kind"] == "entry":
        entry(canonical.decode(bytes.fromhex(case["bytes"])))
        return
    names = [item["name"].encode() for item in case["tensors"]]
    require(names == sorted(set(names)), "MalformedError", "names are not sorted or not unique")
    entries: list[Any] = [
        [0, item["name"], item["dtype"], item["shape"], sha256(bytes.fromhex(item["data"])).digest()]
        for item in case["tensors"]
    ]
    for item in entries:
        entry(item)
    entries.append([1, sha256(bytes.fromhex(case["scalars"])).digest()])
    encoded = [canonical.encode(entry) for entry in entries]
    same("entries", [item.hex() for item in encoded], case["entries"])
    same("digest", merkle.root([merkle.leaf_hash(item) for item in encoded]).hex(), case["digest"])
