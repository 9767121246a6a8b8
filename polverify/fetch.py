"""Getting the files of a static archive, from a directory or over HTTP, from whoever serves it.

The server is not trusted with anything, the length of an answer least of all: each file has a limit of its own, all
together have one, and whoever sends slowly is given up. Nothing is decoded and no redirect is followed. What comes back
is bytes; `polverify.remote` knows what they must be. Uses the standard library's HTTP client and no proxy.
"""

from __future__ import annotations

import http.client
import io
import ssl
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import quote, urlsplit

from polstore.errors import CallerError, MalformedError, MissingError, UsageError
from polstore.files import read_file

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

__all__ = ["DEFAULT_MAX_BYTES", "Source", "get_all", "is_archive", "open_source"]

DEFAULT_MAX_BYTES = 64 << 30  # of one verification: ten snapshots of a 1 G parameter AdamW state
PATIENCE = 30.0  # seconds: for a connection, for the next byte, and for an answer's head as a whole
MIN_RATE = 4096  # bytes of content per second, beyond the patience above
CHUNK = 1 << 16  # bytes read at a time
CONNECTIONS = 4  # at once, so also files in memory
_SCHEMES = ("http://", "https://")
_ABSENT = frozenset({403, 404, 410})  # storage services answer 403 for a file that they do not have
_FAULTS = (http.client.HTTPException, OSError, ValueError)  # ValueError: names and numbers that cannot be ones


class Source(Protocol):
    """Where the files of an archive come from.

    Attributes:
        fetched: bytes of content that were read so far, those of refused files included.
    """

    fetched: int

    def get(self, name: str, limit: int) -> bytes:
        """Return a file's bytes.

        Raises:
            MissingError: there is no such file.
            CallerError: it cannot be had, or all files together became too many bytes.
            MalformedError: it is longer than ``limit`` bytes.
        """

    def close(self) -> None:
        """Let go of what is open."""


def is_archive(location: str) -> bool:
    """Say whether this is an address or a directory with runs in it, so an archive and no bundle file."""
    return location.lower().startswith(_SCHEMES) or (Path(location) / "run").is_dir()


def open_source(location: str, max_bytes: int = DEFAULT_MAX_BYTES) -> Source:
    """Return the source at an address or in a directory; raises `UsageError` for an address that is none."""
    if location.lower().startswith(_SCHEMES):
        return HttpSource(location, max_bytes)
    return DirectorySource(location, max_bytes)


def get_all(source: Source, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes]:
    """Yield the files ``wanted``, as (name, limit), in their order, a few of them fetched at once.

    If it is not let run to its end, it closes the source.
    """
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        pending: deque[Future[bytes]] = deque()
        try:
            for name, limit in wanted:
                if len(pending) == CONNECTIONS:
                    yield pending.popleft().result()
                pending.append(pool.submit(source.get, name, limit))
            while pending:
                yield pending.popleft().result()
        except BaseException:  # an interrupt above all, which must not wait for a server that drips
            source.close()
            for future in pending:
                future.cancel()
            raise


class _Budget:
    """How many bytes were read of how many that may be; shared by threads."""

    def __init__(self, max_bytes: int) -> None:
        self.fetched = 0
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def spend(self, count: int) -> None:
        with self._lock:
            self.fetched += count
            if self.fetched > self._max_bytes:
                raise CallerError("too much to fetch", expected=f"at most {self._max_bytes} bytes", got="more")


