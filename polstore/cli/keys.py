"""Keys on the command line: keygen and pubkey, and the options with which other commands are given private keys.

A passphrase comes from a file, from the environment, or from a terminal; never from the command line itself, which
every other user of the machine can read. The key files themselves are `polstore.keyfile`'s.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polstore import keyfile, terminal
from polstore.cli.options import AsJson
from polstore.errors import ProofError, UsageError
from polstore.files import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polstore.wire.keys import SigningKey

__all__ = ["KeyName", "PassphraseFile", "PrivateKeys", "keygen", "load_keys", "pubkey"]

PASSPHRASE = "POLSTORE_PASSPHRASE"  # noqa: S105 # the name of a variable of the environment
MAX_PASSPHRASE = 4096  # bytes of a passphrase file

PrivateKeys = Annotated[
    list[Path],
    typer.Option("--key", metavar="KEY", help="Private key file: OpenSSH or PEM, Ed25519. Repeatable, for a rotation."),
]
KeyName = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="Name of the signer, where the key file does not state one."),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"File whose first line is the passphrase; the variable {PASSPHRASE}, or a question, if left out.",
    ),
]


def keygen(
    name: Annotated[
        str,
        typer.Option(
            metavar="ORIGIN", help="Name of the signer, for instance example.com/alice; origins begin with it."
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="KEY", help="Private key file to make; the public lines go into KEY.pub.")
    ],
    encrypt: Annotated[bool, typer.Option("--encrypt", help="Encrypt KEY with a passphrase.")] = False,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a signing key: KEY, to be kept secret, and KEY.pub.

    The two lines of KEY.pub, which verifiers need, are printed too. Nothing is overwritten.
    """
    secret = None
    if encrypt:
        secret = _passphrase(passphrase_file, f"Passphrase for {out}", confirm=True)
        if not secret:
            expected = f"--passphrase-file, the variable {PASSPHRASE}, or a terminal to ask on"
            raise UsageError("--encrypt needs a passphrase", expected=expected, got="none")
    elif passphrase_file is not None:
        raise UsageError("--passphrase-file", expected="--encrypt with it", got="no --encrypt")
    _show(keyfile.generate(name, out, secret), {"key": str(out), "public_key": f"{out}.pub"}, as_json=as_json)


def pubkey(
    key: Annotated[Path, typer.Option(metavar="KEY", help="Private key file: OpenSSH or PEM, Ed25519.")],
    name: KeyName = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Print the two lines that verifiers need of a signing key."""
    (loaded,) = load_keys([key], name, passphrase_file)
    _show(loaded, {"key": str(key)}, as_json=as_json)


def load_keys(paths: Sequence[Path], name: str | None, passphrase_file: Path | None) -> tuple[SigningKey, ...]:
    """Read private key files, asking for a passphrase where one is encrypted and none was given.

    Raises:
        UsageError: no key.
        MissingError, KeyFileError: as `polstore.keyfile.load_signing_key`.
    """
    if not paths:
        raise UsageError("--key", expected="at least one", got="none")

    def asks(path: Path) -> Callable[[], bytes | None]:
        return lambda: _passphrase(passphrase_file, f"Passphrase for {path}")

    return tuple(keyfile.load_signing_key(path, name=name, passphrase=asks(path)) for path in paths)


def _passphrase(file: Path | None, question: str, *, confirm: bool = False) -> bytes | None:
    """Return the passphrase from the file, the environment or the terminal; None where there is none of them."""
    if file is not None:
        try:
            line = read_file(file, MAX_PASSPHRASE).partition(b"\n")[0]
        except ProofError as error:
            raise UsageError(f"passphrase file {file}: {error}") from error
        return line.removesuffix(b"\r")
    given = os.environ.get(PASSPHRASE)
    if given is not None:
        return os.fsencode(given)
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()):
        return None
    answer: str = typer.prompt(question, hide_input=True, confirmation_prompt=confirm, err=True)
    return os.fsencode(answer)


def _show(key: SigningKey, more: dict[str, str], *, as_json: bool) -> None:
    lines = [item.line() for item in key.verifier_keys()]
    if as_json:
        terminal.emit_json({"name": key.name, **more, "verifier_keys": lines})
        return
    for line in lines:
        terminal.emit(line)
