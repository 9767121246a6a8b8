"""A web server that keeps to no rule of HTTP, or lacks what it should have: the caller hears of it; no verdict."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from polstore.errors import CallerError, MissingError
from polverify import fetch
from polverify.verdict import Decision
from tests.static_server import Handler, serving

if TYPE_CHECKING:
    from pathlib import Path
from tests.attacks.served import ENTRY_TILE, KINDS, OPENED, Archive, ask, only, rejected, served


def test_an_honest_server_is_accepted(archive: Archive) -> None:
    verdict = served(archive)
    assert verdict.decision is Decision.ACCEPT, verdict.reason
    assert [segment.index for segment in verdict.segments] == OPENED


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_there_is_the_caller_s_to_find(archive: Archive, kind: str) -> None:
    with pytest.raises(MissingError, match="404"):
        served(archive, only(archive.names()[kind], lambda handler: handler.answer(b"", 404)))


@pytest.mark.parametrize("status", [100, 201, 204, 206, 304, 401, 429, 500, 503])
def test_an_answer_that_is_none(archive: Archive, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PATIENCE", 0.5)
    hook = only(ENTRY_TILE, lambda handler: handler.answer(handler.file(), status))
    with pytest.raises(CallerError, match=r"cannot be fetched|is elsewhere"):
        served(archive, hook)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(archive: Archive, status: int, tmp_path: Path) -> None:
    with serving(archive.directory) as elsewhere:
        for location in (elsewhere.address, f"file://{archive.directory}", ""):
            hook = only(ENTRY_TILE, lambda h, to=location: h.answer(b"", status, Location=f"{to}/{ENTRY_TILE}"))  # type: ignore[misc]
            with pytest.raises(CallerError, match="is elsewhere"):
                served(archive, hook)
        assert elsewhere.asked == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_is_cut_short_on_the_way(archive: Archive, kind: str) -> None:
    def answer(handler: Handler) -> bool:
        data = handler.file()
        return handler.answer(data[:-1], length=len(data))

    with pytest.raises(CallerError, match="cannot be fetched"):
        served(archive, only(archive.names()[kind], answer))


@pytest.mark.parametrize("kind", KINDS)
def test_an_endless_answer_is_left_at_its_limit(archive: Archive, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is that of the file's kind: a hostile length in the head is not believed, nor is none at all."""
    for name in ("MAX_STEPS_BLOB", "MAX_HYPERPARAMETERS", "MAX_STORED_SNAPSHOT"):
        monkeypatch.setattr(f"polverify.remote.{name}", 1 << 20)  # the real ones take a while to be sent
    monkeypatch.setattr("polverify.remote.MAX_ENTRY", 4096)
    sent = 0

    def answer(handler: Handler) -> bool:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        try:
            while sent < 1 << 26:
                handler.wfile.write(bytes(1 << 16))
                sent += 1 << 16
        finally:
            handler.close_connection = True
        return True

    verdict = served(archive, only(archive.names()[kind], answer))
    assert "too long" in rejected(verdict)
    assert verdict.claim["bytes_fetched"] < 3 << 20
    assert sent < 1 << 26


