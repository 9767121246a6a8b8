"""A static archive is served by whoever likes: what he sends never passes for the run, and never harms the verifier.

Content that contradicts a hash is the proof's fault and rejects it; an answer that is none is nobody's proof, and the
caller hears so.
"""

from __future__ import annotations

import gzip
import socket
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from polstore.errors import CallerError, MissingError, UsageError
from polstore.publish import publish
from polstore.reader import open_archive
from polstore.wire import canonical, merkle
from polstore.wire.archive_files import blob_name, decode_salts, encode_salts, snapshot_name
from polstore.wire.challenge import Challenge
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.manifest import Manifest
from polstore.wire.segment import SegmentRecord
from polstore.wire.tiles import ENTRIES, Tile, decode_entries, encode_entries
from polverify import fetch
from polverify.remote import verify_archive
from polverify.verdict import Decision, Verdict
from polverify.verify import Request
from tests.attacks import forge
from tests.attacks.conftest import recorded
from tests.static_server import Handler, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = forge.SEGMENTS + 1
ENTRY_TILE = "run/run/" + Tile(ENTRIES, 0, SIZE).path()
OPENED = [1]


@dataclass(frozen=True)
class Archive:
    """The honest archive, and the names of a few of its files that segment 1 needs."""

    directory: Path
    root: bytes
    leaves: tuple[bytes, ...]

    @property
    def record(self) -> SegmentRecord:
        return SegmentRecord.parse(self.leaves[2])

    def names(self) -> dict[str, str]:
        """One file of each kind that is read."""
        frames = [
            name
            for name in (str(path.relative_to(self.directory)) for path in (self.directory / "blob").rglob("*"))
            if name.count("/") == 2 and name not in self.others()
        ]
        return {
            "entries": ENTRY_TILE,
            "salts": "run/run/salts/1",
            "dataset": "run/run/dataset/" + Tile(0, 0, 64).path(),
            "snapshot": snapshot_name(self.record.end_state),
            "steps": blob_name(self.record.steps),
            "hyperparameters": blob_name(Manifest.parse(self.leaves[0]).optimizer.hyperparameters),
            "frame": sorted(frames, key=lambda name: -(self.directory / name).stat().st_size)[0],
        }

    def others(self) -> set[str]:
        records = [SegmentRecord.parse(leaf) for leaf in self.leaves[1:]]
        return {blob_name(record.steps) for record in records} | {
            blob_name(Manifest.parse(self.leaves[0]).optimizer.hyperparameters)
        }


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    path = tmp_path_factory.mktemp("archive")
    evidence = recorded(path / "st")
    with open_archive(path / "st") as opened:
        publish(opened, path / "www", [forge.RUN], lambda *_: None)
    found = Archive(path / "www", evidence.root, evidence.bundle.leaves)
    assert all((found.directory / name).is_file() for name in found.names().values())
    return found


KINDS = ("entries", "salts", "dataset", "snapshot", "steps", "hyperparameters", "frame")


def ask(archive: Archive, location: str, **options: Any) -> Verdict:
    root, keys = options.pop("root", archive.root), options.pop("keys", forge.KEY.verifier_keys())
    request = Request(root, keys, location, forge.RECIPE, options.pop("challenge", None))
    return verify_archive(request, None if request.challenge else options.pop("segments", OPENED), **options)


def served(archive: Archive, hook: Callable[[Handler], bool] | None = None, **options: Any) -> Verdict:
    with serving(archive.directory, hook) as server:
        return ask(archive, server.address, **options)


def only(name: str, answer: Callable[[Handler], bool]) -> Callable[[Handler], bool]:
    """A hook that answers for one file and leaves the others alone."""
    return lambda handler: handler.path == f"/{name}" and answer(handler)


def rejected(verdict: Verdict) -> str:
    assert verdict.decision is Decision.REJECT, (verdict.decision, verdict.reason)
    assert verdict.reason.startswith("check 0 (well-formed bundle): "), verdict.reason
    assert verdict.claim["bytes_fetched"] > 0
    return verdict.reason


