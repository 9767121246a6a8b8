"""What the checker raises, by the names that the specifications and the vectors use."""

from __future__ import annotations

from typing import Any, NoReturn, TypeAlias

__all__ = ["Case", "MismatchError", "RefusedError", "refuse", "require", "same"]

Case: TypeAlias = dict[str, Any]


class MismatchError(Exception):
    """An output differs from what a valid case states: the vectors or this checker are wrong."""


class RefusedError(Exception):
    """The input is refused; ``name`` is the class of error that the specification names."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def refuse(name: str, message: str) -> NoReturn:
    """Refuse the input."""
    raise RefusedError(name, message)


def require(condition: object, name: str, message: str) -> None:
    """Refuse the input unless the condition holds."""
    if not condition:
        refuse(name, message)


def same(what: str, got: object, stated: object) -> None:
    """Require an output to be as the case states it."""
    if got != stated:
        raise MismatchError(f"{what}: {got!r} is not {stated!r}")
