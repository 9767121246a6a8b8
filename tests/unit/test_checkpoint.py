"""Checkpoints and signed roots: one spelling only, and every given key must have signed."""

from __future__ import annotations

import base64

import pytest

from polstore.errors import MalformedError, MerkleError, SignatureError, UsageError
from polstore.wire import merkle, note
from polstore.wire.checkpoint import MAX_SIZE, Checkpoint, open_root, parse_text, run_origin, sign_root
from polstore.wire.keys import SigningKey
from polstore.wire.tlog_proof import HEADER, TlogProof

KEY = SigningKey("example.org/archive", bytes(range(32)))
OTHER = SigningKey("example.org/other", bytes(32))
TIME = 1_700_000_000
LEAVES = [merkle.leaf_hash(b"%d" % number) for number in range(7)]
ROOT = merkle.root(LEAVES)
CHECKPOINT = Checkpoint(run_origin(KEY.name, "mnist-1"), 7, ROOT)
SIGNED = sign_root(CHECKPOINT, KEY, TIME)
B64 = base64.b64encode(ROOT).decode()
EMPTY = base64.b64encode(merkle.EMPTY_ROOT).decode()


def test_text() -> None:
    text = f"example.org/archive/mnist-1\n7\n{B64}\n"
    assert CHECKPOINT.text() == text
    assert parse_text(text) == CHECKPOINT


@pytest.mark.parametrize("size", [1, 9, 10, 70_000, MAX_SIZE])
def test_sizes(size: int) -> None:
    assert parse_text(f"o\n{size}\n{B64}\n").size == size


def test_extensions_are_kept() -> None:
    text = f"o\n7\n{B64}\nfirst\nsecond line\n"
    assert parse_text(text).extensions == ("first", "second line")
    assert parse_text(text).text() == text


def test_the_empty_tree() -> None:
    assert parse_text(f"o\n0\n{EMPTY}\n").size == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "o\n",
        "o\n7\n",
        f"o\n7\n{B64}",
        f"o\n7\n{B64}\n\n",
        f"o\n7\n{B64}\n\nextension\n",
        f"\n7\n{B64}\n",
        f"o\n\n7\n{B64}\n",
        f"o\r\n7\r\n{B64}\r\n",
        f"o\tp\n7\n{B64}\n",
        f"o\n+7\n{B64}\n",
        f"o\n-7\n{B64}\n",
        f"o\n07\n{B64}\n",
        f"o\n+070_000\n{B64}\n",
        f"o\n70_000\n{B64}\n",
        f"o\n 7\n{B64}\n",
        f"o\n7 \n{B64}\n",
        f"o\n7.0\n{B64}\n",
        f"o\n0x7\n{B64}\n",
        f"o\n\N{ARABIC-INDIC DIGIT SEVEN}\n{B64}\n",
        f"o\n{MAX_SIZE + 1}\n{B64}\n",
        f"o\n{'9' * 5000}\n{B64}\n",
        f"o\n0\n{B64}\n",
        f"o\n00\n{EMPTY}\n",
        f"o\n7\n{B64[:-1]}\n",
        f"o\n7\n{B64}=\n",
        f"o\n7\n {B64}\n",
        f"o\n7\n{base64.b64encode(ROOT[:31]).decode()}\n",
        f"o\n7\n{base64.b64encode(ROOT + b'x').decode()}\n",
        f"o\n7\n{B64[:-2]}{chr(ord(B64[-2]) + 1)}=\n",
        f"{'o' * 1025}\n7\n{B64}\n",
        f"o\ud800\n7\n{B64}\n",
    ],
)
def test_malformed_texts_are_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_text(text)


def test_values_that_cannot_be_written() -> None:
    for arguments in (("", 7, ROOT), ("o\np", 7, ROOT), ("o", -1, ROOT), ("o", 7, ROOT[:31]), ("o", 7, ROOT, ("",))):
        with pytest.raises(MalformedError):
            Checkpoint(*arguments)


def test_open() -> None:
    opened = open_root(SIGNED, KEY.verifier_keys())
    assert opened.checkpoint == CHECKPOINT
    assert opened.keys == KEY.verifier_keys()
    assert opened.timestamp == TIME
    assert opened.note.encode() == SIGNED


def test_the_first_line_signs_and_the_second_states_the_time() -> None:
    first, second = note.parse(SIGNED).signatures
    assert (first.key_id, len(first.blob)) == (KEY.verifier_keys()[0].key_id, 64)
    assert (second.key_id, len(second.blob)) == (KEY.verifier_keys()[1].key_id, 72)


def test_without_the_cosignature_key_there_is_no_time() -> None:
    opened = open_root(SIGNED, KEY.verifier_keys()[:1])
    assert (opened.timestamp, opened.keys) == (None, KEY.verifier_keys()[:1])


@pytest.mark.parametrize("kept", [0, 1])
def test_every_given_key_must_have_signed(kept: int) -> None:
    parsed = note.parse(SIGNED)
    one = note.Note(parsed.text, (parsed.signatures[kept],)).encode()
    with pytest.raises(SignatureError, match="has not signed") as caught:
        open_root(one, KEY.verifier_keys())
    assert KEY.verifier_keys()[1 - kept].line() in str(caught.value)
    assert open_root(one, [KEY.verifier_keys()[kept]])


def test_a_note_that_is_no_checkpoint() -> None:
    text = "just a text\n"
    with pytest.raises(MalformedError):
        open_root(note.Note(text, (note.sign(text, KEY),)).encode(), KEY.verifier_keys()[:1])