def test_an_honest_server_is_accepted(archive: Archive) -> None:
    verdict = served(archive)
    assert verdict.decision is Decision.ACCEPT, verdict.reason
    assert [segment.index for segment in verdict.segments] == OPENED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["bit", "cut", "longer", "empty", "page"])
def test_wrong_content_is_the_proof_s_fault(archive: Archive, kind: str, change: str) -> None:
    def answer(handler: Handler) -> bool:
        data = handler.file()
        changed = {
            "bit": bytes([data[0] ^ 1]) + data[1:],
            "cut": data[:-1],
            "longer": data + b"\0",
            "empty": b"",
            "page": b"<html><body>Not here. Try our new site!</body></html>",
        }
        return handler.answer(changed[change])

    rejected(served(archive, only(archive.names()[kind], answer)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_in_place_of_another_of_its_kind(archive: Archive, kind: str) -> None:
    """Each is sound in itself, but not what was asked for."""
    records = [SegmentRecord.parse(leaf) for leaf in archive.leaves[1:]]
    manifest = Manifest.parse(archive.leaves[0])
    other = {
        "entries": encode_entries([*archive.leaves[:2], archive.leaves[3], archive.leaves[2], *archive.leaves[4:]]),
        "salts": (archive.directory / "run/run/salts/2").read_bytes(),
        "dataset": bytes(32 * 64),
        "snapshot": (archive.directory / snapshot_name(records[3].end_state)).read_bytes(),
        "steps": (archive.directory / blob_name(records[3].steps)).read_bytes(),
        "hyperparameters": (archive.directory / blob_name(records[3].steps)).read_bytes(),
        "frame": (archive.directory / blob_name(manifest.optimizer.hyperparameters)).read_bytes(),
    }
    rejected(served(archive, only(archive.names()[kind], lambda handler: handler.answer(other[kind]))))


def test_salts_that_are_not_the_committed_ones_fail_where_the_data_is_checked(archive: Archive) -> None:
    def answer(handler: Handler) -> bool:
        salts = decode_salts(handler.file())
        return handler.answer(encode_salts([(index, bytes(32)) for index, _ in salts]))

    verdict = served(archive, only("run/run/salts/1", answer))
    assert verdict.decision is Decision.REJECT
    assert verdict.reason.startswith("check 9 (data)"), verdict.reason


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


@pytest.mark.parametrize("run", ["..", ".", "../../etc", "a/b", "a%2fb", "a b", "-", "a?b", "a#b", "x" * 65, "a\\b"])
def test_a_run_s_name_leads_to_no_other_folder(archive: Archive, run: str) -> None:
    """The signer chose the name; it is part of every address."""
    root = sign_root(Checkpoint(f"{forge.KEY.name}/{run}", SIZE, bytes(32)), forge.KEY, 1)
    with serving(archive.directory) as server:
        verdict = ask(archive, server.address, root=root)
        assert verdict.decision is Decision.REJECT
        assert "name of a run" in verdict.reason
        assert server.asked == []
    verdict = ask(archive, str(archive.directory), root=root)
    assert "name of a run" in verdict.reason


def test_nothing_is_fetched_for_a_root_that_is_not_signed(archive: Archive) -> None:
    with serving(archive.directory) as server:
        verdict = ask(archive, server.address, keys=forge.OTHER_KEY.verifier_keys())
        assert verdict.decision is Decision.REJECT
        assert server.asked == []
        assert verdict.claim["bytes_fetched"] == 0


def test_a_challenge_for_another_root_fetches_nothing(archive: Archive) -> None:
    challenge = Challenge.draw(f"{forge.KEY.name}/run", SIZE, bytes(32), segments=1, random=1, nonce=bytes(32))
    with serving(archive.directory) as server:
        verdict = ask(archive, server.address, challenge=challenge)
        assert "challenge is for another root" in verdict.reason
        assert server.asked == []


def test_a_root_over_more_leaves_than_a_bundle_holds(archive: Archive) -> None:
    root = sign_root(Checkpoint(f"{forge.KEY.name}/run", 2**40, bytes(32)), forge.KEY, 1)
    verdict = ask(archive, str(archive.directory), root=root)
    assert "leaves under the signed root" in verdict.reason


def test_snapshots_that_are_stored_against_each_other_without_end(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every record fits its digest; only who ends the chain is missing."""
    name = snapshot_name(archive.record.end_state)
    fields = list(canonical.decode((archive.directory / name).read_bytes(), limit=1 << 20, what="record"))  # type: ignore[arg-type]
    fields[2] = archive.record.end_state  # stored against itself
    looped = canonical.encode(tuple(fields))
    verdict = served(archive, only(name, lambda handler: handler.answer(looped)))
    assert verdict.decision is Decision.REJECT, verdict.reason
    assert "too many bases" in verdict.reason, verdict.reason


def test_a_budget_for_all_files_together(archive: Archive) -> None:
    whole = ask(archive, str(archive.directory)).claim["bytes_fetched"]
    assert ask(archive, str(archive.directory), max_bytes=whole).decision is Decision.ACCEPT
    with pytest.raises(CallerError, match="too much to fetch"):
        ask(archive, str(archive.directory), max_bytes=whole - 1)
    with pytest.raises(CallerError, match="too much to fetch"):
        served(archive, max_bytes=whole - 1)


@pytest.mark.parametrize("size", [b"", b"12", b"-1\n", b"1_0\n", b"99999999999999999999999\n", b"NaN\n", None])
def test_what_the_archive_says_of_its_size_is_only_a_claim(archive: Archive, size: bytes | None) -> None:
    def answer(handler: Handler) -> bool:
        return handler.answer(b"", 404) if size is None else handler.answer(size)

    verdict = served(archive, only("run/run/size", answer))
    assert verdict.decision is Decision.ACCEPT, verdict.reason
    assert verdict.claim["bytes_in_archive"] is None


def test_a_forged_run_is_caught_from_an_archive_as_from_a_bundle(archive: Archive) -> None:
    """The leaves join up, are signed and served without fault; one state is not what the training gives."""
    changed = list(archive.leaves)
    changed[0], changed[1] = archive.leaves[0], archive.leaves[2]
    root = sign_root(
        Checkpoint(f"{forge.KEY.name}/run", SIZE, merkle.root([merkle.leaf_hash(leaf) for leaf in changed])),
        forge.KEY,
        forge.NOW,
    )
    hook = only(ENTRY_TILE, lambda handler: handler.answer(encode_entries(changed)))
    verdict = served(archive, hook, root=root)
    assert verdict.reason.startswith("check 6 (continuity)"), verdict.reason
    assert len(decode_entries(Tile(ENTRIES, 0, SIZE), encode_entries(changed))) == SIZE


@pytest.mark.parametrize("size", [1, 2**47, 2**48])
def test_a_manifest_that_claims_another_size_of_the_dataset(archive: Archive, size: int) -> None:
    """Sizes that no tile, or no proof, can be of are the proof's fault and nobody's crash."""
    manifest = Manifest.parse(archive.leaves[0])
    changed = [replace(manifest, dataset=replace(manifest.dataset, size=size)).encode(), *archive.leaves[1:]]
    root = merkle.root([merkle.leaf_hash(leaf) for leaf in changed])
    signed = sign_root(Checkpoint(f"{forge.KEY.name}/run", SIZE, root), forge.KEY, forge.NOW)

    def answer(handler: Handler) -> bool:
        if handler.path == f"/{ENTRY_TILE}":
            return handler.answer(encode_entries(changed))
        return "/dataset/" in handler.path and handler.answer(bytes(8192))

    rejected(served(archive, answer, root=signed))


def test_what_to_open_must_be_said_once(archive: Archive) -> None:
    challenge = Challenge.draw(f"{forge.KEY.name}/run", SIZE, bytes(32), segments=1, random=1, nonce=bytes(32))
    request = Request(archive.root, forge.KEY.verifier_keys(), str(archive.directory), forge.RECIPE)
    with pytest.raises(UsageError, match="neither"):
        verify_archive(request)
    with pytest.raises(UsageError, match="both"):
        verify_archive(Request(*(archive.root, request.keys, request.bundle, request.recipe, challenge)), [1])
