"""What both command lines share: errors become one line and an exit code, results go to stdout, progress to stderr.

Decides nothing and knows no command.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from polstore.errors import CallerError, PolstoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import typer

__all__ = ["emit", "emit_json", "note", "progress", "run"]

QUIET_SECONDS = 10.0  # between two lines of progress where no terminal shows a bar


def run(app: typer.Typer) -> None:
    """Run a command line and exit with the documented code; never shows a traceback for a fault it knows."""
    try:
        app()
    except PolstoreError as error:
        _fail(str(error), error.exit_code)
    except MemoryError:
        _fail("out of memory", CallerError.exit_code)
    except OSError as error:
        _fail(str(error), CallerError.exit_code)


def emit(text: str) -> None:
    """Write a line of data to stdout; raises `CallerError` if it cannot be written."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = None  # so that the interpreter's own flush does not fail again
        raise CallerError(f"output cannot be written: {error}") from error


def emit_json(value: Any) -> None:
    """Write a JSON document to stdout; numbers that JSON does not know (NaN, infinities) become text."""
    emit(json.dumps(_plain(value), indent=2))


def note(text: str) -> None:
    """Write a line for the user to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show progress on stderr: a bar with an estimate on a terminal, a line now and then elsewhere.

    The result is called with (what is being done, done, in all).
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines().update
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield update


class _Lines:
    """Progress as plain lines, at most one in `QUIET_SECONDS`."""

    def __init__(self) -> None:
        self._what = ""
        self._began = self._last = time.monotonic()

    def update(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._began = what, now
        if now - self._last < QUIET_SECONDS or not done:
            return
        self._last = now
        left = (now - self._began) / done * (total - done)
        note(f"{what}: {done} of {total}, about {left:.0f} s left")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def _fail(message: str, code: int) -> None:
    note("error: " + " ".join(message.split()))
    sys.exit(code)
