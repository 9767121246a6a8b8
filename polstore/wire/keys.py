"""Keys of signed notes: verifier key lines, key ids, and the two Ed25519 keys behind one name.

A signer owns one Ed25519 seed. It signs notes with it directly (kind 0x01), and derives from it a second key for
timestamped cosignatures (kind 0x04), since C2SP wants a key of its own for each kind. Implements the key section of
specs/signed-root.md. Does no I/O: key files are `polstore.keyfile`, signatures are `polstore.wire.note`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import IntEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from polstore.errors import MalformedError
from polstore.wire.text import from_base64, to_base64

__all__ = [
    "KEY_ID_SIZE",
    "MAX_KEYS",
    "MAX_KEY_NAME",
    "KeyKind",
    "SigningKey",
    "VerifierKey",
    "check_key_name",
    "check_public_key",
    "parse_verifier_keys",
]

KEY_ID_SIZE = 4  # bytes
PUBLIC_KEY_SIZE = 32  # bytes of an Ed25519 public key, and of a private seed
MAX_KEY_NAME = 256  # characters; a host name with a path
MAX_KEYS = 16  # lines of a key file; the number of signatures every reader of notes must accept
_NAME = re.compile(rf"[^\x00-\x1f\x7f-\x9f\ud800-\udfff\s+]{{1,{MAX_KEY_NAME}}}")
_COSIGNATURE_INFO = b"polstore cosignature v1\n"
_PRIME = 2**255 - 19  # of the field under Ed25519
_D = -121665 * pow(121666, -1, _PRIME) % _PRIME  # of the curve -x^2 + y^2 = 1 + d x^2 y^2


class KeyKind(IntEnum):
    """Signature types of C2SP signed-note that are known here."""

    ED25519 = 0x01
    COSIGNATURE = 0x04


@dataclass(frozen=True)
class VerifierKey:
    """A public key under a name; constructing one checks it and raises `MalformedError`.

    Attributes:
        name: key name, see `check_key_name`.
        kind: what the key signs.
        public: Ed25519 public key, 32 bytes, see `check_public_key`.
    """

    name: str
    kind: KeyKind
    public: bytes

    def __post_init__(self) -> None:
        check_key_name(self.name)
        if self.kind not in tuple(KeyKind):
            raise MalformedError("kind of a verifier key", expected="1 or 4", got=int(self.kind))
        check_public_key(self.public)

    @property
    def key_id(self) -> bytes:
        """The 4 bytes that name this key in a signature line."""
        return hashlib.sha256(self.name.encode() + b"\n" + self._typed()).digest()[:KEY_ID_SIZE]

    def line(self) -> str:
        """Return the verifier key line, ``name+hex key id+base64``, without an end of line."""
        return f"{self.name}+{self.key_id.hex()}+{to_base64(self._typed())}"

    @classmethod
    def parse(cls, line: str) -> VerifierKey:
        """Parse a verifier key line; raises `MalformedError`."""
        parts = line.split("+", 2)
        if len(parts) != 3:
            raise MalformedError("verifier key", expected="name+key id+base64", got=line)
        name, key_id, typed = parts
        data = from_base64(typed, "verifier key")
        if len(data) != 1 + PUBLIC_KEY_SIZE or data[0] not in tuple(KeyKind):
            raise MalformedError("verifier key", expected="a kind of 01 or 04 and 32 bytes", got=data)
        key = cls(name, KeyKind(data[0]), data[1:])
        if key_id != key.key_id.hex():
            raise MalformedError("key id of a verifier key", expected=key.key_id.hex(), got=key_id)
        return key

    def _typed(self) -> bytes:
        return bytes([self.kind]) + self.public


@dataclass(frozen=True)
class SigningKey:
    """A private key under a name; constructing one checks the name and raises `MalformedError`.

    Attributes:
        name: key name.
        seed: Ed25519 private seed, 32 bytes; never shown.
    """

    name: str
    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        check_key_name(self.name)
        if len(self.seed) != PUBLIC_KEY_SIZE:
            raise MalformedError("size of a private seed", expected=PUBLIC_KEY_SIZE, got=len(self.seed))

    def private_key(self, kind: KeyKind) -> Ed25519PrivateKey:
        """Return the private key that makes signatures of ``kind``."""
        if kind is KeyKind.ED25519:
            return Ed25519PrivateKey.from_private_bytes(self.seed)
        info = _COSIGNATURE_INFO + self.name.encode()
        derived = HKDF(SHA256(), length=PUBLIC_KEY_SIZE, salt=b"", info=info).derive(self.seed)
        return Ed25519PrivateKey.from_private_bytes(derived)

    def verifier_key(self, kind: KeyKind) -> VerifierKey:
        """Return the public half for ``kind``."""
        public = self.private_key(kind).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return VerifierKey(self.name, kind, public)

    def verifier_keys(self) -> tuple[VerifierKey, VerifierKey]:
        """Return both public halves, the Ed25519 key first, then the cosignature key."""
        return self.verifier_key(KeyKind.ED25519), self.verifier_key(KeyKind.COSIGNATURE)


def check_key_name(name: str) -> None:
    """Require 1 to `MAX_KEY_NAME` characters without Unicode spaces, ``+`` and control characters.

    Raises:
        MalformedError: the name breaks the rule.
    """
    if _NAME.fullmatch(name) is None:
        expected = f"1 to {MAX_KEY_NAME} characters without space, + and control characters"
        raise MalformedError("key name", expected=expected, got=name)


def check_public_key(public: bytes) -> None:
    """Require the canonical encoding of a curve point whose order does not divide 8.

    Under a key of small order one signature fits every message, and libraries accept such keys. Doubling needs no more
    than y: with x^2 = (y^2 - 1) / (d y^2 + 1), the double of a point has y' = (y^2 + x^2) / (2 - y^2 + x^2), and y = 1
    belongs to the neutral element alone. No denominator is ever 0, as d is no square and -1 is one.

    Raises:
        MalformedError: not 32 bytes, y not below the prime, not on the curve, or of small order.
    """
    if len(public) != PUBLIC_KEY_SIZE:
        raise MalformedError("size of a public key", expected=PUBLIC_KEY_SIZE, got=len(public))
    y = int.from_bytes(public, "little") & (2**255 - 1)  # the top bit is the sign of x
    if y >= _PRIME:
        raise MalformedError("public key is not in canonical form", expected="y < 2**255 - 19", got=public)
    if pow(_x_squared(y), (_PRIME - 1) // 2, _PRIME) not in (0, 1):  # Euler's criterion: x does not exist
        raise MalformedError("public key", expected="a point of the curve", got=public)
    for _ in range(3):
        square = _x_squared(y)
        y = (y * y + square) * pow(2 - y * y + square, -1, _PRIME) % _PRIME
    if y == 1:
        raise MalformedError("public key", expected="a point of large order", got=public)


def parse_verifier_keys(text: str) -> tuple[VerifierKey, ...]:
    """Parse the lines of a public key file: 1 to `MAX_KEYS` verifier keys, empty lines aside, none of them twice.

    Raises:
        MalformedError: a malformed line, no key, too many, or two with the same name and key id.
    """
    lines = [line for line in text.split("\n") if line]
    if not 1 <= len(lines) <= MAX_KEYS:
        raise MalformedError("number of verifier keys", expected=f"1 to {MAX_KEYS}", got=len(lines))
    keys = tuple(VerifierKey.parse(line) for line in lines)
    if len({(key.name, key.key_id) for key in keys}) != len(keys):
        raise MalformedError("verifier keys are not unique", expected="every key once", got=text)
    return keys


def _x_squared(y: int) -> int:
    return (y * y - 1) * pow(_D * y * y + 1, -1, _PRIME) % _PRIME
