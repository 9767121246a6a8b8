"""The shape that all vector files share: one fault per case, named after the class of the error it must raise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from polstore.errors import PolstoreError

__all__ = ["Case", "File", "expect", "file", "invalid", "valid"]

Case: TypeAlias = dict[str, Any]
File: TypeAlias = dict[str, Any]


def valid(name: str, comment: str, /, **fields: object) -> Case:
    """Return a case that must pass, with its inputs and expected outputs."""
    return {"id": name, "comment": comment, "result": "valid", **fields}


def invalid(name: str, comment: str, error: type[PolstoreError], /, **fields: object) -> Case:
    """Return a case that must be refused with exactly this class of error."""
    return {"id": name, "comment": comment, "result": "invalid", "error": error.__name__, **fields}


def file(name: str, spec: str, cases: list[Case]) -> File:
    """Return a vector file; ids are unique in it."""
    assert len({case["id"] for case in cases}) == len(cases), f"ids of {name} are not unique"
    return {"format": name, "spec": spec, "cases": cases}


def expect(what: str, got: object, expected: object) -> None:
    """Require an output to be as a valid case states it."""
    if got != expected:
        raise AssertionError(f"{what}: expected {expected!r}, got {got!r}")
