"""Making numbered checks one after the other: the first that fails ends them, and those after it are not made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polstore.errors import ProofError
from polverify.verdict import Check, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["make_checks"]


def make_checks(
    plan: Iterable[tuple[int, str, Callable[[], tuple[Outcome, str]]]],
) -> tuple[list[Check], str | None]:
    """Make checks in their order and return them with the fault of the first that failed; those after it are not made.

    Args:
        plan: number, name and function of each check. A `ProofError` is a failure; everything else passes through.
    """
    checks: list[Check] = []
    fault: str | None = None
    for number, name, check in plan:
        if fault is not None:
            checks.append(Check(number, name, Outcome.NOT_MADE, "a check before it failed"))
            continue
        try:
            outcome, detail = check()
        except ProofError as error:
            fault = f"check {number} ({name}): {error}"
            outcome, detail = Outcome.FAILED, str(error)
        checks.append(Check(number, name, outcome, detail))
    return checks, fault
