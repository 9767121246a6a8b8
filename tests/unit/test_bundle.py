"""The bundle's index and header: caps that are too large for vectors, and files as polverify reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from polstore.errors import CallerError, MalformedError, MissingError
from polstore.wire import bundle as wire
from polstore.wire.bundle import HEADER_SIZE, MAGIC, Bundle, parse_header
from polverify.bundle_file import BundleFile
from polverify.states import States
from tools.vectors import tiny_run

if TYPE_CHECKING:
    from pathlib import Path

GOOD = tiny_run.bundle_file(tiny_run.bundle(0))
INDEX = tiny_run.bundle(0).head()[HEADER_SIZE:]


def test_header() -> None:
    digest, length = parse_header(GOOD[:HEADER_SIZE])
    assert (length, HEADER_SIZE) == (len(INDEX), 59)
    assert Bundle.parse_index(digest, INDEX) == tiny_run.bundle(0)
    with pytest.raises(MalformedError, match="damaged"):
        Bundle.parse_index(bytes(32), INDEX)


@pytest.mark.parametrize("cut", range(HEADER_SIZE))
def test_a_short_header_is_refused(cut: int) -> None:
    with pytest.raises(MalformedError):
        parse_header(GOOD[:cut])


def test_the_announced_length_is_capped_before_anything_is_read() -> None:
    for length in (wire.MAX_INDEX_BYTES + 1, 2**64 - 1):
        with pytest.raises(MalformedError, match="too long"):
            parse_header(MAGIC + bytes(32) + length.to_bytes(8, "big"))
    assert parse_header(MAGIC + bytes(32) + wire.MAX_INDEX_BYTES.to_bytes(8, "big"))[1] == wire.MAX_INDEX_BYTES


def test_an_index_too_long_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_INDEX_BYTES", len(INDEX))
    assert tiny_run.bundle(0).head().endswith(INDEX)
    monkeypatch.setattr(wire, "MAX_INDEX_BYTES", len(INDEX) - 1)
    with pytest.raises(MalformedError, match="too long"):
        tiny_run.bundle(0).head()


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    for length in range(0, len(GOOD), 7):
        path.write_bytes(GOOD[:length])
        with pytest.raises(MalformedError):
            BundleFile(path)


def test_blobs_are_hashed_whenever_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.write_bytes(GOOD)
    with BundleFile(path) as opened:
        for digest, length in opened.bundle.blobs:
            assert len(opened.blob(digest)) == length
            assert opened.blob(digest) == tiny_run.BLOBS[digest]
        with pytest.raises(MalformedError, match="lacks"):
            opened.blob(bytes(32))
        with path.open("r+b") as file:  # the file changes after it was opened
            file.seek(-1, 2)
            file.write(bytes([GOOD[-1] ^ 1]))
        with pytest.raises(MalformedError, match="damaged"):
            opened.blob(opened.bundle.blobs[-1][0])


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path, tmp_path / "none" / "none"):
        with pytest.raises(MissingError):
            BundleFile(path)
    assert issubclass(MissingError, CallerError)


def test_states_follow_their_bases() -> None:
    bundle = tiny_run.bundle(0, 1)
    states = States(bundle.snapshots, tiny_run.BLOBS.__getitem__)
    for record in tiny_run.SNAPSHOTS:
        assert states.get(record.state_digest).digest() == record.state_digest
    last = tiny_run.SNAPSHOTS[2].state_digest
    with pytest.raises(MalformedError, match="nothing needs"):
        states.closure({last})
    wanted = {record.state_digest for record in tiny_run.SNAPSHOTS}
    assert states.closure(wanted) == {blob for record in tiny_run.SNAPSHOTS for blob in record.blobs}
    with pytest.raises(MalformedError, match="lacks a snapshot"):
        states.closure({bytes(32)})