@pytest.mark.parametrize("length", ["0", "1", "99999999999999999999", "-5", "x", "1_000"])
def test_a_false_length_is_not_believed(archive: Archive, length: str) -> None:
    def answer(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", length)
        handler.end_headers()
        handler.wfile.write(handler.file())
        handler.hang_up()
        return True

    hook = only(ENTRY_TILE, answer)
    try:
        verdict = served(archive, hook)
    except CallerError as error:
        assert "cannot be fetched" in str(error)  # noqa: PT017
    else:  # a length that is none is ignored; one that is too short cuts
        assert verdict.decision is (Decision.REJECT if length in ("0", "1", "1_000") else Decision.ACCEPT), (
            verdict.reason
        )


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\nabc",
        b"zz\r\nabc\r\n0\r\n\r\n",
        b"ffffffffffffffffffff\r\nabc",
        b"-5\r\nabc\r\n0\r\n\r\n",
        b"3;" + b"x" * 70_000 + b"\r\nabc\r\n0\r\n\r\n",
        b"",
    ],
)
def test_chunks_that_are_none(archive: Archive, body: bytes) -> None:
    def answer(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(body)
        handler.hang_up()
        return True

    with pytest.raises(CallerError, match="cannot be fetched"):
        served(archive, only(ENTRY_TILE, answer))


def test_honest_chunks_are_read(archive: Archive) -> None:
    def answer(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        data = handler.file()
        for start in range(0, len(data), 100):
            piece = data[start : start + 100]
            handler.wfile.write(b"%x;note\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\nTrailer: 1\r\n\r\n")
        return True

    verdict = served(archive, only(ENTRY_TILE, answer))
    assert verdict.decision is Decision.ACCEPT, verdict.reason


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip", "GZIP"])
def test_nothing_is_decompressed(archive: Archive, encoding: str) -> None:
    bomb = gzip.compress(bytes(1 << 24))
    hook = only(ENTRY_TILE, lambda handler: handler.answer(bomb, Content_Encoding=encoding))
    with pytest.raises(CallerError, match="comes encoded"):
        served(archive, hook)


def test_a_bomb_that_does_not_say_so_is_just_wrong(archive: Archive) -> None:
    bomb = gzip.compress(bytes(1 << 24))
    for kind in KINDS:
        rejected(served(archive, only(archive.names()[kind], lambda handler: handler.answer(bomb))))


@pytest.mark.parametrize("part", ["silence", "head", "continue", "headers", "body", "chunks", "trailers"])
def test_a_server_that_drips_is_given_up(archive: Archive, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes before the socket's own timeout, and the answer never ends."""
    monkeypatch.setattr(fetch, "PATIENCE", 0.4)
    monkeypatch.setattr(fetch, "MIN_RATE", 1e6)
    start = {
        "silence": b"",
        "head": b"HTTP/1.1 200 OK\r\n",
        "continue": b"",
        "headers": b"HTTP/1.1 200 OK\r\nX: ",
        "body": b"HTTP/1.1 200 OK\r\n\r\n",
        "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
    }
    drip = {"silence": b"", "continue": b"HTTP/1.1 100 Continue\r\n\r\n", "trailers": b"X: y\r\n"}.get(part, b"x")
    ended = False

    def answer(handler: Handler) -> bool:
        nonlocal ended
        handler.connection.settimeout(0.05)
        try:
            handler.wfile.write(start[part])
            for _ in range(400):
                handler.wfile.write(drip)
                handler.wfile.flush()
                time.sleep(0.05)
        finally:
            ended = True
            handler.close_connection = True
        return True

    with pytest.raises(CallerError, match=r"timed out|too slow"):
        served(archive, only(ENTRY_TILE, answer))


def test_whoever_stops_does_not_wait_for_a_server_that_drips(archive: Archive) -> None:
    sent, begun, ended = 0, threading.Event(), threading.Event()

    def answer(handler: Handler) -> bool:
        nonlocal sent
        begun.set()
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            for _ in range(1000):  # 20 seconds, within its patience
                handler.wfile.write(b"x")
                sent += 1
                time.sleep(0.02)
        finally:
            ended.set()
            handler.close_connection = True
        return True

    with serving(archive.directory, only("drips", answer)) as server:
        source = fetch.open_source(server.address)
        files = fetch.get_all(source, [(ENTRY_TILE, 1 << 20), ("drips", 1 << 20)])
        assert next(files) == (archive.directory / ENTRY_TILE).read_bytes()
        assert begun.wait(10)
        files.close()  # type: ignore[attr-defined]  # a generator
        assert ended.wait(10)
    assert sent < 1000


@pytest.mark.parametrize(
    "greeting", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01\x00\x02\x02", b"HTTP/1.1\r\n\r\n"]
)
def test_a_server_of_another_protocol(archive: Archive, greeting: bytes) -> None:
    def answer(handler: Handler) -> bool:
        handler.wfile.write(greeting)
        handler.hang_up()
        return True

    with pytest.raises(CallerError, match="cannot be fetched"):
        served(archive, answer)


def test_a_kept_connection_that_the_server_closes_is_opened_anew(archive: Archive) -> None:
    def answer(handler: Handler) -> bool:
        handler.answer(handler.file())  # promises to stay
        handler.hang_up()
        return True

    verdict = served(archive, answer)
    assert verdict.decision is Decision.ACCEPT, verdict.reason


def test_https_wants_a_certificate(archive: Archive) -> None:
    with serving(archive.directory) as server, pytest.raises(CallerError, match="cannot be fetched"):
        ask(archive, server.address.replace("http:", "https:"))


def test_nobody_listens(archive: Archive) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        with pytest.raises(CallerError, match="refused"):
            ask(archive, f"http://127.0.0.1:{reserved.getsockname()[1]}")


def test_a_budget_for_all_files_together(archive: Archive) -> None:
    whole = ask(archive, str(archive.directory)).claim["bytes_fetched"]
    assert ask(archive, str(archive.directory), max_bytes=whole).decision is Decision.ACCEPT
    with pytest.raises(CallerError, match="too much to fetch"):
        ask(archive, str(archive.directory), max_bytes=whole - 1)
    with pytest.raises(CallerError, match="too much to fetch"):
        served(archive, max_bytes=whole - 1)