class DirectorySource(_Budget):
    """The files of a directory."""

    def __init__(self, directory: str, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self._directory = Path(directory)

    def get(self, name: str, limit: int) -> bytes:
        """Return a file's bytes; see `Source`."""
        data = read_file(self._directory / name, limit)
        self.spend(len(data))
        return data

    def close(self) -> None:
        """Do nothing: no file is kept open."""


class HttpSource(_Budget):
    """The files below an address, over connections that are kept."""

    def __init__(self, address: str, max_bytes: int) -> None:
        super().__init__(max_bytes)
        try:
            parts = urlsplit(address)
            port, host = parts.port, parts.hostname
        except ValueError as error:
            raise UsageError(f"address of an archive: {error}", got=address) from error
        if not host or parts.username is not None or parts.query or parts.fragment:
            raise UsageError("address of an archive", expected="http[s]://host[:port]/path", got=address)
        self._host, self._port, self._secure = host, port, parts.scheme == "https"
        self._path = quote(parts.path.rstrip("/"), safe="/%~!$&'()*+,;=:@")
        self._address = f"{parts.scheme}://{parts.netloc}{self._path}"
        self._idle: list[http.client.HTTPConnection] = []
        self._closed = threading.Event()

    def get(self, name: str, limit: int) -> bytes:
        """Return a file's bytes; see `Source`."""
        while True:
            try:
                connection, kept = self._idle.pop(), True
            except IndexError:
                connection, kept = self._connect(), False
            whole = False
            try:
                data = self._answer(connection, name, limit)
                whole = True
                return data
            except _FAULTS as error:
                if kept and isinstance(error, ConnectionError):
                    continue  # the server had closed a connection that it kept; a new one will tell
                reason = str(error) or type(error).__name__
                raise CallerError(f"{self._address}/{name} cannot be fetched: {reason}") from error
            finally:
                if whole and not self._closed.is_set():
                    self._idle.append(connection)
                else:
                    connection.close()

    def close(self) -> None:
        """Close all connections; those in use by other threads as soon as a byte arrives, or none does in time."""
        self._closed.set()
        while self._idle:
            self._idle.pop().close()

    def _connect(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection
        if self._secure:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=PATIENCE, context=context)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=PATIENCE)
        connection.response_class = partial(_Response, closed=self._closed)  # type: ignore[assignment]
        return connection

    def _answer(self, connection: http.client.HTTPConnection, name: str, limit: int) -> bytes:
        headers = {"Accept-Encoding": "identity", "User-Agent": "polverify"}
        connection.request("GET", f"{self._path}/{name}", headers=headers)
        began = time.monotonic()
        response = cast("_Response", connection.getresponse())
        self._check_head(response, name)
        chunks: list[bytes] = []
        length = 0
        while chunk := response.read(min(CHUNK, limit + 1 - length)):
            chunks.append(chunk)
            length += len(chunk)
            self.spend(len(chunk))
            if length > limit:
                raise MalformedError(f"{self._address}/{name} is too long", expected=f"at most {limit}", got="more")
            response.deadline(began + PATIENCE + length / MIN_RATE)
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        return b"".join(chunks)

    def _check_head(self, response: http.client.HTTPResponse, name: str) -> None:
        what = f"{self._address}/{name}"
        if response.status in _ABSENT:
            raise MissingError(f"no {what}: the server answers {response.status}")
        if 300 <= response.status < 400:
            raise CallerError(
                f"{what} is elsewhere; redirects are not followed, give the address itself",
                expected="an answer of 200",
                got=f"{response.status} to {response.headers.get('Location')}",
            )
        if response.status != 200:
            raise CallerError(f"{what} cannot be fetched", expected="an answer of 200", got=response.status)
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise CallerError(f"{what} comes encoded, which was not asked for", expected="identity", got=encoding)


class _Response(http.client.HTTPResponse):
    """An answer that must be complete by a deadline, its head within `PATIENCE`."""

    def __init__(self, sock: socket.socket, *args: Any, closed: threading.Event, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self._timed = _Timed(sock, closed)
        self.fp = io.BufferedReader(self._timed)

    def deadline(self, deadline: float) -> None:
        """Set the deadline, by the monotonic clock."""
        self._timed.deadline = deadline


class _Timed(io.RawIOBase):
    """Reads a socket until a deadline: its own timeout starts again with every byte, so one that drips never ends."""

    def __init__(self, sock: socket.socket, closed: threading.Event) -> None:
        self._socket = sock
        self._closed_by_us = closed
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open when the connection lets go of it
        self.deadline = time.monotonic() + PATIENCE

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._closed_by_us.is_set():
            raise OSError("no longer wanted")
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the server is too slow")
        self._socket.settimeout(min(left, PATIENCE))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
