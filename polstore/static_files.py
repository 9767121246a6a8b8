"""A directory of files that any web server can serve: each written whole, and counted.

Two kinds of file are put there: those named after what they hold, which are never rewritten, and the few that may be
replaced. Knows nothing of what they mean; specs/archive-files.md says which there are. One writer at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polstore.errors import DamagedError, MalformedError, MissingError
from polstore.files import file_error, read_file, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["StaticFiles"]


class StaticFiles:
    """The files below a directory, which is made when the first one is written.

    Attributes:
        written: number of files written so far.
        written_bytes: bytes in them.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self.written = 0
        self.written_bytes = 0

    def below(self, name: str) -> StaticFiles:
        """Return the files below a subdirectory, with counts of their own."""
        return StaticFiles(self.directory / name)

    def read(self, name: str, limit: int) -> bytes | None:
        """Return a file's bytes, or None where there is none; raises `DamagedError` above ``limit`` bytes."""
        try:
            return read_file(self.directory / name, limit)
        except MissingError:
            return None
        except MalformedError as error:
            raise DamagedError(str(error)) from error

    def replace(self, name: str, data: bytes) -> None:
        """Write a file unless it holds these bytes already."""
        try:
            if self.read(name, len(data)) == data:
                return
        except DamagedError:  # longer, so another one
            pass
        self._write(name, data)

    def add(self, name: str, size: int, data: Callable[[], bytes]) -> None:
        """Write a file that is named after what it holds; one that is there stays, and ``data`` is not called.

        Raises:
            DamagedError: the one that is there has not ``size`` bytes.
        """
        path = self.directory / name
        try:
            got = path.stat().st_size
        except FileNotFoundError:
            self._write(name, data())
            return
        except OSError as error:
            raise file_error(error, f"{path} cannot be read") from error
        if got != size:
            raise DamagedError(f"{path} is damaged; remove it to have it written again", expected=size, got=got)

    def _write(self, name: str, data: bytes) -> None:
        path = self.directory / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise file_error(error, f"{path.parent} cannot be made") from error
        write_atomic(path, data)
        self.written += 1
        self.written_bytes += len(data)
