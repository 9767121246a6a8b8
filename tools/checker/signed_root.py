"""Keys, notes, signed roots and inclusion proof files from specs/signed-root.md."""

from __future__ import annotations

import hmac
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tools.checker import merkle
from tools.checker.faults import Case, refuse, require, same

__all__ = ["Key", "check", "open_root", "parse_checkpoint", "parse_key", "parse_note", "parse_proof", "verify"]

PRIME = 2**255 - 19
D = -121665 * pow(121666, -1, PRIME) % PRIME


def _formed(condition: object, message: str) -> None:
    require(condition, "MalformedError", message)


def _signed(condition: object, message: str) -> None:
    require(condition, "SignatureError", message)


def _base64(text: str) -> bytes:
    _formed(re.fullmatch("[A-Za-z0-9+/]*={0,2}", text) and len(text) % 4 == 0, "base64")
    data = b64decode(text)
    _formed(b64encode(data).decode() == text, "base64 with another spelling")
    return data


def _decimal(text: str, below: int) -> int:
    _formed(re.fullmatch("0|[1-9][0-9]{0,20}", text) and int(text) < below, "decimal number")
    return int(text)


def _key_name(name: str) -> None:
    allowed = all(not c.isspace() and c != "+" and not (ord(c) < 0x20 or 0x7F <= ord(c) <= 0x9F) for c in name)
    _formed(1 <= len(name) <= 256 and allowed, "key name")


@dataclass(frozen=True)
class Key:
    """A verifier key."""

    name: str
    type: int
    public: bytes
    line: str

    @property
    def key_id(self) -> bytes:
        """What names the key in a signature line."""
        return sha256(self.name.encode() + b"\n" + bytes([self.type]) + self.public).digest()[:4]


def parse_key(line: str) -> Key:
    """Parse a verifier key line."""
    parts = line.split("+", 2)
    _formed(len(parts) == 3, "verifier key")
    name, key_id, typed = parts
    data = _base64(typed)
    _key_name(name)
    _formed(len(data) == 33 and data[0] in (1, 4), "type and size of a public key")
    key = Key(name, data[0], data[1:], line)
    _formed(key_id == key.key_id.hex(), "key id")
    _public_key(key.public)
    return key


