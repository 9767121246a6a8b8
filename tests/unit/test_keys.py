"""Verifier keys and signing keys: strict lines, no weak public keys, a second key for cosignatures."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from polstore.errors import MalformedError
from polstore.wire.keys import (
    MAX_KEY_NAME,
    MAX_KEYS,
    KeyKind,
    SigningKey,
    VerifierKey,
    check_key_name,
    check_public_key,
    parse_verifier_keys,
)

VECTOR = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
PRIME = 2**255 - 19
KEY = SigningKey("example.org/archive", bytes(range(32)))

# Every encoding of a point whose order divides 8, the list that RFC 8032 implementations publish (ed25519's "torsion").
SMALL_ORDER = {
    "neutral": "0100000000000000000000000000000000000000000000000000000000000000",
    "neutral, sign set": "0100000000000000000000000000000000000000000000000000000000000080",
    "order 2": "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "order 2, sign set": "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "order 4": "0000000000000000000000000000000000000000000000000000000000000000",
    "order 4, sign set": "0000000000000000000000000000000000000000000000000000000000000080",
    "order 8 a": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "order 8 a, sign set": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "order 8 b": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "order 8 b, sign set": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
}


@pytest.mark.parametrize("public", SMALL_ORDER.values(), ids=SMALL_ORDER.keys())
def test_small_order_keys_are_refused(public: str) -> None:
    with pytest.raises(MalformedError, match="large order"):
        check_public_key(bytes.fromhex(public))


@pytest.mark.parametrize("sign", [0, 2**255])
@pytest.mark.parametrize("excess", range(19))
def test_encodings_above_the_prime_are_refused(excess: int, sign: int) -> None:
    with pytest.raises(MalformedError, match="canonical"):
        check_public_key((PRIME + excess + sign).to_bytes(32, "little"))


def test_half_of_all_values_are_no_points() -> None:
    refused = 0
    for number in range(200):
        candidate = hashlib.sha256(b"%d" % number).digest()
        try:
            check_public_key(candidate)
        except MalformedError:
            refused += 1
    assert 60 < refused < 140


def test_honest_keys_pass() -> None:
    for number in range(100):
        seed = hashlib.sha256(b"%d" % number).digest()
        check_public_key(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())


@pytest.mark.parametrize("size", [0, 31, 33])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(MalformedError, match="size"):
        check_public_key(bytes(size))


def test_vector_of_the_specification() -> None:
    key = VerifierKey.parse(VECTOR)
    assert (key.name, key.kind, key.key_id.hex()) == ("example.com/foo", KeyKind.ED25519, "530d903a")
    assert key.line() == VECTOR


@pytest.mark.parametrize(
    "line",
    [
        "",
        "example.com/foo",
        "example.com/foo+530d903a",
        VECTOR + "=",
        VECTOR + "\n",
        VECTOR + "\r",
        " " + VECTOR,
        VECTOR.replace("530d903a", "530D903A"),
        VECTOR.replace("530d903a", "530d903b"),
        VECTOR.replace("530d903a", "0530d903a"),
        VECTOR.replace("example.com/foo", "example.com/fop"),
        VECTOR.replace("example.com/foo", ""),
        VECTOR.replace("example.com/foo", "example com/foo"),
        VECTOR.replace("+Aek", "+Bek"),
        VECTOR[:-1],
        VECTOR[:-4],
        VECTOR + "AAAA",
        VECTOR.replace("+AekyeR", "+Aek-eR"),
    ],
)
def test_malformed_lines_are_refused(line: str) -> None:
    with pytest.raises(MalformedError):
        VerifierKey.parse(line)


def test_another_kind_is_refused_even_with_its_own_key_id() -> None:
    public = KEY.verifier_keys()[0].public
    key_id = hashlib.sha256(b"n\n\x06" + public).digest()[:4].hex()
    with pytest.raises(MalformedError, match="kind"):
        VerifierKey.parse(f"n+{key_id}+{base64.b64encode(bytes([6]) + public).decode()}")


def test_a_small_order_key_is_refused_in_a_line() -> None:
    typed = b"\x01" + bytes.fromhex(SMALL_ORDER["neutral"])
    key_id = hashlib.sha256(b"n\n" + typed).digest()[:4].hex()
    with pytest.raises(MalformedError, match="large order"):
        VerifierKey.parse(f"n+{key_id}+{base64.b64encode(typed).decode()}")


@pytest.mark.parametrize("name", ["a", "example.org/archive", "ä", "ключ", "x" * MAX_KEY_NAME, "a/b/c", "—"])
def test_key_names(name: str) -> None:
    check_key_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "a+b",
        "a\nb",
        "a\n",
        "a\tb",
        "a\x00",
        "a\x7f",
        "a\x85",
        "a\x9f",
        "a\xa0b",
        "\u2003",
        "a\u2028",
        "\ud800",
        "x" * (MAX_KEY_NAME + 1),
    ],
)
def test_wrong_key_names(name: str) -> None:
    with pytest.raises(MalformedError):
        check_key_name(name)
    with pytest.raises(MalformedError):
        SigningKey(name, bytes(32))


def test_the_cosignature_key_is_derived_with_hkdf() -> None:
    # RFC 5869 by hand: no salt is a salt of zeros, and 32 bytes are one block.
    extracted = hmac.digest(bytes(32), KEY.seed, "sha256")
    info = b"polstore cosignature v1\n" + KEY.name.encode()
    derived = hmac.digest(extracted, info + b"\x01", "sha256")
    public = Ed25519PrivateKey.from_private_bytes(derived).public_key().public_bytes_raw()
    assert KEY.verifier_keys()[1] == VerifierKey(KEY.name, KeyKind.COSIGNATURE, public)


def test_both_keys_and_names_differ() -> None:
    ed25519, cosignature = KEY.verifier_keys()
    assert ed25519.public != cosignature.public
    assert ed25519.key_id != cosignature.key_id
    assert SigningKey("other", KEY.seed).verifier_keys()[1].public != cosignature.public


def test_a_seed_is_not_shown() -> None:
    assert KEY.seed.hex() not in repr(KEY)
    assert repr(KEY.seed) not in repr(KEY)
    assert "seed" not in repr(KEY)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_seeds_have_32_bytes(size: int) -> None:
    with pytest.raises(MalformedError):
        SigningKey("name", bytes(size))


def test_key_file_lines() -> None:
    keys = KEY.verifier_keys()
    text = "".join(f"{key.line()}\n" for key in keys)
    assert parse_verifier_keys(text) == keys
    assert parse_verifier_keys("\n" + text + "\n") == keys


def test_key_file_bounds() -> None:
    lines = [SigningKey("n", bytes([number]) * 32).verifier_keys()[0].line() for number in range(MAX_KEYS + 1)]
    assert len(parse_verifier_keys("\n".join(lines[:MAX_KEYS]))) == MAX_KEYS
    for text in ("", "\n\n", "\n".join(lines), lines[0] + "\n" + lines[0], lines[0] + "\r\n", lines[0] + "\n# comment"):
        with pytest.raises(MalformedError):
            parse_verifier_keys(text)
