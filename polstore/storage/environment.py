"""One LMDB environment: its transactions, its growth, and the checks that LMDB leaves to its user.

A full map poisons the transaction: `Environment.transact` aborts, grows the map, and runs the work again; it also
follows a map that another process has grown. The map may be replaced only while no transaction of this process is
open, and LMDB does not check that: all are counted, a growing writer waits for the others, and new ones wait for it. A
data file that was cut short would kill the process with SIGBUS: its length is checked when it is opened. Unless asked
otherwise, every transaction is synced to the device before it counts. That no environment is opened twice is the part
of `registry`.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import lmdb

from polstore.errors import DamagedError, FullError, LockedError, UsageError
from polstore.files import probe_full
from polstore.storage.opening import DATA_FILE, file_key, open_files
from polstore.storage.transaction import Handle, check_process, translated, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["Environment"]

T = TypeVar("T")

RESIZE_WAIT = 60.0  # seconds that growing waits for open views of this process; a view should last milliseconds
LENGTH_WAIT = 1.0  # seconds in which a data file that looks too short may still be filled up by its writer
PROBE = 1 << 20  # bytes; after a write that found no room less than one page is left


class Environment:
    """One open LMDB environment.

    Attributes:
        path: directory of the store.
        writable: whether the files may be written; a `Store` opened for reading refuses to in any case.
        sync: whether a transaction waits for the device; without it, closing does.
        key: what identifies the data file, by device and inode.
        users: open stores and transactions; guarded by the registry's lock.
    """

    def __init__(self, path: Path, *, sync: bool) -> None:
        self.path = path
        self.sync = sync
        self.process = os.getpid()
        self.users = 0
        self._data = path / DATA_FILE
        self._condition = threading.Condition()
        self._open: dict[int, int] = {}  # thread -> its open transactions
        self._resizing = False
        self._writing = threading.Lock()
        with wrapped(path):
            self.writable, self._lmdb = open_files(path, sync=sync)
            self.key = file_key(self._data)
        try:
            with wrapped(path):
                if self.writable:
                    self._lmdb.reader_check()  # slots of readers that died keep old pages from being used again
                self._check_length()
        except BaseException:
            self._lmdb.close()
            raise

    def close(self) -> None:
        """Close the files; in a forked child do nothing."""
        if os.getpid() == self.process:
            if self.writable and not self.sync:
                with wrapped(self.path):
                    self._lmdb.sync(force=True)
            self._lmdb.close()

    def is_empty(self) -> bool:
        """Return whether nothing was ever stored."""
        with self.view() as handle:
            return next(handle.keys(b""), None) is None

    @contextmanager
    def view(self) -> Iterator[Handle]:
        """Open a read transaction: one consistent view, whatever is written meanwhile.

        Raises:
            LockedError: no reader slot is free, or the map is being replaced and others keep it busy.
        """
        check_process(self.process, self.path)
        transaction = self._begin(write=False)
        owner = threading.get_ident()
        handle = Handle(transaction, self.path)
        try:
            yield handle
        finally:
            handle.end()
            if os.getpid() == self.process:  # a forked child would free its parent's reader slot
                transaction.abort()
                self._leave(owner)

    def transact(self, work: Callable[[Handle], T]) -> T:
        """Run ``work`` in one write transaction; commit when it returns, abort when it raises.

        ``work`` runs again, from the state before it, after every growth of the map.

        Raises:
            UsageError: inside another transaction of this thread, which growing the map would wait for forever.
            FullError: no room on the device; nothing has changed.
            LockedError: the map has to grow and a view of this process stays open.
        """
        check_process(self.process, self.path)
        if threading.get_ident() in self._open:
            raise UsageError(f"store {self.path}: a write inside an open view or write of the same thread")
        with self._writing:
            while True:
                transaction = self._begin(write=True)
                handle = Handle(transaction, self.path)
                try:
                    result = work(handle)
                    if not handle.map_full:  # else `work` swallowed the error
                        self._commit(transaction, handle)
                        return result
                except Exception:
                    if not handle.map_full:
                        raise
                finally:
                    handle.end()
                    if os.getpid() == self.process:
                        transaction.abort()
                        self._leave(threading.get_ident())
                self._grow(handle.written)

    def _commit(self, transaction: lmdb.Transaction[memoryview], handle: Handle) -> None:
        try:
            transaction.commit()
        except lmdb.MapFullError:
            handle.map_full = True
            raise
        except (lmdb.Error, OSError) as error:
            # LMDB reports a write cut short by a full device as EIO.
            if getattr(error, "code", 0) == errno.EIO and self._is_full():
                raise FullError(f"store {self.path}: no room left for {handle.written} bytes") from error
            raise translated(error, self.path) from error
        with suppress(lmdb.Error, OSError):  # the transaction counts already
            self._fill_up()

    def _is_full(self) -> bool:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and self._data.stat().st_size + PROBE > limit:
            return True
        return probe_full(self.path, PROBE)

    def _grow(self, more: int) -> None:
        """Double the map until ``more`` further bytes have a chance to fit."""
        with wrapped(self.path):
            old = new = self._lmdb.info()["map_size"]
        while new < old + more or new == old:
            new *= 2
        self._resize(new)

    def _resize(self, size: int) -> None:
        """Replace the map, 0 for the size that another process gave it, once no transaction is open."""
        with self._condition:
            if threading.get_ident() in self._open:
                raise UsageError(f"store {self.path}: another process grew it; end this thread's older views first")
            if not self._condition.wait_for(lambda: not self._resizing, RESIZE_WAIT):
                raise LockedError(f"store {self.path}: its map is being replaced for too long")
            self._resizing = True
            try:
                if not self._condition.wait_for(lambda: not self._open, RESIZE_WAIT):
                    count = sum(self._open.values())
                    raise LockedError(
                        f"store {self.path} has to grow, and {count} of its views in this process stayed open "
                        f"for {RESIZE_WAIT:g} seconds"
                    )
                with wrapped(self.path):
                    self._lmdb.set_mapsize(size)
            finally:
                self._resizing = False
                self._condition.notify_all()

    def _begin(self, *, write: bool) -> lmdb.Transaction[memoryview]:
        """Count this thread in and begin a transaction, after any resize."""
        thread = threading.get_ident()
        while True:
            with self._condition:
                # A thread that has a view already is waited for, so it must not wait itself.
                free = self._condition.wait_for(lambda: not self._resizing or thread in self._open, RESIZE_WAIT)
                if not free:
                    raise LockedError(f"store {self.path}: its map is being replaced for too long")
                self._open[thread] = self._open.get(thread, 0) + 1
            try:
                return self._lmdb.begin(write=write, buffers=True)
            except lmdb.MapResizedError:
                self._leave(thread)
                self._resize(0)
            except (lmdb.Error, OSError) as error:
                self._leave(thread)
                if not isinstance(error, lmdb.ReadersFullError) or not self._lmdb.reader_check():
                    raise translated(error, self.path) from error
            except BaseException:
                self._leave(thread)
                raise

    def _leave(self, thread: int) -> None:
        with self._condition:
            self._open[thread] -= 1
            if not self._open[thread]:
                del self._open[thread]
            self._condition.notify_all()

    def _missing_length(self) -> int:
        """Return how many bytes the data file lacks to hold every page that LMDB counts as used."""
        needed: int = (self._lmdb.info()["last_pgno"] + 1) * self._lmdb.stat()["psize"]
        return needed - self._data.stat().st_size

    def _check_length(self) -> None:
        deadline = time.monotonic() + LENGTH_WAIT
        while (missing := self._missing_length()) > 0:
            if time.monotonic() > deadline:
                raise DamagedError(f"store {self.path} is damaged: {DATA_FILE} is cut short by {missing} bytes")
            time.sleep(LENGTH_WAIT / 20)

    def _fill_up(self) -> None:
        """Lengthen a data file whose last pages were freed before they were ever written, so that it does not look cut.

        Only LMDB's write lock keeps another process from writing there meanwhile.
        """
        if self._missing_length() > 0:
            with self._lmdb.begin(write=True) as transaction:
                missing = self._missing_length()
                if missing > 0:
                    os.truncate(self._data, self._data.stat().st_size + missing)
                transaction.abort()