def _public_key(public: bytes) -> None:
    """Refuse weak keys, with the addition law of the curve on full points."""
    number = int.from_bytes(public, "little")
    y, sign = number % 2**255, number >> 255
    _formed(y < PRIME, "public key above the prime")
    x_squared = (y * y - 1) * pow(D * y * y + 1, -1, PRIME) % PRIME
    x = pow(x_squared, (PRIME + 3) // 8, PRIME)
    if x * x % PRIME != x_squared:
        x = x * pow(2, (PRIME - 1) // 4, PRIME) % PRIME
    _formed(x * x % PRIME == x_squared, "public key off the curve")
    if x % 2 != sign:
        x = -x % PRIME
    for _ in range(3):
        both = D * x * x * y * y
        x, y = 2 * x * y * pow(1 + both, -1, PRIME) % PRIME, (y * y + x * x) * pow(1 - both, -1, PRIME) % PRIME
    _formed((x, y) != (0, 1), "public key of small order")


def parse_note(data: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """Return the text and the signatures as (key name, key id and signature)."""
    _formed(len(data) <= 2**20, "size of a note")
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError:
        refuse("MalformedError", "not UTF-8")
    _formed(all(c == "\n" or ord(c) >= 0x20 for c in whole), "control character")
    cut = whole.rfind("\n\n")
    _formed(cut >= 0 and whole.endswith("\n"), "no signatures")
    lines = whole[cut + 2 : -1].split("\n")
    _formed(len(lines) <= 100, "number of signatures")
    signatures = []
    for line in lines:
        fields = line.split(" ")
        _formed(len(fields) == 3 and fields[0] == "\u2014", "signature line")
        _key_name(fields[1])
        blob = _base64(fields[2])
        _formed(len(blob) >= 5, "signature without content")
        signatures.append((fields[1], blob))
    return whole[: cut + 1], signatures


def verify(text: str, signatures: list[tuple[str, bytes]], keys: list[Key]) -> list[tuple[str, int | None]]:
    """Return the lines of the keys that signed, each with its timestamp."""
    signers: list[tuple[str, int | None]] = []
    for name, blob in signatures:
        for key in keys:
            if (key.name, key.key_id) != (name, blob[:4]):
                continue
            _signed(key.line not in [line for line, _ in signers], "signed twice")
            signature, message, timestamp = blob[4:], text.encode(), None
            if key.type == 4:
                _signed(len(signature) == 72, "size of a cosignature")
                timestamp = int.from_bytes(signature[:8], "big")
                _signed(1 <= timestamp < 2**63, "timestamp")
                message = b"cosignature/v1\ntime %d\n" % timestamp + message
                signature = signature[8:]
            _signed(len(signature) == 64, "size of a signature")
            try:
                Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message)
            except InvalidSignature:
                refuse("SignatureError", "false signature")
            signers.append((key.line, timestamp))
    _signed(signers, "no known key")
    return signers


def parse_checkpoint(text: str) -> tuple[str, int, bytes]:
    """Return origin, size and root."""
    lines = text.split("\n")
    _formed(len(lines) >= 4 and lines.pop() == "" and all(lines), "lines of a checkpoint")
    _formed(len(lines[0]) <= 1024, "origin")
    size, root = _decimal(lines[1], 2**48), _base64(lines[2])
    _formed(len(root) == 32, "size of a root")
    _formed(size > 0 or root == merkle.root([]), "root of an empty tree")
    return lines[0], size, root


def open_root(data: bytes, keys: list[Key]) -> tuple[str, int, bytes, int | None]:
    """Return origin, size, root and time of what all keys have signed."""
    text, signatures = parse_note(data)
    origin, size, root = parse_checkpoint(text)
    for key in keys:
        owned = origin == key.name or (origin.startswith(key.name + "/") and origin != key.name + "/")
        _signed(owned, "origin under another name")
    signers = verify(text, signatures, keys)
    _signed(len(signers) == len(keys), "a key has not signed")
    return origin, size, root, max((time for _, time in signers if time is not None), default=None)


def parse_proof(data: bytes) -> tuple[int, list[bytes], bytes, bytes | None]:
    """Return index, hashes, signed root and extra data of an inclusion proof file."""
    head, _, signed_root = data.partition(b"\n\n")
    lines = head.decode("utf-8", "replace").split("\n")
    _formed(lines.pop(0) == "c2sp.org/tlog-proof@v1", "header")
    extra = None
    if lines and lines[0].startswith("extra "):
        extra = _base64(lines.pop(0)[6:])
        _formed(1 <= len(extra) <= 2**16, "extra data")
    _formed(lines and lines[0].startswith("index "), "index")
    index = _decimal(lines.pop(0)[6:], 2**48)
    _formed(len(lines) <= 48, "number of hashes")
    hashes = [_base64(line) for line in lines]
    _formed(all(len(item) == 32 for item in hashes), "size of a hash")
    parse_checkpoint(parse_note(signed_root)[0])
    return index, hashes, signed_root, extra


def _public_line(name: str, kind: int, seed: bytes) -> str:
    typed = bytes([kind]) + Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    key_id = sha256(name.encode() + b"\n" + typed).hexdigest()[:8]
    return f"{name}+{key_id}+{b64encode(typed).decode()}"


def check(case: Case) -> None:
    """Check one case."""
    if case["kind"] == "verifier_key":
        key = parse_key(case["line"])
        same("key", (key.name, key.type, key.public.hex()), (case["name"], case["type"], case["public"]))
        return
    if case["kind"] == "signing_key":
        name, seed = case["name"], bytes.fromhex(case["seed"])
        extracted = hmac.digest(bytes(32), seed, "sha256")
        derived = hmac.digest(extracted, b"polstore cosignature v1\n" + name.encode() + b"\1", "sha256")
        same("keys", [_public_line(name, 1, seed), _public_line(name, 4, derived)], case["keys"])
        return
    keys = [parse_key(line) for line in case["keys"]]
    data = bytes.fromhex(case["hex"]) if "hex" in case else case["text"].encode()
    if case["kind"] == "note":
        text, signatures = parse_note(data)
        same("signers", [list(signer) for signer in verify(text, signatures, keys)], case["signers"])
    elif case["kind"] == "signed_root":
        origin, size, root, time = open_root(data, keys)
        stated = (case["origin"], case["size"], case["root"], case["timestamp"])
        same("signed root", (origin, size, root.hex(), time), stated)
    else:
        same("kind", case["kind"], "tlog_proof")
        index, proof, signed_root, _ = parse_proof(data)
        origin, size, root, _ = open_root(signed_root, keys)
        merkle.inclusion(bytes.fromhex(case["leaf"]), index, size, proof, root)
        stated = (case["origin"], case["size"], case["root"], case["index"])
        same("proof", (origin, size, root.hex(), index), stated)
