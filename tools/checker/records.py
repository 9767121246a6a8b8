"""What the records of specs/run-records.md and the leaf of specs/ledger.md must look like.

A rule is a function that refuses a value. A record is a list of rules, one per field.
"""

from __future__ import annotations

import itertools
import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeAlias

from tools.checker import canonical
from tools.checker.faults import refuse, require

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ascending",
    "blob",
    "digest",
    "environment",
    "groups",
    "integer",
    "items",
    "ledger_leaf",
    "manifest",
    "segment",
    "steps",
    "text",
]

Rule: TypeAlias = "Callable[[Any], None]"
LARGEST = 2**48
CONTROLS = {*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)}


def _formed(condition: object, message: str) -> None:
    require(condition, "MalformedError", message)


def integer(low: int, high: int) -> Rule:
    """Return the rule of an integer from ``low`` to ``high``."""
    return lambda value: _formed(type(value) is int and low <= value <= high, f"not an integer from {low} to {high}")


def text(most: int, pattern: str | None = None) -> Rule:
    """Return the rule of a text of 1 to ``most`` characters."""

    def rule(value: Any) -> None:
        _formed(isinstance(value, str) and 1 <= len(value) <= most, "not a text of that length")
        _formed(not CONTROLS & set(map(ord, value)), "a control character")
        _formed(pattern is None or re.fullmatch(pattern, value, re.ASCII), "text of another form")

    return rule


def blob(least: int, most: int) -> Rule:
    """Return the rule of ``least`` to ``most`` bytes."""
    return lambda value: _formed(isinstance(value, bytes) and least <= len(value) <= most, "not that many bytes")


digest = blob(32, 32)


def items(rule: Rule, most: int) -> Rule:
    """Return the rule of an array of at most ``most`` items."""

    def whole(value: Any) -> None:
        _formed(isinstance(value, list) and len(value) <= most, f"not an array of at most {most}")
        for item in value:
            rule(item)

    return whole


def ascending(keys: list[Any]) -> None:
    """Refuse keys that do not ascend strictly; texts by their UTF-8 bytes."""
    plain = [key.encode() if isinstance(key, str) else key for key in keys]
    _formed(all(left < right for left, right in itertools.pairwise(plain)), "not sorted or not unique")


def _pairs(name: Rule, value: Rule, most: int) -> Rule:
    def rule(pairs: Any) -> None:
        items(_record(name, value), most)(pairs)
        ascending([pair[0] for pair in pairs])

    return rule


def _record(*rules: Rule) -> Rule:
    def rule(value: Any) -> None:
        _formed(isinstance(value, list) and len(value) == len(rules), f"not an array of {len(rules)}")
        for one, field in zip(rules, value, strict=True):
            one(field)

    return rule


def _optional(rule: Rule) -> Rule:
    return lambda value: None if value is None else rule(value)


def _is(expected: str) -> Rule:
    return lambda value: _formed(isinstance(value, str) and value == expected, "another tag")


def _one_of(*names: str) -> Rule:
    return lambda value: _formed(isinstance(value, str) and value in names, "unknown kind")


def _anything(_: Any) -> None:
    pass


def _setting(value: Any) -> None:
    _formed(not isinstance(value, (list, bytes)), "not a scalar")
    _formed(not isinstance(value, str) or len(value) <= 4096, "a long text")


def _float(value: Any) -> None:
    _formed(isinstance(value, float), "not a float")


def _recipe(value: Any) -> None:
    identifier = text(64, "[A-Za-z_][A-Za-z0-9_]*")
    _record(_one_of("file", "none"), digest, _pairs(identifier, _setting, 256))(value)
    _formed(value[0] != "none" or value[1:] == [bytes(32), []], "a digest or settings of no recipe")


def _dataset(value: Any) -> None:
    _record(digest, integer(0, LARGEST))(value)
    _formed(value[1] or value[0] == sha256(b"").digest(), "a root of no dataset")


def _initial(value: Any) -> None:
    number = integer(0, LARGEST)
    parent = _record(text(1024), integer(1, LARGEST), digest, number, digest, digest)
    _record(_one_of("seed", "parent", "distribution"), digest, _optional(parent))(value)
    _formed((value[0] == "parent") == (value[2] is not None), "a parent exactly for kind parent")


_flags = _pairs(text(256), text(256), 64)
environment = _record(text(16, "[a-z]+"), text(256), text(256), text(256), integer(1, 65_536), _flags)
_extensions = _pairs(text(128), blob(0, 32_768), 64)
_manifest = _record(
    _is("polstore/manifest/v1"),
    text(64, "[A-Za-z0-9][A-Za-z0-9._-]*"),
    _recipe,
    _dataset,
    _record(text(256), digest),
    digest,
    _one_of("seed", "free"),
    _initial,
    environment,
    text(64, "[a-z0-9-]+"),
    integer(1, 1_000_000),
    _optional(blob(1, 16_384)),
    _extensions,
)
_segment = _record(
    _is("polstore/segment/v1"),
    integer(0, LARGEST),
    integer(0, LARGEST),
    integer(1, LARGEST),
    digest,
    digest,
    _optional(integer(0, LARGEST)),
    digest,
    environment,
    _record(_float, _float, _float, _float),
    _extensions,
)
_parent_root = _record(text(1024), integer(1, LARGEST), digest)
_ledger_leaf = _record(
    _is("polstore/ledger/v1"),
    text(1024),
    integer(1, LARGEST - 1),
    digest,
    items(_parent_root, 64),
    _extensions,
)
_samples = items(integer(0, LARGEST), 2**24)
_microbatch = _record(integer(0, LARGEST), items(_samples, 65_536))
groups = items(_pairs(text(128), _anything, 256), 65_536)
_step = _record(items(_microbatch, 65_536), groups, _optional(_float))
_steps = _record(_is("polstore/steps/v1"), integer(0, LARGEST), items(_step, 1_000_000))


def manifest(data: bytes) -> Any:
    """Return a manifest's fields."""
    _formed(len(data) <= 65_535, "a leaf too long")
    value = canonical.decode(data)
    _manifest(value)
    return value


def segment(data: bytes) -> Any:
    """Return a segment record's fields."""
    _formed(len(data) <= 65_535, "a leaf too long")
    value = canonical.decode(data)
    _segment(value)
    start, end, base = value[2], value[3], value[6]
    if not start < end <= start + 1_000_000 or (base is not None and base > start):
        refuse("MalformedError", "steps of a segment")
    return value


def ledger_leaf(data: bytes) -> Any:
    """Return the fields of a leaf of the ledger."""
    _formed(len(data) <= 65_535, "a leaf too long")
    value = canonical.decode(data)
    _ledger_leaf(value)
    parents = [(origin.encode(), size, root) for origin, size, root in value[4]]
    ascending(parents)
    return value


def steps(data: bytes) -> Any:
    """Return the fields of step records."""
    _formed(len(data) <= 2**26, "step records too long")
    value = canonical.decode(data)
    _steps(value)
    return value
