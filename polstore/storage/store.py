"""A store: one directory that holds the blobs and records of any number of runs.

    VERSION       the text ``polstore store v1`` and a newline, written last
    data.mdb      LMDB's data
    lock.mdb      LMDB's lock and its readers; remade when missing
    writer.lock   the recording lock, while a recorder runs

One writer at a time, any number of readers, which are never blocked and see the store as it was when they began.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from polstore.errors import CallerError, DamagedError, ExistsError, MissingError, UsageError
from polstore.files import file_error, read_file, sync_directory, write_atomic
from polstore.storage import registry
from polstore.storage.lockfile import exclusive_lock
from polstore.storage.opening import DATA_FILE, LOCK_FILE
from polstore.storage.reader import Reader
from polstore.storage.transaction import check_process
from polstore.storage.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from polstore.storage.environment import Environment
    from polstore.storage.transaction import Handle

__all__ = ["Store", "open_store"]

T = TypeVar("T")

VERSION_FILE = "VERSION"
WRITER_LOCK = "writer.lock"
VERSION = "polstore store v1\n"
MAX_VERSION = 100  # bytes


class Store:
    """An open store; a context manager. Any number of threads may share it. Made by `open_store`.

    Attributes:
        path: the directory, without symbolic links.
        readonly: whether writing is refused.
    """

    def __init__(self, path: Path, environment: Environment, *, readonly: bool) -> None:
        self.path = path
        self.readonly = readonly
        self._environment = environment
        self._closed = False

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def is_same(self, other: Store) -> bool:
        """Return whether both are of one data file, whatever it is called: by links or another mount, for instance."""
        return self._environment is other._environment

    def close(self) -> None:
        """Close the store; open views stay usable until they end. Closing twice, or in a forked child, is harmless."""
        if not self._closed:
            self._closed = True
            registry.release(self._environment)

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """Open a consistent view of the store.

        Raises:
            UsageError: closed, or opened before a fork.
            LockedError: no reader slot is free, or the map is being replaced for too long.
        """
        with self._used() as opened, opened.view() as handle:
            yield Reader(handle)

    def write(self, work: Callable[[Writer], T]) -> T:
        """Run ``work`` in one write transaction and return what it returns; synced to the device when it does.

        When ``work`` raises, nothing changes. It may run several times, each from the same state: whenever the map was
        too small. LMDB keeps all that a transaction writes in memory until it ends.

        Raises:
            UsageError: read-only, closed, opened before a fork, or inside another view or write of this thread.
            FullError: no room on the device; nothing has changed.
            LockedError: the store has to grow while views of this process stay open.
        """
        self._require_writable()

        def attempt(handle: Handle) -> T:
            return work(Writer(handle))

        with self._used() as opened:
            return opened.transact(attempt)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the recording lock, for writers that live long; a single `write` does not need it.

        Raises:
            LockedError: a recorder holds it; the message names its process.
            UsageError: read-only, closed, or opened before a fork.
        """
        self._require_writable()
        with self._used(), exclusive_lock(self.path / WRITER_LOCK):
            yield

    def _require_writable(self) -> None:
        if self.readonly:
            raise UsageError(f"store {self.path} is open for reading only")

    @contextmanager
    def _used(self) -> Iterator[Environment]:
        check_process(self._environment.process, self.path)
        if self._closed:
            raise UsageError(f"store {self.path} is closed")
        registry.retain(self._environment)
        try:
            yield self._environment
        finally:
            registry.release(self._environment)


def open_store(path: Path | str, *, create: bool = False, readonly: bool = False, sync: bool = True) -> Store:
    """Open a store.

    Args:
        path: its directory.
        create: make it when there is none; the directory must be missing or empty.
        readonly: refuse to write. Read-only media need it.
        sync: whether a write waits until the device has it. Without, nothing is lost when the program dies, but a crash
            of the system or a power failure before the store is closed may lose what was written, or damage the store.

    Raises:
        MissingError: no store there, and ``create`` is false.
        ExistsError: with ``create``, something is there that is no store.
        DamagedError: not the version that this program knows, or files that cannot be right.
        CallerError: the files may not be read, or written.
        UsageError: ``create`` with ``readonly``, a store that was open before a fork, or one that is open without sync.
    """
    if create and readonly:
        raise UsageError("a store cannot be created for reading only")
    path = Path(path)
    try:
        path = path.resolve()
        made = (path / VERSION_FILE).exists()
        if not made:
            if not create:
                raise MissingError(f"no store at {path}")
            _prepare(path)
        else:
            _check_version(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        failure = error if isinstance(error, OSError) else OSError(str(error))
        raise file_error(failure, f"store {path}") from error
    opened = registry.acquire(path, sync=sync or readonly)
    try:
        if not made:
            if not opened.is_empty():
                raise ExistsError(f"{path} holds LMDB data that is not a store's")
            write_atomic(path / VERSION_FILE, VERSION.encode("ascii"))
        if sync and not opened.sync and not readonly:
            raise UsageError(f"store {path} is open in this process without sync", expected="sync", got="none")
        if not opened.writable and not readonly:
            raise CallerError(f"store {path} may not be written; open it for reading only")
        return Store(path, opened, readonly=readonly)
    except BaseException:
        registry.release(opened)
        raise


def _prepare(path: Path) -> None:
    """Make the directory; what a creation that was cut short has left is taken up again."""
    if path.exists() and not path.is_dir():
        raise ExistsError(f"{path} is not a directory")
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for directory in missing:  # what is in a directory survives a power failure only if its own name does
        sync_directory(directory.parent)
    leftover = f".{VERSION_FILE}."  # a temporary file of `write_atomic`
    own = {DATA_FILE, LOCK_FILE}
    foreign = [file.name for file in path.iterdir() if file.name not in own and not file.name.startswith(leftover)]
    if foreign:
        raise ExistsError(f"{path} is not empty and no store: it holds {min(foreign)!r}")


def _check_version(path: Path) -> None:
    got = read_file(path / VERSION_FILE, MAX_VERSION).decode("utf-8", "replace")
    if got != VERSION:
        raise DamagedError(f"store {path} has an unknown version", expected=VERSION, got=got)
    data = path / DATA_FILE
    if not data.exists() or not data.stat().st_size:
        raise DamagedError(f"store {path} has lost its {DATA_FILE}")
