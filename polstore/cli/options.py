"""Options that several commands share, and finding the run that they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polstore.errors import MissingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AsJson", "RunName", "StorePath", "choose_run"]

StorePath = Annotated[
    Path, typer.Option("--store", envvar="POLSTORE_STORE", metavar="DIR", help="Directory of the store.")
]
RunName = Annotated[
    str | None, typer.Option("--run", metavar="NAME", help="Name of the run; not needed when there is only one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]


def choose_run(runs: Sequence[str], name: str | None) -> str:
    """Return the run to work on: the named one, or the only one there is."""
    if name is not None:
        if name not in runs:
            raise MissingError("no such run in the store", expected=" or ".join(runs) or "a run", got=name)
        return name
    if not runs:
        raise MissingError("the store holds no run yet")
    if len(runs) > 1:
        raise UsageError("which run?", expected="--run " + " or ".join(runs), got="no --run")
    return runs[0]
