"""Reading and writing key files.

A private key is an unencrypted PKCS8 PEM file, which OpenSSL reads too, under one line that names the key (explanatory
text as of RFC 7468). Beside it, ``PATH.pub`` holds the two verifier key lines. Nothing is ever overwritten. Implements
the key file section of specs/signed-root.md; what keys mean is `polstore.wire.keys`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from polstore.errors import (
    CallerError,
    ExistsError,
    FullError,
    KeyFileError,
    MalformedError,
    MissingError,
    UsageError,
)
from polstore.wire.keys import SigningKey, VerifierKey, parse_verifier_keys

__all__ = ["MAX_KEY_FILE", "generate", "load_signing_key", "load_verifier_keys"]

MAX_KEY_FILE = 2**16  # bytes; 16 verifier keys with the longest names take 18 000
_ORIGIN = "origin: "
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def generate(name: str, path: str | os.PathLike[str]) -> SigningKey:
    """Make a key and write it to ``path`` (mode 0600) and ``path.pub`` (mode 0644); both or neither are left behind.

    Raises:
        UsageError: a name that is no key name.
        ExistsError: one of the two files is there already.
        MissingError: no such directory.
        FullError: no room left on the device.
        KeyFileError: the files cannot be written for another reason.
    """
    private = Ed25519PrivateKey.generate()
    try:
        key = SigningKey(name, private.private_bytes_raw())
    except MalformedError as error:
        raise UsageError(str(error)) from error
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    target = Path(path)
    public = target.with_name(target.name + ".pub")
    lines = "".join(f"{item.line()}\n" for item in key.verifier_keys())
    written: list[Path] = []
    try:
        for file, data, mode in (
            (target, f"{_ORIGIN}{name}\n".encode() + pem, 0o600),
            (public, lines.encode(), 0o644),
        ):
            _write_new(file, data, mode, written)
        _sync_directory(target.parent)
    except BaseException as error:
        for file in written:
            with contextlib.suppress(OSError):
                file.unlink()
        if isinstance(error, OSError):
            raise _wrapped(error, target) from error
        raise
    return key


def load_signing_key(path: str | os.PathLike[str]) -> SigningKey:
    """Read a private key file.

    Raises:
        MissingError: no such file.
        KeyFileError: readable by group or others, too long, not the format, encrypted, or not an Ed25519 key.
    """
    data = _read(Path(path), private=True)
    line, _, pem = data.partition(b"\n")
    try:
        origin = line.decode()
        if not origin.startswith(_ORIGIN):
            raise KeyFileError(f"key file {path} does not name its key in its first line: {_ORIGIN}NAME")
        private = load_pem_private_key(pem, password=None)
        if not isinstance(private, Ed25519PrivateKey):
            raise KeyFileError(f"key file {path}", expected="an Ed25519 key", got=type(private).__name__)
        return SigningKey(origin.removeprefix(_ORIGIN), private.private_bytes_raw())
    except (ValueError, TypeError, UnsupportedAlgorithm, MalformedError) as error:
        raise KeyFileError(f"key file {path} cannot be used: {error}") from error


def load_verifier_keys(path: str | os.PathLike[str]) -> tuple[VerifierKey, ...]:
    """Read a public key file: 1 to 16 verifier key lines.

    Raises:
        MissingError: no such file.
        KeyFileError: it cannot be read, is too long, or a line is no verifier key.
    """
    data = _read(Path(path), private=False)
    try:
        return parse_verifier_keys(data.decode())
    except (UnicodeDecodeError, MalformedError) as error:
        raise KeyFileError(f"public key file {path} cannot be used: {error}") from error


def _write_new(path: Path, data: bytes, mode: int, written: list[Path]) -> None:
    """Create a file that must not exist, write it through to the device, and note that it is ours."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    written.append(path)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    """Make the new names themselves survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path, *, private: bool) -> bytes:
    """Read a small regular file, and a private one only where nobody else can."""
    try:
        # A pipe would block here without O_NONBLOCK; regular files do not care.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"key file {path} is not a regular file")
            if private and status.st_mode & _OTHERS:
                mode = f"{stat.S_IMODE(status.st_mode):04o}"
                raise KeyFileError(f"key file {path} can be used by others", expected="mode 0600", got=mode)
            data = file.read(MAX_KEY_FILE + 1)
    except OSError as error:
        raise _wrapped(error, path) from error
    if len(data) > MAX_KEY_FILE:
        raise KeyFileError(f"key file {path} is too long", expected=f"at most {MAX_KEY_FILE} bytes", got="more")
    return data


def _wrapped(error: OSError, path: Path) -> CallerError:
    """Return our own error for one of the operating system."""
    where = error.filename if isinstance(error.filename, str) else path  # a number: of the descriptor
    if isinstance(error, FileExistsError):
        return ExistsError(f"{where} is there already and is not overwritten")
    if isinstance(error, FileNotFoundError):
        return MissingError(f"no such file or directory: {where}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FullError(f"no room left to write {where}")
    return KeyFileError(f"{where}: {error.strerror}")
