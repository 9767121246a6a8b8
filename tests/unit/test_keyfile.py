"""Key files: what is written can be read, by OpenSSL too; nothing is overwritten, shown, or left half done."""

from __future__ import annotations

import base64
import errno
import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from polstore import keyfile
from polstore.errors import ExistsError, FullError, KeyFileError, MissingError, UsageError
from polstore.wire.keys import SigningKey

if TYPE_CHECKING:
    from pathlib import Path

NAME = "example.org/archive"


def names(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_generate_and_load(tmp_path: Path) -> None:
    path = tmp_path / "KEY"
    key = keyfile.generate(NAME, path)
    assert keyfile.load_signing_key(path) == key
    assert key.name == NAME
    assert keyfile.load_verifier_keys(tmp_path / "KEY.pub") == key.verifier_keys()
    assert names(tmp_path) == ["KEY", "KEY.pub"]


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        keyfile.generate(NAME, tmp_path / "KEY")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "KEY").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "KEY.pub").stat().st_mode) == 0o644


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_reads_the_private_key(tmp_path: Path) -> None:
    key = keyfile.generate(NAME, tmp_path / "KEY")
    command = ["openssl", "pkey", "-in", str(tmp_path / "KEY"), "-pubout", "-outform", "DER"]
    shown = subprocess.run(command, check=True, capture_output=True).stdout
    assert shown.endswith(key.verifier_keys()[0].public)


def test_two_keys_differ(tmp_path: Path) -> None:
    assert keyfile.generate(NAME, tmp_path / "A") != keyfile.generate(NAME, tmp_path / "B")


@pytest.mark.parametrize("taken", ["KEY", "KEY.pub"])
def test_nothing_is_overwritten(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("precious")
    with pytest.raises(ExistsError):
        keyfile.generate(NAME, tmp_path / "KEY")
    assert (tmp_path / taken).read_text() == "precious"
    assert names(tmp_path) == [taken]


def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "KEY").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExistsError):
        keyfile.generate(NAME, tmp_path / "KEY")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["", "two words", "a+b", "a\n", "x" * 257])
def test_a_wrong_name_writes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        keyfile.generate(name, tmp_path / "KEY")
    assert names(tmp_path) == []


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        keyfile.generate(NAME, tmp_path / "none" / "KEY")


@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, FullError), (errno.EDQUOT, FullError), (errno.EIO, KeyFileError)]
)
def test_a_failing_device_leaves_no_half_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, number: int, expected: type[Exception]
) -> None:
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(expected):
        keyfile.generate(NAME, tmp_path / "KEY")
    assert names(tmp_path) == []


def test_an_interrupt_leaves_no_half_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KeyboardInterrupt):
        keyfile.generate(NAME, tmp_path / "KEY")
    assert names(tmp_path) == []


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        keyfile.load_signing_key(tmp_path / "none")
    with pytest.raises(MissingError):
        keyfile.load_verifier_keys(tmp_path / "none")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620, 0o610, 0o601])
def test_a_private_key_for_others_is_refused(tmp_path: Path, mode: int) -> None:
    keyfile.generate(NAME, tmp_path / "KEY")
    (tmp_path / "KEY").chmod(mode)
    with pytest.raises(KeyFileError, match=f"{mode:04o}"):
        keyfile.load_signing_key(tmp_path / "KEY")


def test_a_private_key_may_be_read_only(tmp_path: Path) -> None:
    key = keyfile.generate(NAME, tmp_path / "KEY")
    (tmp_path / "KEY").chmod(0o400)
    assert keyfile.load_signing_key(tmp_path / "KEY") == key


def pem(encryption: bytes | None = None) -> bytes:
    algorithm = BestAvailableEncryption(encryption) if encryption else NoEncryption()
    return Ed25519PrivateKey.from_private_bytes(bytes(32)).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, algorithm)


def test_private_key_files_that_cannot_be_used(tmp_path: Path) -> None:
    line = f"origin: {NAME}\n".encode()
    curve = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert keyfile.load_signing_key(write(tmp_path / "sound", line + pem())).seed == bytes(32)
    faults = {
        "empty": b"",
        "no name": pem(),
        "another word": b"name: x\n" + pem(),
        "empty name": b"origin: \n" + pem(),
        "name with a space": b"origin: a b\n" + pem(),
        "name with a return": b"origin: a\r\n" + pem(),
        "not UTF-8": b"origin: \xff\n" + pem(),
        "no key": line,
        "cut": line + pem()[:60],
        "encrypted": line + pem(b"secret"),
        "another curve": line + curve,
        "too long": line + pem() + b"\n" * keyfile.MAX_KEY_FILE,
    }
    for number, data in enumerate(faults.values()):
        with pytest.raises(KeyFileError):
            keyfile.load_signing_key(write(tmp_path / str(number), data))


def test_public_key_files_that_cannot_be_used(tmp_path: Path) -> None:
    keyfile.generate(NAME, tmp_path / "KEY")
    sound = (tmp_path / "KEY.pub").read_bytes()
    faults = [b"", b"\n", b"\xff", sound + sound, sound.replace(b"\n", b"\r\n"), sound[:-3], sound + b"\n" * 2**16]
    faults.append((tmp_path / "KEY").read_bytes())
    for number, data in enumerate(faults):
        with pytest.raises(KeyFileError):
            keyfile.load_verifier_keys(write(tmp_path / str(number), data))


