"""Signed notes: the specification's vector, strict parsing, and C2SP's rules of verification."""

from __future__ import annotations

import base64

import pytest

from polstore.errors import MalformedError, SignatureError, UsageError
from polstore.wire import note
from polstore.wire.keys import KeyKind, SigningKey, VerifierKey
from polstore.wire.note import Note, Signature

VECTOR_KEY = VerifierKey.parse("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")
VECTOR = (
    "This is an example message.\n\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()
KEY = SigningKey("example.org/archive", bytes(range(32)))
OTHER = SigningKey("example.org/other", bytes(32))
TEXT = "a text\nof two lines\n"
TIME = 1_700_000_000


def signed(*signatures: Signature, text: str = TEXT) -> Note:
    return note.parse(Note(text, signatures).encode())


def test_vector_of_the_specification() -> None:
    parsed = note.parse(VECTOR)
    assert parsed.text == "This is an example message.\n"
    assert parsed.encode() == VECTOR
    (verified,) = note.verify(parsed, [VECTOR_KEY])
    assert (verified.key, verified.timestamp) == (VECTOR_KEY, None)


def test_sign_and_cosign() -> None:
    both = signed(note.sign(TEXT, KEY), note.cosign(TEXT, KEY, TIME))
    verified = note.verify(both, KEY.verifier_keys())
    assert [(item.key, item.timestamp) for item in verified] == [
        (KEY.verifier_keys()[0], None),
        (KEY.verifier_keys()[1], TIME),
    ]


def test_the_signed_bytes_of_a_cosignature() -> None:
    signature = note.cosign(TEXT, KEY, TIME)
    message = f"cosignature/v1\ntime {TIME}\n{TEXT}".encode()
    assert signature.blob == TIME.to_bytes(8, "big") + KEY.private_key(KeyKind.COSIGNATURE).sign(message)


def test_the_text_may_hold_empty_lines() -> None:
    text = "\nfirst\n\n— looks like a signature\n\nlast\n"
    parsed = signed(note.sign(text, KEY), text=text)
    assert parsed.text == text
    assert note.verify(parsed, KEY.verifier_keys())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\n\n",
        b"text\n",
        b"text\n\n",
        VECTOR[:-1],
        VECTOR + b"\n",
        VECTOR + b"\n\n",
        VECTOR + b"junk\n",
        VECTOR.replace(b"\n", b"\r\n"),
        VECTOR.replace(b" is", b"\tis"),
        VECTOR.replace(b" is", b"\x00is"),
        VECTOR.replace(b" is", b"\x1bis"),
        VECTOR.replace(b" is", b"\xffis"),
        VECTOR.replace(b" is", b"\xed\xa0\x80is"),
        VECTOR.replace(b" is", b"\xc0\xafis"),
        VECTOR.replace(b"\n\n", b"\n"),
        VECTOR.replace(b"\n\n", b"\njunk\n\njunk\n"),
        VECTOR.replace("—".encode(), b"-"),
        VECTOR.replace("— ".encode(), "—".encode()),
        VECTOR.replace(b"foo ", b"foo  "),
        VECTOR.replace(b"foo ", b"f+o "),
        VECTOR.replace(b"foo ", "f\u2003o ".encode()),
        VECTOR.replace(b"example.com/foo ", b" "),
        VECTOR.replace(b"example.com/foo ", b""),
        VECTOR.replace(b"aQM=", b"aQM"),
        VECTOR.replace(b"aQM=", b"aQM=="),
        VECTOR.replace(b"aQM=", b"aQN="),
        VECTOR.replace(b"aQM=", b"aQ!M="),
        VECTOR.replace(b"aQM=\n", b"aQM= \n"),
        VECTOR.replace(b"Uw2Q", b"Uw-Q"),
        "text\n\n— name UwwA\n".encode(),
        "text\n\n— name \n".encode(),
        "text\n\n— name UwwAAA==\n".encode(),
    ],
)
def test_malformed_notes_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        note.parse(data)


def test_a_note_has_a_size_cap() -> None:
    tail = VECTOR.partition(b"\n")[2]
    assert note.parse(b"a" * (note.MAX_NOTE - len(tail) - 1) + b"\n" + tail)
    with pytest.raises(MalformedError, match="too long"):
        note.parse(b"a" * (note.MAX_NOTE - len(tail)) + b"\n" + tail)


def test_a_hundred_signatures_and_no_more() -> None:
    unknown = Signature("unknown", b"abcd", b"x")
    full = signed(*[unknown] * 99, note.sign(TEXT, KEY))
    assert note.verify(full, KEY.verifier_keys()[:1])
    with pytest.raises(MalformedError, match="signatures"):
        signed(*[unknown] * 100, note.sign(TEXT, KEY))


