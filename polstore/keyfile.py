"""Reading and writing key files.

A private key that is made here is a PKCS8 PEM file, which OpenSSL reads too, or one in OpenSSH's own form where it is
encrypted, under one line that names the key (explanatory text as of RFC 7468). Beside it, ``PATH.pub`` holds the two
verifier key lines. PEM and OpenSSH files made by other programs are read as well, encrypted or not, with the name given
beside them. Nothing is ever overwritten, and nobody is asked anything here: a passphrase comes from the caller.
Implements the key file section of specs/signed-root.md; what keys mean is `polstore.wire.keys`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
    load_ssh_public_key,
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
from polstore.files import sync_directory
from polstore.wire.keys import KeyKind, SigningKey, VerifierKey, parse_verifier_keys

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_KEY_FILE", "generate", "load_signing_key", "load_verifier_keys", "no_passphrase"]

MAX_KEY_FILE = 2**16  # bytes; 16 verifier keys with the longest names take 18 000
_ORIGIN = "origin: "
_BCRYPT_ROUNDS = 64  # half a second; PKCS8 as this library writes it would take 2048 rounds of SHA-256
_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def no_passphrase() -> bytes | None:
    """Say that there is no passphrase, so an encrypted key cannot be read."""
    return None


def generate(name: str, path: str | os.PathLike[str], passphrase: bytes | None = None) -> SigningKey:
    """Make a key and write it to ``path`` (mode 0600) and ``path.pub`` (mode 0644); both or neither are left behind.

    Args:
        name: name of the key.
        path: private key file to make.
        passphrase: what to encrypt it with; it is not encrypted if None.

    Raises:
        UsageError: a name that is no key name, or an empty passphrase.
        ExistsError: one of the two files is there already.
        MissingError: no such directory.
        FullError: no room left on the device.
        KeyFileError: the files cannot be written for another reason.
    """
    if passphrase == b"":
        raise UsageError("passphrase", expected="at least one character", got="none")
    private = Ed25519PrivateKey.generate()
    try:
        key = SigningKey(name, private.private_bytes_raw())
    except MalformedError as error:
        raise UsageError(str(error)) from error
    if passphrase is None:
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    else:
        encryption = PrivateFormat.OpenSSH.encryption_builder().kdf_rounds(_BCRYPT_ROUNDS).build(passphrase)
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, encryption)
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
        sync_directory(target.parent)
    except BaseException as error:
        for file in written:
            with contextlib.suppress(OSError):
                file.unlink()
        if isinstance(error, OSError):
            raise _wrapped(error, target) from error
        raise
    return key


def load_signing_key(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    passphrase: Callable[[], bytes | None] = no_passphrase,
) -> SigningKey:
    """Read a private key file: PKCS8 in PEM, or OpenSSH's own form.

    Args:
        path: the file.
        name: name of the key. Needed where the file has no line ``origin: NAME``, and equal to it where it has. The
            comment of an OpenSSH key is not a name.
        passphrase: asked only where the file is encrypted.

    Raises:
        MissingError: no such file.
        KeyFileError: readable by group or others, too long, not the format, not an Ed25519 key, without a name or under
            another one, or encrypted, with no passphrase or a wrong one.
    """
    data = _read(Path(path), private=True)
    try:
        stated, body = _name_line(data)
        if stated is not None and name is not None and stated != name:
            raise KeyFileError(f"name in key file {path}", expected=name, got=stated)
        chosen = name if stated is None else stated
        if chosen is None:
            raise KeyFileError(
                f"key file {path} does not name its key",
                expected=f"a first line {_ORIGIN}NAME, or --name",
                got="neither",
            )
        private = _decrypted(path, body, passphrase)
        if not isinstance(private, Ed25519PrivateKey):
            raise KeyFileError(f"key file {path}", expected="an Ed25519 key", got=type(private).__name__)
        return SigningKey(chosen, private.private_bytes_raw())
    except (ValueError, TypeError, UnsupportedAlgorithm, MalformedError) as error:
        raise KeyFileError(f"key file {path} cannot be used: {error}") from error


def load_verifier_keys(path: str | os.PathLike[str], *, name: str | None = None) -> tuple[VerifierKey, ...]:
    """Read a public key file: 1 to 16 verifier key lines, or one public key in OpenSSH's form or PEM.

    Args:
        path: the file.
        name: name for a key in OpenSSH's form or PEM, which states none. Verifier key lines have their own, and ignore
            it.

    Raises:
        MissingError: no such file.
        KeyFileError: it cannot be read, is too long, a line is no verifier key, or a key has no name.
    """
    data = _read(Path(path), private=False)
    try:
        public: Any
        if data.startswith(b"ssh-"):
            public = load_ssh_public_key(data)
        elif data.startswith(b"-----BEGIN PUBLIC KEY-----"):
            public = load_pem_public_key(data)
        else:
            return parse_verifier_keys(data.decode())
        if not isinstance(public, Ed25519PublicKey):
            raise KeyFileError(f"public key file {path}", expected="an Ed25519 key", got=type(public).__name__)
        if name is None:
            raise KeyFileError(f"public key file {path} does not name its key", expected="--name", got="no name")
        return (VerifierKey(name, KeyKind.ED25519, public.public_bytes_raw()),)
    except (ValueError, UnsupportedAlgorithm, MalformedError) as error:
        raise KeyFileError(f"public key file {path} cannot be used: {error}") from error


def _name_line(data: bytes) -> tuple[str | None, bytes]:
    """Return the name in a private key file's first line, if it states one, and the rest."""
    if not data.startswith(_ORIGIN.encode()):
        return None, data
    line, _, rest = data.partition(b"\n")
    return line.decode().removeprefix(_ORIGIN), rest


def _decrypted(path: str | os.PathLike[str], data: bytes, passphrase: Callable[[], bytes | None]) -> object:
    """Load a private key, asking for the passphrase once it is known to be encrypted."""
    load = load_ssh_private_key if data.startswith(_OPENSSH) else load_pem_private_key
    try:
        return load(data, None)
    except TypeError:  # how both say that it is encrypted
        secret = passphrase()
    if not secret:
        expected = "--passphrase-file, the variable POLSTORE_PASSPHRASE, or a terminal to ask on"
        raise KeyFileError(f"key file {path} is encrypted", expected=expected, got="no passphrase")
    try:
        return load(data, secret)
    except ValueError as error:
        raise KeyFileError(f"key file {path} cannot be decrypted: wrong passphrase, or damaged") from error


def _write_new(path: Path, data: bytes, mode: int, written: list[Path]) -> None:
    """Create a file that must not exist, write it through to the device, and note that it is ours."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    written.append(path)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask
        file.write(data)
        file.flush()
        os.fsync(descriptor)


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
