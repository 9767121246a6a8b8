"""Records in the store: compressed, bounded before anything is allocated, and damaged ones told apart."""

from __future__ import annotations

import random

import pytest
import zstandard

from polstore.errors import DamagedError
from polstore.storage import keys, records
from polstore.storage.records import pack_record, unpack_record
from polstore.storage.store import open_store

DIGEST = bytes(range(32))
RECORD = b"\x96" + b"parameter/block.0.weight" * 200


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "s", create=True) as opened:
        yield opened


def put(store, value: bytes) -> None:
    store.write(lambda writer: writer._handle.put(keys.digest_key(keys.STORED_SNAPSHOT, DIGEST), value, overwrite=True))


def get(store) -> bytes:
    with store.read() as view:
        return view.stored_snapshot(DIGEST)


def test_what_was_put_comes_back_and_takes_less(store) -> None:
    for record in (RECORD, b"", b"\x96", bytes(100), records.MAGIC):
        store.write(lambda writer, record=record: writer.put_stored_snapshot(DIGEST, record))
        assert get(store) == record
    store.write(lambda writer: writer.put_stored_snapshot(DIGEST, RECORD))
    with store.read() as view:
        assert view.stored_snapshot_size(DIGEST) < len(RECORD) / 10


def test_a_record_of_an_earlier_version_is_read(store) -> None:
    put(store, RECORD)
    assert get(store) == RECORD


def frame(content: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(content)


@pytest.mark.parametrize(
    "value",
    [
        pack_record(RECORD)[:-1],
        pack_record(RECORD) + b"\0",
        pack_record(RECORD) * 2,
        frame(RECORD, write_content_size=False),
        records.MAGIC,
        records.MAGIC + b"\xa0" + (1 << 29).to_bytes(4, "little"),  # states 512 MiB
        records.MAGIC + b"\xe0" + (1 << 60).to_bytes(8, "little"),
        records.MAGIC + random.Random(1).randbytes(40),
    ],
)
def test_damaged_records(store, value: bytes) -> None:
    put(store, value)
    with pytest.raises(DamagedError, match=f"record of snapshot {DIGEST.hex()} of store .* is damaged"):
        get(store)


def test_the_limit_is_that_of_a_record(monkeypatch) -> None:
    monkeypatch.setattr(records, "MAX_STORED_SNAPSHOT", len(RECORD))
    assert unpack_record(pack_record(RECORD), "x") == RECORD
    with pytest.raises(DamagedError, match=f"x is damaged: expected at most {len(RECORD)} bytes"):
        unpack_record(pack_record(RECORD + b"\0"), "x")