@pytest.mark.parametrize(
    "origin", ["example.org", "example.org/archived", "example.org/archive/", "example.org/other/x"]
)
def test_an_origin_under_another_name(origin: str) -> None:
    foreign = Checkpoint(origin, 7, ROOT)
    with pytest.raises(UsageError, match="origin"):
        sign_root(foreign, KEY, TIME)
    text = foreign.text()
    data = note.Note(text, (note.sign(text, KEY), note.cosign(text, KEY, TIME))).encode()
    with pytest.raises(SignatureError, match="origin"):
        open_root(data, KEY.verifier_keys())


def test_the_bare_key_name_is_an_origin_too() -> None:
    assert open_root(sign_root(Checkpoint(KEY.name, 7, ROOT), KEY, TIME), KEY.verifier_keys())


def test_another_key_of_the_same_name() -> None:
    twin = SigningKey(KEY.name, bytes(32))
    with pytest.raises(SignatureError, match="no signature of a known key"):
        open_root(SIGNED, twin.verifier_keys())


def test_no_key_is_a_wrong_call() -> None:
    with pytest.raises(UsageError):
        open_root(SIGNED, [])


@pytest.mark.parametrize("timestamp", [0, 2**63])
def test_a_timestamp_out_of_range(timestamp: int) -> None:
    with pytest.raises(UsageError):
        sign_root(CHECKPOINT, KEY, timestamp)


# Inclusion proof files

NODE = merkle.nodes_of(LEAVES)
PROOF = TlogProof(3, merkle.inclusion_proof(3, 7, NODE), SIGNED)
FILE = PROOF.encode()


@pytest.mark.parametrize("extra", [None, b"x", bytes(range(256))])
def test_proof_files_come_back(extra: bytes | None) -> None:
    proof = TlogProof(3, PROOF.proof, SIGNED, extra)
    assert TlogProof.parse(proof.encode()) == proof
    assert proof.verify(LEAVES[3], KEY.verifier_keys()).checkpoint == CHECKPOINT


def test_the_layout_of_a_proof_file() -> None:
    hashes = "".join(base64.b64encode(item).decode() + "\n" for item in PROOF.proof)
    assert f"{HEADER}\nindex 3\n{hashes}\n".encode() + SIGNED == FILE


@pytest.mark.parametrize("index", [0, 2, 4, 6])
def test_a_proof_file_binds_its_leaf(index: int) -> None:
    with pytest.raises(MerkleError):
        PROOF.verify(LEAVES[index], KEY.verifier_keys())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        FILE[1:],
        FILE[:-1],
        FILE.replace(b"@v1", b"@v2"),
        FILE.replace(b"index 3\n", b""),
        FILE.replace(b"index 3", b"index 03"),
        FILE.replace(b"index 3", b"index -3"),
        FILE.replace(b"index 3", b"index 3\nextra QQ=="),
        FILE.replace(b"index 3", b"extra \nindex 3"),
        FILE.replace(b"index 3", b"extra QR==\nindex 3"),
        FILE.replace(b"index 3", b"extra QQ==\nextra QQ==\nindex 3"),
        FILE.replace(b"index 3", b"index 3\nindex 3"),
        FILE.replace(b"index 3", b"index 3\nQQ=="),
        FILE.replace(b"index 3", b"index 3\n\xff"),
        FILE.replace(b"index 3\n", b"index 3\n" + base64.b64encode(ROOT) + b"\n", 1) * 2,
        FILE.replace(b"index 3\n", b"index 3\n" + (base64.b64encode(ROOT) + b"\n") * 46),
        FILE.replace(b"\n", b"\r\n"),
        b"\n".join(FILE.split(b"\n")[:-4]),
    ],
)
def test_malformed_proof_files_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        TlogProof.parse(data)


def test_proof_files_that_cannot_be_written() -> None:
    for proof in (
        TlogProof(-1, (), SIGNED),
        TlogProof(0, (b"x",), SIGNED),
        TlogProof(0, (), b""),
        TlogProof(0, (), SIGNED, b""),
    ):
        with pytest.raises(MalformedError):
            proof.encode()


# Several keys: a rotation.

SUCCESSOR = SigningKey(KEY.name, bytes(reversed(range(32))))


def test_a_rotation_signs_with_both_keys() -> None:
    rotated = sign_root(CHECKPOINT, KEY, TIME, SUCCESSOR)
    assert rotated.startswith(SIGNED)
    for keys in (KEY.verifier_keys(), SUCCESSOR.verifier_keys(), (*KEY.verifier_keys(), *SUCCESSOR.verifier_keys())):
        assert open_root(rotated, keys).keys == tuple(keys)
    with pytest.raises(UsageError, match="each key once"):
        sign_root(CHECKPOINT, KEY, TIME, KEY)
    with pytest.raises(UsageError, match="origin to sign"):
        sign_root(CHECKPOINT, KEY, TIME, OTHER)


def test_any_of_several_keys() -> None:
    old, new, other = (key.verifier_keys()[0] for key in (KEY, SUCCESSOR, OTHER))
    cosignature = KEY.verifier_keys()[1]
    assert open_root(SIGNED, (), any_of=[new, old, other]).keys == (old,)
    assert open_root(SIGNED, [cosignature], any_of=[old]).keys == (old, cosignature)
    assert open_root(SIGNED, [old], any_of=[old]).keys == (old,)
    with pytest.raises(SignatureError, match="no signature of a known key"):
        open_root(SIGNED, (), any_of=[new])
    with pytest.raises(SignatureError, match="none of these keys has signed"):
        open_root(SIGNED, [cosignature], any_of=[new])
    with pytest.raises(SignatureError, match="origin"):
        open_root(SIGNED, [old], any_of=[other])
    with pytest.raises(SignatureError, match="a key has not signed"):
        open_root(SIGNED, [new], any_of=[old])
    with pytest.raises(UsageError, match="without a key"):
        open_root(SIGNED, ())
