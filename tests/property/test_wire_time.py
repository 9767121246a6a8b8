"""Policies and witnesses' answers under arbitrary bytes; quorums and bounds against a slow reference."""

from __future__ import annotations

import contextlib
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from polstore.errors import MalformedError, ProofError
from polstore.wire import note, witness
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.keys import KeyKind, SigningKey
from polstore.wire.merkle import EMPTY_ROOT
from polstore.wire.policy import Policy, evidence

LOG = SigningKey("log.example", bytes(range(32)))
WITNESSES = [SigningKey(f"witness.example/{number}", bytes([number]) * 32) for number in range(5)]
KEYS = [key.verifier_key(KeyKind.COSIGNATURE) for key in WITNESSES]
LINES = [f"witness w{number} {key.line()}\n" for number, key in enumerate(KEYS)]
HEAD = sign_root(Checkpoint(LOG.name, 0, EMPTY_ROOT), LOG, 1)
TEXT = note.parse(HEAD).text
SOUND = note.cosign(TEXT, WITNESSES[0], 5).line()

PLAIN = ["log", "witness", "group", "quorum", "none", "any", "all", "1", "2", "w0", "w1", "g", "#", "é", "\x00"]
WORDS = st.sampled_from([*PLAIN, "\n", "\t", " ", *LINES[:2], KEYS[0].line()])


@settings(deadline=None, max_examples=200)
@given(st.lists(WORDS, max_size=20).map(" ".join) | st.text(max_size=40))
def test_any_policy_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(MalformedError):
        policy = Policy.parse(text.encode("utf-8", "replace"))
        policy.met({"w0"})
        evidence(note.parse(HEAD + SOUND.encode()), policy)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for suffix in (b"", b"\nquorum none\n"):
        with contextlib.suppress(MalformedError):
            Policy.parse(data + suffix)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_bounds_are_the_best_that_any_quorum_gives(data: st.DataObject) -> None:
    times = data.draw(st.lists(st.integers(1, 6), max_size=5))
    needed = data.draw(st.integers(1, 5))
    text = "".join(LINES) + f"group g {needed} w0 w1 w2 w3 w4\nquorum g\n"
    lines = "".join(note.cosign(TEXT, key, time).line() for key, time in zip(WITNESSES, times, strict=False))
    found = evidence(note.parse(HEAD + lines.encode()), Policy.parse(text.encode()))
    quorums = list(itertools.combinations(times, needed))
    assert found.quorum_met == bool(quorums)
    assert found.existed_by == min((max(quorum) for quorum in quorums), default=None)
    assert found.not_before == max((min(quorum) for quorum in quorums), default=None)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=60) | st.lists(st.sampled_from([SOUND, "\n", "— ", "w", TEXT]), max_size=5).map("".join))
def test_any_answer_is_merged_soundly_or_refused(answer: bytes | str) -> None:
    body = answer if isinstance(answer, bytes) else answer.encode()
    with contextlib.suppress(ProofError):
        merged, _ = witness.merge(HEAD, witness.parse_signatures(TEXT, body), KEYS[:1])
        assert merged == HEAD + SOUND.encode()


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=30))
def test_any_size_is_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(MalformedError):
        assert b"%d\n" % witness.parse_size(body) == body
