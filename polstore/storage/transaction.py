"""One LMDB transaction as readers and writers see it: bytes by key, and errors of ours instead of LMDB's.

A transaction belongs to the process that began it and ends with the block that it was opened in; any use after that
raises. One thread at a time may use it.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import lmdb

from polstore.errors import CallerError, DamagedError, FullError, LockedError, UsageError
from polstore.files import FULL, file_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    Transaction: TypeAlias = lmdb.Transaction[memoryview]

__all__ = ["MAX_VALUE", "Handle", "check_process", "translated", "wrapped"]

MAX_VALUE = 2**32 - 1  # bytes; LMDB 0.9 keeps a value's length in 32 bits
_DAMAGED = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,
)


def translated(error: lmdb.Error | OSError, path: Path) -> CallerError:
    """Return the error of ours for one of LMDB's, naming the store."""
    message = f"store {path}"
    if isinstance(error, OSError):
        return file_error(error, message)
    code = getattr(error, "code", 0)
    if isinstance(error, _DAMAGED):
        return DamagedError(f"{message} is damaged: {error}")
    if isinstance(error, (lmdb.DiskError, lmdb.MapFullError)) or code in FULL:
        return FullError(f"{message}: no room left: {error}")
    if isinstance(error, lmdb.ReadersFullError):
        return LockedError(f"{message} has too many readers: {error}")
    if isinstance(error, lmdb.ReadonlyError) or code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CallerError(f"{message}: permission denied: {error}")
    if isinstance(error, lmdb.PanicError):
        return CallerError(f"{message}: an earlier write failed half-way; close it and open it again: {error}")
    return CallerError(f"{message}: {error}")


@contextmanager
def wrapped(path: Path) -> Iterator[None]:
    """Turn LMDB's errors and the operating system's into ours."""
    try:
        yield
    except (lmdb.Error, OSError) as error:
        raise translated(error, path) from error


def check_process(process: int, path: Path) -> None:
    """Refuse a store in any process but the one that opened it.

    LMDB's locks, its reader slots and its map are the parent's; used after a fork they would corrupt both sides.

    Raises:
        UsageError: this is another process.
    """
    if os.getpid() != process:
        raise UsageError(
            f"store {path} was opened before a fork; "
            "open it in the new process instead, and start that with 'spawn' or before the store is opened",
            expected=f"process {process}",
            got=f"process {os.getpid()}",
        )


class Handle:
    """One LMDB transaction, for reading or for writing.

    Attributes:
        path: directory of the store, for messages.
        written: bytes given to `put` so far, whether or not they found room.
        map_full: the map was too small, so the transaction is lost and has to run again.
    """

    def __init__(self, transaction: Transaction, path: Path) -> None:
        self.path = path
        self.written = 0
        self.map_full = False
        self._process = os.getpid()
        self._transaction = transaction
        self._ended = False

    def number(self) -> int:
        """Return the number of the transaction whose state is seen."""
        with self._used() as transaction:
            return int(transaction.id())

    def end(self) -> None:
        """Refuse all further use; does not touch LMDB."""
        self._ended = True

    def get(self, key: bytes) -> bytes | None:
        """Return a copy of a value, or None."""
        self._require_use()
        try:  # not `_used`: proofs are made of many small reads, and a context manager costs more than one of them
            value = self._transaction.get(key)
        except lmdb.Error as error:
            raise translated(error, self.path) from error
        return None if value is None else bytes(value)

    def get_many(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return copies of the values of many keys, in their order, up to the first key that is missing."""
        values: list[bytes] = []
        with self._used() as transaction:
            get = transaction.get  # as fast as a cursor where the keys are neighbours, and never another key's value
            for key in keys:
                value = get(key)
                if value is None:
                    break
                values.append(bytes(value))
        return values

    def size(self, key: bytes) -> int | None:
        """Return the length of a value in bytes, without reading it, or None."""
        with self._used() as transaction:
            value = transaction.get(key)
            return None if value is None else len(value)

    def last(self, prefix: bytes) -> bytes | None:
        """Return the last key that begins with ``prefix``, or None; the byte after it must never be 255."""
        return self.last_before(prefix + b"\xff", prefix)

    def last_before(self, end: bytes, prefix: bytes) -> bytes | None:
        """Return the last key below ``end`` if it begins with ``prefix``, or None."""
        with self._used() as transaction, transaction.cursor() as cursor:
            found = cursor.prev() if cursor.set_range(end) else cursor.last()
            key = bytes(cursor.key()) if found else b""
            return key if key.startswith(prefix) else None

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield all keys that begin with ``prefix``, in order; the transaction may be written to meanwhile."""
        key = prefix
        with self._used() as transaction:
            cursor = transaction.cursor()
            found = cursor.set_range(key)
        while found:
            with self._used():
                key = bytes(cursor.key())
            if not key.startswith(prefix):
                return
            yield key
            with self._used():
                found = cursor.next()

    def put(self, key: bytes, value: bytes, *, overwrite: bool = False) -> bool:
        """Store a value; without ``overwrite``, return False and change nothing where the key is taken.

        Raises:
            UsageError: longer than `MAX_VALUE`.
        """
        if len(value) > MAX_VALUE:
            raise UsageError("value is too long for LMDB", expected=f"at most {MAX_VALUE} bytes", got=len(value))
        self.written += len(key) + len(value)
        with self._used() as transaction:
            return transaction.put(key, value, overwrite=overwrite)

    def put_many(self, pairs: Iterable[tuple[bytes, bytes]]) -> int:
        """Store many values, none of them overwriting; return how many keys were free. Fastest in the keys' order.

        Raises:
            UsageError: a value longer than `MAX_VALUE`.
        """
        found = list(pairs)
        total = sum(map(len, chain.from_iterable(found)))
        if total > MAX_VALUE and (longest := max(len(value) for _, value in found)) > MAX_VALUE:
            raise UsageError("value is too long for LMDB", expected=f"at most {MAX_VALUE} bytes", got=longest)
        self.written += total
        with self._used() as transaction, transaction.cursor() as cursor:
            _, added = cursor.putmulti(found, overwrite=False)
            return int(added)

    def delete(self, key: bytes) -> bool:
        """Remove a key and its value; return whether it was there."""
        self.written += len(key)
        with self._used() as transaction:
            return transaction.delete(key)

    def _require_use(self) -> None:
        check_process(self._process, self.path)
        if self._ended:
            raise UsageError(f"store {self.path}: this view of it has ended; use it inside its 'with' block only")

    @contextmanager
    def _used(self) -> Iterator[Transaction]:
        self._require_use()
        try:
            yield self._transaction
        except lmdb.MapFullError as error:
            self.map_full = True
            raise translated(error, self.path) from error
        except lmdb.Error as error:
            raise translated(error, self.path) from error
