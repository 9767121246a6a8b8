"""What both command lines share: errors become one line and an exit code, results go to stdout, progress to stderr.

Decides nothing and knows no command.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
import warnings
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from polstore.errors import CallerError, PolstoreError, TrainingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["INTERRUPTED", "emit", "emit_json", "note", "plain", "progress", "recipe_at_work", "run", "text"]

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it: 128 and the number of the signal
QUIET_SECONDS = 10.0  # between two lines of progress where no terminal shows a bar
_WrongUsage = typer.BadParameter.__mro__[2]  # click's ClickException, which newer typer carries under no public name


def run(app: typer.Typer) -> NoReturn:
    """Run a command line and exit with the documented code; shows a traceback only for a fault of its own."""
    _escape_unencodable()
    code: Any = None
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = app(standalone_mode=False)
    except PolstoreError as error:
        _fail(str(error), error.exit_code)
    except MemoryError:
        _fail("out of memory", CallerError.exit_code)
    except OSError as error:
        _fail(str(error), CallerError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit:  # all that typer itself does about a pipe that nobody reads
        _fail("output cannot be written: nobody reads it", CallerError.exit_code)
    except Exception as error:  # noqa: BLE001 # Python's own exit code 1 would be read as REJECT
        if isinstance(error, _WrongUsage):
            _fail_usage(error)
        with suppress(OSError, AttributeError):
            traceback.print_exc()
        _fail(f"internal fault: {type(error).__name__}: {error}", CallerError.exit_code)
    _settle()
    sys.exit(code if isinstance(code, int) else 0)


def emit(line: str) -> None:
    """Write a line of data to stdout; raises `CallerError` if it cannot be written."""
    try:
        if sys.stdout is None:
            raise OSError("stdout is closed")
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except OSError as error:
        raise CallerError(f"output cannot be written: {error.strerror or error}") from error


def emit_json(value: Any) -> None:
    """Write a JSON document to stdout; numbers that JSON does not know (NaN, infinities) become text."""
    emit(json.dumps(plain(value), indent=2))


def note(line: str) -> None:
    """Write a line for the user to stderr; what cannot be written there is dropped."""
    with suppress(OSError, AttributeError):  # AttributeError: stderr is closed, and then None
        sys.stderr.write(_printable(line) + "\n")
        sys.stderr.flush()


def text(value: Any) -> str:
    """Return any value as one line that is safe to show: bytes in hex, control characters escaped."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return ", ".join(f"{_printable(str(name))}={text(item)}" for name, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        line = ("; " if any(isinstance(item, dict) for item in value) else ", ").join(text(item) for item in value)
        return line or "none"
    return _printable(str(value))


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


@contextmanager
def recipe_at_work() -> Iterator[None]:
    """Guard the block in which a recipe runs: what it prints goes to stderr, and it cannot end the program.

    Raises:
        TrainingError: it tried to, which would otherwise pass for an exit code of ours.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        raise TrainingError("the recipe ended the program", expected="a return", got=f"exit({error.code})") from error


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


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: bytes in hex, and numbers that it does not know as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def _printable(line: str) -> str:
    """Escape whatever could move a cursor, change a colour or end the line: it may come out of a proof."""
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def _escape_unencodable() -> None:
    """Let stdout escape what a terminal's encoding lacks, as stderr always does."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    note("warning: " + " ".join(str(message).split()))


def _settle() -> None:
    """Give up a stream that still holds what cannot be written, or the interpreter's last flush would set the code."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError, AttributeError):
            setattr(sys, name, None)


def _fail_usage(error: Exception) -> NoReturn:
    message: str = error.format_message()  # type: ignore[attr-defined]  # _WrongUsage has it
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        for line in message.splitlines():
            note(line)
        _settle()
        sys.exit(UsageError.exit_code)
    if message.endswith(" is not readable."):  # typer looks at every path itself; that is no question of usage
        _fail(message.rstrip("."), CallerError.exit_code)
    where = f"; see {context.command_path} --help" if context is not None else ""
    _fail(message.rstrip(".") + where, UsageError.exit_code)


def _fail(message: str, code: int) -> NoReturn:
    note("error: " + " ".join(message.split()))
    _settle()
    sys.exit(code)
