"""Notes, checkpoints, keys and proof files under arbitrary bytes, and a signed root under every small change."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polstore.errors import MalformedError, ProofError, SignatureError
from polstore.wire import merkle, note
from polstore.wire.checkpoint import MAX_SIZE, Checkpoint, open_root, parse_text, run_origin, sign_root
from polstore.wire.keys import SigningKey, VerifierKey, parse_verifier_keys
from polstore.wire.note import Note, Signature
from polstore.wire.tlog_proof import TlogProof

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = SigningKey("example.org/archive", bytes(range(32)))
KEYS = KEY.verifier_keys()
LEAVES = [merkle.leaf_hash(bytes([number])) for number in range(5)]
SIGNED = sign_root(Checkpoint(run_origin(KEY.name, "run"), 5, merkle.root(LEAVES)), KEY, 1_700_000_000)
PROOF = TlogProof(2, merkle.inclusion_proof(2, 5, merkle.nodes_of(LEAVES)), SIGNED, b"extra").encode()

NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters="+"), min_size=1, max_size=9
)
LINES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=[chr(code) for code in range(32)]), max_size=20
)
TEXTS = st.lists(LINES, min_size=1, max_size=5).map(lambda lines: "".join(f"{line}\n" for line in lines))
SIGNATURES = st.builds(Signature, NAMES, st.binary(min_size=4, max_size=4), st.binary(min_size=1, max_size=80))
PIECES = st.sampled_from(
    ["\n", "\n\n", "— ", "name ", "QUJDREVG", "QUJDREVGRw==", "=", "+", "0", "7", "\t", "é", "index 3", "extra "]
)


@settings(deadline=None, max_examples=200)
@given(TEXTS, st.lists(SIGNATURES, min_size=1, max_size=4))
def test_notes_come_back(text: str, signatures: list[Signature]) -> None:
    built = Note(text, tuple(signatures))
    assert note.parse(built.encode()) == built


@settings(deadline=None, max_examples=100)
@given(
    LINES.filter(bool),
    st.integers(1, MAX_SIZE),
    st.binary(min_size=32, max_size=32),
    st.lists(LINES.filter(bool), max_size=3),
)
def test_checkpoints_come_back(origin: str, size: int, root: bytes, extensions: list[str]) -> None:
    built = Checkpoint(origin, size, root, tuple(extensions))
    assert parse_text(built.text()) == built


@settings(deadline=None, max_examples=50)
@given(NAMES, st.binary(min_size=32, max_size=32))
def test_verifier_keys_come_back(name: str, seed: bytes) -> None:
    for key in SigningKey(name, seed).verifier_keys():
        assert VerifierKey.parse(key.line()) == key


def mutated(sound: bytes) -> st.SearchStrategy[bytes]:
    """Bytes with a slice replaced by a piece of the format, or by anything."""
    places = st.integers(0, len(sound))
    filling = st.binary(max_size=8) | st.lists(PIECES, max_size=3).map(lambda pieces: "".join(pieces).encode())
    return st.builds(lambda a, b, new: sound[: min(a, b)] + new + sound[max(a, b) :], places, places, filling)


@settings(deadline=None, max_examples=200)
@given(
    st.binary(max_size=80)
    | mutated(SIGNED)
    | st.lists(PIECES, max_size=12).map(lambda pieces: "".join(pieces).encode())
)
def test_arbitrary_bytes_as_a_note(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        assert note.parse(data).encode() == data
    with contextlib.suppress(MalformedError, SignatureError):
        assert open_root(data, KEYS).note.encode() == data


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80) | mutated(PROOF))
def test_arbitrary_bytes_as_a_proof_file(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        assert TlogProof.parse(data).encode() == data


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60) | mutated(KEYS[0].line().encode()).map(lambda data: data.decode("utf-8", "replace")))
def test_arbitrary_text_as_a_key_or_checkpoint(text: str) -> None:
    with contextlib.suppress(MalformedError):
        assert VerifierKey.parse(text).line() == text
    with contextlib.suppress(MalformedError):
        assert parse_verifier_keys(text)
    with contextlib.suppress(MalformedError):
        assert parse_text(text).text() == text


def changes(sound: bytes) -> Iterator[bytes]:
    """Every flipped bit, every removed byte, every doubled byte, and the format's own bytes put in everywhere."""
    for at in range(len(sound)):
        yield sound[:at] + sound[at + 1 :]
        yield sound[:at] + sound[at : at + 1] + sound[at:]
        for bit in range(8):
            yield sound[:at] + bytes([sound[at] ^ 1 << bit]) + sound[at + 1 :]
        yield sound[:at]
    for at in range(len(sound) + 1):
        for byte in b"\0\t\n\r 0+=A/\x7f\x80\xff":
            yield sound[:at] + bytes([byte]) + sound[at:]


def test_every_small_change_of_a_signed_root_is_rejected() -> None:
    assert open_root(SIGNED, KEYS)
    count = 0
    for changed in changes(SIGNED):
        assert changed != SIGNED
        with pytest.raises((MalformedError, SignatureError)):
            open_root(changed, KEYS)
        count += 1
    assert count > 20 * len(SIGNED)


def test_every_other_value_of_every_byte_of_the_text_is_rejected() -> None:
    for at in range(SIGNED.index(b"\n\n")):
        for value in range(256):
            if value != SIGNED[at]:
                with pytest.raises((MalformedError, SignatureError)):
                    open_root(SIGNED[:at] + bytes([value]) + SIGNED[at + 1 :], KEYS)


def test_every_small_change_of_a_proof_file_is_rejected_or_leaves_out_what_is_proven() -> None:
    # The extra line is not authenticated, so a change of it may pass; then all the rest is as it was.
    sound = TlogProof.parse(PROOF)
    for changed in changes(PROOF):
        try:
            parsed = TlogProof.parse(changed)
            parsed.verify(LEAVES[2], KEYS)
        except ProofError:
            continue
        assert (parsed.index, parsed.proof, parsed.signed_root) == (sound.index, sound.proof, sound.signed_root)
