"""The witness's client and its bytes, against a server that says whatever a test wants."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from polstore import http
from polstore.cli import time as time_commands
from polstore.errors import (
    CallerError,
    MalformedError,
    MissingError,
    ServiceError,
    SignatureError,
    StaleError,
    UsageError,
)
from polstore.http import post
from polstore.wire import merkle, witness
from polstore.wire import note as notes
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.keys import KeyKind, SigningKey
from polstore.witness import submit, witness_head
from tests.loopback import serving

if TYPE_CHECKING:
    from pathlib import Path

LOG = SigningKey("example.org/archive", bytes(range(32)))
WITNESS = SigningKey("witness.example/w1", bytes(32))
KEY = WITNESS.verifier_key(KeyKind.COSIGNATURE)
HASHES = [merkle.leaf_hash(bytes([leaf])) for leaf in range(7)]
HEAD = sign_root(Checkpoint(LOG.name, 7, merkle.root(HASHES)), LOG, 1_700_000_000)
TEXT = notes.parse(HEAD).text
LINE = notes.cosign(TEXT, WITNESS, 1_700_000_100)


class Ledger:
    """A ledger that notes what is stored."""

    def __init__(self, head: bytes = HEAD) -> None:
        self.kept: list[bytes] = []
        self._head = head

    def head(self) -> bytes:
        return self._head

    def consistency_proof(self, old: int, new: int) -> tuple[bytes, ...]:
        return merkle.consistency_proof(old, new, merkle.nodes_of(HASHES[:new]))

    def put_head(self, note: bytes) -> None:
        self.kept.append(note)


def test_the_request() -> None:
    proof = Ledger().consistency_proof(3, 7)
    lines = witness.request(3, proof, HEAD).split(b"\n")
    assert lines[0] == b"old 3"
    assert lines[1 + len(proof)] == b""
    assert witness.request(3, proof, HEAD).endswith(b"\n\n" + HEAD)
    assert witness.request(0, (), HEAD) == b"old 0\n\n" + HEAD
    for old, wrong in ((-1, ()), (8, ()), (0, proof), (7, proof), (3, [b"x"]), (3, [bytes(32)] * 64)):
        with pytest.raises(UsageError):
            witness.request(old, wrong, HEAD)


def test_a_witness_cosigns() -> None:
    asked: list[tuple[str, bytes]] = []

    def answer(path: str, body: bytes) -> tuple[int, str, bytes]:
        asked.append((path, body))
        if body.startswith(b"old 3\n"):
            stranger = notes.cosign(TEXT, SigningKey("stranger.example", bytes(32)), 5)
            return 200, "text/plain", (stranger.line() + LINE.line()).encode()
        return 409, "text/x.tlog.size", b"3\n"

    ledger = Ledger()
    with serving(answer) as url:
        got = witness_head(ledger, url + "/prefix/", [KEY])
    assert [path for path, _ in asked] == ["/prefix/add-checkpoint"] * 2
    assert ledger.kept == [got.head] == [HEAD + LINE.line().encode()], "the stranger's line is dropped"
    assert [(each.key, each.timestamp) for each in got.found] == [(KEY, 1_700_000_100)]


FORGED = notes.Signature(LINE.name, LINE.key_id, LINE.blob[:-1] + bytes([LINE.blob[-1] ^ 1]))
OTHER_TEXT = notes.cosign(TEXT.replace("7", "8"), WITNESS, 5)
ANSWERS: dict[str, tuple[int, str, bytes] | bytes] = {
    "nothing": (200, "text/plain", b""),
    "no signature": (200, "text/plain", b"fine\n"),
    "false cosignature": (200, "text/plain", FORGED.line().encode()),
    "cosignature of another text": (200, "text/plain", OTHER_TEXT.line().encode()),
    "false beside a sound one": (200, "text/plain", (LINE.line() + FORGED.line()).encode()),
    "stranger": (200, "text/plain", notes.cosign(TEXT, SigningKey("s", bytes(32)), 5).line().encode()),
    "text before the lines": (200, "text/plain", b"more\n\n" + LINE.line().encode()),
    "another note": (200, "text/plain", HEAD),
    "cut line": (200, "text/plain", LINE.line().encode()[:-1]),
    "too long": (200, "text/plain", LINE.line().encode() * 2**10),
    "too many lines": (200, "text/plain", LINE.line().encode() * 101),
    "not UTF-8": (200, "text/plain", b"\xff\n"),
    "400": (400, "text/plain", b"malformed"),
    "403": (403, "text/plain", b""),
    "404": (404, "text/plain", b""),
    "409 of no type": (409, "text/plain", b"3\n"),
    "409 with no number": (409, "text/x.tlog.size", b"three\n"),
    "409 without its end": (409, "text/x.tlog.size", b"3"),
    "409 with a sign": (409, "text/x.tlog.size", b"+3\n"),
    "409 with the same size": (409, "text/x.tlog.size", b"0\n"),
    "409 with more than there is": (409, "text/x.tlog.size", b"8\n"),
    "409 with a giant": (409, "text/x.tlog.size", b"9" * 19 + b"\n"),
    "422": (422, "text/plain", b""),
    "500": (500, "text/html", b"<h1>oops"),
    "201": (201, "text/plain", LINE.line().encode()),
    "redirect": b"HTTP/1.0 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH\r\n",
    "cut body": b"HTTP/1.0 200 OK\r\nContent-Length: 500\r\n\r\n" + LINE.line().encode(),
    "endless head": b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 2000,
    "silence": b"",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_hostile_answers_give_one_error_and_nothing_is_kept(name: str) -> None:
    ledger = Ledger()
    with serving(lambda _path, _body: ANSWERS[name]) as url, pytest.raises(ServiceError) as caught:
        witness_head(ledger, url, [KEY])
    assert url in str(caught.value)
    assert caught.value.exit_code == 4
    assert ledger.kept == []


def test_a_witness_that_changes_its_mind_is_asked_twice_at_most() -> None:
    sizes = iter((3, 4, 5))
    with serving(lambda _path, _body: (409, "text/x.tlog.size", b"%d\n" % next(sizes))) as url:
        with pytest.raises(StaleError) as stale:
            witness_head(Ledger(), url, [KEY])
        assert stale.value.size == 4


def test_merging_keeps_the_earlier_time_of_a_witness() -> None:
    old = notes.cosign(TEXT, WITNESS, 1_600_000_000)
    for first, second in ((old, LINE), (LINE, old)):
        head = HEAD + first.line().encode()
        merged, _ = witness.merge(head, notes.Note(TEXT, (second,)), [KEY])
        assert merged == HEAD + old.line().encode()
    with pytest.raises(SignatureError, match="false cosignature already"):
        witness.merge(HEAD + FORGED.line().encode(), notes.Note(TEXT, (LINE,)), [KEY])


def test_merging_has_limits() -> None:
    crowd = notes.Note(TEXT, tuple(notes.Signature(f"s{n}", bytes(4), b"x") for n in range(100)))
    with pytest.raises(MalformedError, match="number of signatures"):
        witness.merge(crowd.encode(), notes.Note(TEXT, (LINE,)), [KEY])
    for keys in ([], [LOG.verifier_key(KeyKind.ED25519)]):
        with pytest.raises(UsageError):
            witness.merge(HEAD, notes.Note(TEXT, (LINE,)), keys)


@pytest.mark.parametrize(
    "url", ["", "file:///etc/passwd", "ftp://h/x", "http://", "https:///x", "http://h:x/", "http://h/ x", "http://h/\n"]
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="address"):
        submit(url, HEAD, 0, (), [KEY])


def test_nobody_there() -> None:
    with serving(lambda _path, _body: b"") as url:
        pass
    with pytest.raises(ServiceError, match="no answer"):
        submit(url, HEAD, 0, (), [KEY])


def test_an_answer_that_trickles_meets_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 20))
    monkeypatch.setattr(http, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with serving(lambda _path, _body: (200, "text/plain", b"x" * 100)) as url:
        monkeypatch.setattr(http, "CHUNK", 1)
        with pytest.raises(ServiceError, match="within 30 s"):
            post(url, b"", "text/plain", 2**10)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "policy").write_text(f"witness w {KEY.line()}\nquorum w\n")
    (tmp_path / "witness.pub").write_text(f"{KEY.line()}\n{LOG.verifier_keys()[0].line()}\n")
    (tmp_path / "log.pub").write_text(f"{LOG.verifier_keys()[0].line()}\n")
    (tmp_path / "cut").write_text("quorum none")
    with serving(lambda _path, _body: (200, "text/plain", LINE.line().encode())) as url:
        for policy, keys in ((tmp_path / "policy", None), (None, [tmp_path / "witness.pub"])):
            ledger = Ledger()
            time_commands.cosign(ledger, url, policy, keys, as_json=True)
            assert ledger.kept == [HEAD + LINE.line().encode()]
            out, err = capsys.readouterr()
            assert json.loads(out)["cosigned"] == [{"witness": WITNESS.name, "time": 1_700_000_100}]
            assert err == "witnessed by witness.example/w1 at 1700000100\n"
        for policy, keys, error in (
            (None, None, UsageError),
            (None, [tmp_path / "log.pub"], UsageError),
            (tmp_path / "cut", None, CallerError),
            (tmp_path / "none", None, MissingError),
        ):
            ledger = Ledger()
            with pytest.raises(error):
                time_commands.cosign(ledger, url, policy, keys)
            assert ledger.kept == []
