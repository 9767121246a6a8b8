"""Opening the files of an LMDB environment: for writing where that is permitted, else for reading.

Even a store that is wanted for reading only is opened for writing where it may be, so that one process can share one
environment between its readers and its writer; nothing is written by opening it.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import lmdb

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DATA_FILE", "LOCK_FILE", "file_key", "open_files"]

DATA_FILE = "data.mdb"
LOCK_FILE = "lock.mdb"
INITIAL_MAP = 1 << 30  # bytes of address space, not of disk; doubled whenever it is full
MAX_READERS = 1024  # reader slots of all processes together; LMDB's 126 are few for a hub
LOCK_FILE_SIZE = 64 * (MAX_READERS + 2)  # bytes: LMDB's header and one cache line per slot
FILE_MODE = 0o666  # before the umask, as for any file that a program makes


def file_key(path: Path) -> tuple[int, int]:
    """Return what identifies a file under all its names: device and inode."""
    status = path.stat()
    return status.st_dev, status.st_ino


def open_files(path: Path, *, sync: bool) -> tuple[bool, lmdb.Environment]:
    """Open the files for writing where that is permitted, else for reading; return whether for writing.

    Without ``sync`` a commit hands its pages to the operating system and does not wait for the device.
    """
    data, lock = path / DATA_FILE, path / LOCK_FILE
    size = 0 if data.exists() and data.stat().st_size else INITIAL_MAP  # 0: the size stored in the file
    opened = partial(
        lmdb.Environment,
        str(path),
        map_size=size,
        max_readers=MAX_READERS,
        mode=FILE_MODE,
        create=False,
        sync=sync,
        metasync=sync,
    )
    permitted = [path] + [file for file in (data, lock) if file.exists()]
    if all(os.access(file, os.W_OK) for file in permitted):
        _reserve(lock)
        return True, opened()
    try:
        return False, opened(readonly=True)
    except (lmdb.Error, OSError):
        # Without the lock file a reader is safe only where nobody can be writing: on read-only media.
        if lock.exists() and lock.stat().st_mode & 0o222 and not os.statvfs(path).f_flag & os.ST_RDONLY:
            raise
        return False, opened(readonly=True, lock=False)


def _reserve(lock: Path) -> None:
    """Give the lock file its blocks: LMDB maps it, and a device that is full later would mean SIGBUS.

    Must come before LMDB opens it, since closing a file drops this process's POSIX locks on it.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        # st_blocks counts 512 bytes each; macOS has no posix_fallocate
        if os.fstat(descriptor).st_blocks * 512 < LOCK_FILE_SIZE and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, LOCK_FILE_SIZE)
    finally:
        os.close(descriptor)