def test_errors_do_not_show_the_private_key(tmp_path: Path) -> None:
    keyfile.generate(NAME, tmp_path / "KEY")
    body = (tmp_path / "KEY").read_text().split("\n")[2]
    with pytest.raises(KeyFileError) as caught:
        keyfile.load_verifier_keys(tmp_path / "KEY")
    assert body not in str(caught.value)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        for load in (keyfile.load_signing_key, keyfile.load_verifier_keys):
            with pytest.raises(KeyFileError):
                load(path)


def foreign(path: Path, passphrase: bytes | None = None, *, openssh: bool = True) -> Ed25519PrivateKey:
    """Write a key as another program would, without our name line."""
    private = Ed25519PrivateKey.generate()
    algorithm = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    form = PrivateFormat.OpenSSH if openssh else PrivateFormat.PKCS8
    write(path, private.private_bytes(Encoding.PEM, form, algorithm))
    return private


@pytest.mark.parametrize("openssh", [True, False])
@pytest.mark.parametrize("secret", [None, b"correct horse"])
def test_keys_of_other_programs(tmp_path: Path, secret: bytes | None, *, openssh: bool) -> None:
    private = foreign(tmp_path / "KEY", secret, openssh=openssh)
    asked: list[int] = []

    def passphrase() -> bytes | None:
        asked.append(1)
        return secret

    key = keyfile.load_signing_key(tmp_path / "KEY", name=NAME, passphrase=passphrase)
    assert (key.name, key.seed) == (NAME, private.private_bytes_raw())
    assert len(asked) == (secret is not None), "asked exactly where it is needed"
    with pytest.raises(KeyFileError, match="does not name its key"):
        keyfile.load_signing_key(tmp_path / "KEY", passphrase=passphrase)


@pytest.mark.parametrize("openssh", [True, False])
@pytest.mark.parametrize("answer", [None, b"", b"wrong"])
def test_without_the_passphrase_an_encrypted_key_is_refused(
    tmp_path: Path, answer: bytes | None, *, openssh: bool
) -> None:
    foreign(tmp_path / "KEY", b"right", openssh=openssh)
    with pytest.raises(KeyFileError, match="wrong passphrase" if answer else "is encrypted") as caught:
        keyfile.load_signing_key(tmp_path / "KEY", name=NAME, passphrase=lambda: answer)
    assert "wrong" not in str(caught.value).removesuffix("wrong passphrase, or damaged")


def test_an_encrypted_key_of_our_own(tmp_path: Path) -> None:
    key = keyfile.generate(NAME, tmp_path / "KEY", b"secret")
    assert keyfile.load_signing_key(tmp_path / "KEY", passphrase=lambda: b"secret") == key
    assert b"bcrypt" in base64.b64decode(b"".join((tmp_path / "KEY").read_bytes().split(b"\n")[2:-2]))
    with pytest.raises(KeyFileError, match="is encrypted"):
        keyfile.load_signing_key(tmp_path / "KEY")
    with pytest.raises(UsageError):
        keyfile.generate(NAME, tmp_path / "OTHER", b"")
    assert names(tmp_path) == ["KEY", "KEY.pub"]


def test_the_name_given_must_be_the_one_that_the_file_states(tmp_path: Path) -> None:
    key = keyfile.generate(NAME, tmp_path / "KEY")
    assert keyfile.load_signing_key(tmp_path / "KEY", name=NAME) == key
    with pytest.raises(KeyFileError, match="name in key file"):
        keyfile.load_signing_key(tmp_path / "KEY", name="example.org/other")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
@pytest.mark.parametrize("secret", ["", "secret"])
def test_keys_of_ssh_keygen(tmp_path: Path, secret: str) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-C", "alice@laptop", "-N", secret, "-f", str(tmp_path / "KEY")]
    subprocess.run(command, check=True, capture_output=True)
    key = keyfile.load_signing_key(tmp_path / "KEY", name=NAME, passphrase=secret.encode)
    assert keyfile.load_verifier_keys(tmp_path / "KEY.pub", name=NAME) == key.verifier_keys()[:1]
    with pytest.raises(KeyFileError, match="does not name its key"):
        keyfile.load_verifier_keys(tmp_path / "KEY.pub")


def test_public_keys_of_other_programs(tmp_path: Path) -> None:
    public = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    spki = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (key,) = keyfile.load_verifier_keys(write(tmp_path / "pem", spki), name=NAME)
    assert key == SigningKey(NAME, bytes(32)).verifier_keys()[0]
    small = Ed25519PublicKey.from_public_bytes(bytes(32))  # y = 0: a point of order 4
    curve = generate_private_key(SECP256R1()).public_key()
    for number, other in enumerate((small, curve)):
        for encoding, form in (
            (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            (Encoding.OpenSSH, PublicFormat.OpenSSH),
        ):
            with pytest.raises(KeyFileError):
                keyfile.load_verifier_keys(write(tmp_path / f"{number}", other.public_bytes(encoding, form)), name=NAME)
