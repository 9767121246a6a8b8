"""Whole files, read with a cap and written so that a crash leaves either the old file or the new one.

Used for keys, notes, bundles and everything else that is a plain file; what lives in a store is `polstore.storage`'s.
Knows nothing of what the bytes mean, and of no format.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from polstore.errors import CallerError, ExistsError, FullError, MalformedError, MissingError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["file_error", "read_file", "sync_directory", "write_atomic"]

CHUNK = 1 << 20  # bytes read at a time: a pipe or a growing file is cut off one chunk past its limit
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.EACCES, errno.EBADF, errno.EOPNOTSUPP})


def read_file(path: Path | str, limit: int) -> bytes:
    """Return the bytes of a file, at most ``limit`` of them.

    A pipe is read to its end.

    Raises:
        MissingError: no such file, or a directory.
        CallerError: it cannot be read.
        MalformedError: longer than ``limit`` bytes.
    """
    path = Path(path)
    chunks: list[bytes] = []
    length = 0
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            length = status.st_size if stat.S_ISREG(status.st_mode) else 0
            if length <= limit:
                length = 0
                while length <= limit and (chunk := file.read(min(CHUNK, limit + 1 - length))):
                    chunks.append(chunk)
                    length += len(chunk)
    except OSError as error:
        raise file_error(error, f"{path} cannot be read") from error
    if length > limit:
        raise MalformedError(f"{path} is too long", expected=f"at most {limit} bytes", got=f"{length} bytes or more")
    return b"".join(chunks)


def write_atomic(path: Path | str, data: bytes | Iterable[bytes], *, mode: int = 0o644, overwrite: bool = True) -> None:
    """Write a file whole, or not at all.

    The bytes go into a temporary file beside it, which is synced and renamed. When this returns, the file survives a
    power loss; when it raises, the old file is as it was and nothing is left behind. What is no regular file (a pipe,
    ``/dev/null``, ``/dev/stdout``) is written into, and must not be replaced: root would lose the device.

    Args:
        path: the file; a symbolic link to a regular file is itself replaced, not what it points to.
        data: the bytes, or pieces of them in order.
        mode: permission bits of the new file, before the umask.
        overwrite: whether an existing file may be replaced.

    Raises:
        ExistsError: it exists and ``overwrite`` is false, or it is a directory.
        MissingError: its directory does not exist.
        FullError: no room on the device, or above a quota or the process's file size limit.
        CallerError: it may not be written.
    """
    path = Path(path)
    try:
        if path.is_dir() or (not overwrite and os.path.lexists(path)):
            raise ExistsError(f"{path} exists already")
        if _is_special(path):
            with path.open("wb") as file:
                file.writelines((data,) if isinstance(data, bytes) else data)
            return
        temporary = path.with_name(f".{_shortened(path.name)}.{os.urandom(6).hex()}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for piece in (data,) if isinstance(data, bytes) else data:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            _put_in_place(temporary, path, overwrite=overwrite)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise file_error(error, f"{path} cannot be written") from error


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power loss, where the file system can do that."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise


def file_error(error: OSError, message: str) -> CallerError:
    """Return the error of ours for an error of the operating system, its reason at the end of ``message``."""
    kind: type[CallerError] = CallerError
    if error.errno in FULL:
        kind = FullError
    elif error.errno in _ABSENT:
        kind = MissingError
    elif error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        kind = ExistsError
    return kind(f"{message}: {error.strerror or error}")


def probe_full(directory: Path, length: int) -> bool:
    """Return whether ``length`` more bytes do not fit in a directory, by writing them to a file without a name."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            written = 0
            while written < length:
                written += file.write(bytes(min(CHUNK, length - written)))
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in FULL
    return False


def _shortened(name: str) -> str:
    """Return as much of a file's name as leaves room for more: file systems count its bytes, 255 as a rule."""
    return os.fsdecode(os.fsencode(name)[:200])


def _is_special(path: Path) -> bool:
    """Return whether a path leads to a device, pipe or socket, or to whatever an open descriptor is."""
    if path.is_symlink() and str(path.readlink()).startswith("/proc/"):
        return True  # /dev/stdout, which may be a regular file just now
    return path.exists() and not path.is_file()


def _put_in_place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Give the finished file its name; without ``overwrite`` through a hard link, which refuses a taken name."""
    if overwrite:
        temporary.replace(path)
        return
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS or os.path.lexists(path):
            raise
        temporary.replace(path)  # no hard links here (FAT, some network mounts): a racing writer may lose
    else:
        temporary.unlink()
