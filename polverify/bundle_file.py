"""A bundle on disk: the index, and the blobs, each hashed whenever it is read.

Reads one blob at a time, so a bundle may be larger than memory; it is not mapped, because a file that shrinks under a
mapping kills the process. Implements the reading part of specs/bundle.md.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from polstore.errors import CallerError, MalformedError, MissingError
from polstore.wire.bundle import HEADER_SIZE, Bundle, parse_header

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["BundleFile"]


class BundleFile:
    """An open bundle file; a context manager.

    Attributes:
        path: where it is.
        digest: SHA-256 of its index.
        bundle: that index.
        size: bytes of the whole file.

    Raises:
        MissingError: no such file.
        CallerError: it cannot be read.
        MalformedError: not a bundle, damaged, cut short, or with bytes to spare.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._file = self.path.open("rb")  # closed by close()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise MissingError(f"no bundle {path}") from error
        except OSError as error:
            raise CallerError(f"bundle {path} cannot be read: {error}") from error
        self._lock = Lock()
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        self.digest, length = parse_header(self._file.read(HEADER_SIZE))
        index = self._file.read(length)
        if len(index) != length:
            raise MalformedError(
                "bundle is cut short", expected=f"an index of {length} bytes", got=f"{len(index)} bytes"
            )
        self.bundle = Bundle.parse_index(self.digest, index)
        self._places: dict[bytes, tuple[int, int]] = {}
        end = HEADER_SIZE + length
        for blob, size in self.bundle.blobs:
            self._places[blob] = (end, size)
            end += size
        self.size = self._file.seek(0, 2)
        if self.size != end:
            raise MalformedError("length of the bundle", expected=f"{end} bytes", got=f"{self.size} bytes")

    def __enter__(self) -> BundleFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def check_blobs(self, progress: Callable[[int, int], None]) -> None:
        """Hash every blob once; raises `MalformedError` for the first that is damaged."""
        for done, (digest, _) in enumerate(self.bundle.blobs, 1):
            self.blob(digest)
            progress(done, len(self.bundle.blobs))

    def blob(self, digest: bytes) -> bytes:
        """Return the blob with this SHA-256, to any thread; raises `MalformedError` if it is absent or damaged."""
        if digest not in self._places:
            raise MalformedError("bundle lacks a blob", expected=digest, got=None)
        start, size = self._places[digest]
        try:
            with self._lock:  # the codec fetches frames from several threads
                self._file.seek(start)
                data = self._file.read(size)
        except OSError as error:
            raise CallerError(f"the bundle can no longer be read: {error}") from error
        got = hashlib.sha256(data).digest()
        if got != digest:
            raise MalformedError("blob of the bundle is damaged", expected=digest, got=got)
        return data
