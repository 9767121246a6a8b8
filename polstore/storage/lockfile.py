"""The recording lock: one long-lived writer per store, known by its process id.

A `flock` on a file, so it ends with the process that holds it, however that ends. It is advice between recorders;
single transactions need no more than LMDB's own lock.
"""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from polstore.errors import LockedError
from polstore.files import file_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["exclusive_lock"]

MAX_HOLDER = 300  # bytes: "pid N on HOST", a host name having at most 253
_held: set[int] = set()  # descriptors of this process


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the lock in the file ``path``, which is made when missing; never wait for it.

    Raises:
        LockedError: another process holds it, or this one already; the message names the holder.
        CallerError: the file may not be written, or the file system knows no locks.
    """
    process = os.getpid()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise file_error(error, f"{path} cannot be opened") from error
    _held.add(descriptor)
    try:
        _take(descriptor, path)
        yield
    finally:
        # A forked child has closed its copy already; unlocking there would take the lock from its parent.
        if os.getpid() == process:
            _held.discard(descriptor)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # not by closing alone: a child of fork+exec may hold a copy
            os.close(descriptor)


def _take(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, MAX_HOLDER, 0).decode("utf-8", "replace").strip()
        raise LockedError(f"{path.parent} is being recorded to by {holder or 'another process'}") from error
    except OSError as error:
        raise file_error(error, f"{path} cannot be locked") from error
    with suppress(OSError):  # on a full device the lock holds, namelessly
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _after_fork() -> None:
    """Close the child's copies, which would keep the lock alive after the parent has died."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)