def test_no_signature_at_all() -> None:
    with pytest.raises(MalformedError):
        signed()


@pytest.mark.parametrize("text", ["", "no newline", "a\tb\n", "a\r\n", "\ud800\n"])
def test_texts_that_cannot_be_written(text: str) -> None:
    with pytest.raises(MalformedError):
        Note(text, (Signature("name", b"abcd", b"x"),)).encode()


@pytest.mark.parametrize(
    "signature",
    [
        Signature("a b", b"abcd", b"x"),
        Signature("a", b"abc", b""),
        Signature("a", b"abc", b"xy"),
        Signature("\ud800", b"abcd", b"x"),
    ],
)
def test_signatures_that_cannot_be_written(signature: Signature) -> None:
    with pytest.raises(MalformedError):
        Note(TEXT, (signature,)).encode()


def test_unknown_keys_are_ignored() -> None:
    garbage = Signature(KEY.name, b"abcd", b"x" * 64)
    parsed = signed(garbage, note.sign(TEXT, OTHER), note.sign(TEXT, KEY), note.cosign(TEXT, KEY, TIME))
    (verified,) = note.verify(parsed, KEY.verifier_keys()[:1])
    assert verified.key == KEY.verifier_keys()[0]


def test_a_key_id_under_another_name_is_unknown() -> None:
    moved = Signature("example.org/elsewhere", KEY.verifier_keys()[0].key_id, note.sign(TEXT, KEY).blob)
    with pytest.raises(SignatureError, match="no signature of a known key"):
        note.verify(signed(moved), KEY.verifier_keys())


def test_no_known_key() -> None:
    with pytest.raises(SignatureError, match="no signature of a known key"):
        note.verify(signed(note.sign(TEXT, OTHER)), KEY.verifier_keys())
    with pytest.raises(SignatureError, match="no signature of a known key"):
        note.verify(signed(note.sign(TEXT, OTHER)), [])


def test_a_known_key_that_fails_rejects_the_whole_note() -> None:
    false = note.sign("another text\n", OTHER)
    keys = [*KEY.verifier_keys(), *OTHER.verifier_keys()]
    with pytest.raises(SignatureError, match="false"):
        note.verify(signed(note.sign(TEXT, KEY), false), keys)
    assert note.verify(signed(note.sign(TEXT, KEY), false), KEY.verifier_keys())


def test_two_signatures_of_one_key() -> None:
    first, second = note.cosign(TEXT, KEY, TIME), note.cosign(TEXT, KEY, TIME + 1)
    with pytest.raises(SignatureError, match="two signatures"):
        note.verify(signed(first, second), KEY.verifier_keys())


@pytest.mark.parametrize("change", ["timestamp", "text", "short", "long", "zero", "huge", "plain"])
def test_false_cosignatures(change: str) -> None:
    sound = note.cosign(TEXT, KEY, TIME)
    private = KEY.private_key(KeyKind.COSIGNATURE)
    blob = {
        "timestamp": (TIME - 1).to_bytes(8, "big") + sound.blob[8:],
        "text": note.cosign("b" + TEXT, KEY, TIME).blob,
        "short": sound.blob[:-1],
        "long": sound.blob + b"\0",
        "zero": bytes(8) + private.sign(f"cosignature/v1\ntime 0\n{TEXT}".encode()),
        "huge": (2**63).to_bytes(8, "big") + private.sign(f"cosignature/v1\ntime {2**63}\n{TEXT}".encode()),
        "plain": sound.blob[:8] + private.sign(TEXT.encode()),
    }[change]
    with pytest.raises(SignatureError):
        note.verify(signed(Signature(sound.name, sound.key_id, blob)), KEY.verifier_keys())


@pytest.mark.parametrize("timestamp", [0, -1, 2**63])
def test_timestamps_out_of_range_are_not_signed(timestamp: int) -> None:
    with pytest.raises(UsageError):
        note.cosign(TEXT, KEY, timestamp)


def test_the_same_key_twice_is_a_wrong_call() -> None:
    with pytest.raises(UsageError):
        note.verify(signed(note.sign(TEXT, KEY)), [KEY.verifier_keys()[0]] * 2)


def test_base64_with_stray_characters() -> None:
    assert base64.b64decode("YWJjZGVm!!Zw==") == b"abcdefg"  # the trap in the standard library
    with pytest.raises(MalformedError, match="base64"):
        note.parse("text\n\n— name YWJjZGVm!!Zw==\n".encode())
