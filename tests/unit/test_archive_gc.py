"""Counting and collecting: what no run needs is found and goes, everything else stays."""

import os
import subprocess
import sys

import pytest

from polstore.archive.garbage import collect, find
from polstore.archive.stats import stats
from polstore.codec import frames
from polstore.errors import DamagedError, LockedError, MissingError
from polstore.fsck import check_store
from polstore.reader import Run
from polstore.storage import keys
from polstore.storage.store import open_store
from polstore.storage.survey import survey


def quiet(*_):
    pass


def put_garbage(store, snapshot_of):
    """A stored snapshot that no run has, with its blobs, and a blob of no use."""
    record, blobs, _ = frames.encode(snapshot_of(3, seed=77), None, "lossless")

    def work(writer):
        digests = {writer.put_blob(blob) for blob in blobs.values()}
        writer.put_stored_snapshot(record.state_digest, record.encode())
        return digests | {writer.put_blob(b"nothing needs this")}

    return store.write(work), record.state_digest


def contents(store):
    """Every key and value of a store, by way of LMDB itself."""
    with store.read() as view:
        return {key: view._handle.get(key) for key in view._handle.keys(b"")}


def assert_whole(store):
    assert check_store(store, quiet).damages == []


def test_a_store_without_garbage_keeps_every_byte(store, make_run):
    make_run(store, "a")
    make_run(store, "b", fidelity="lossless")
    before = contents(store)
    garbage = collect(store, quiet)
    assert (garbage.blobs, garbage.snapshots, garbage.blob_bytes) == ((), (), 0)
    assert contents(store) == before


@pytest.mark.parametrize("damage", ["lost", "renamed", "no run's", "leaves lost"])
def test_a_run_whose_row_is_damaged_is_not_taken_for_garbage(store, make_run, damage):
    """One flipped bit in the key of a row is enough for any of the first three: LMDB has no checksums."""
    make_run(store, "a")
    make_run(store, "b", seed=2)
    row = contents(store)[b"ra"]

    def work(writer):
        handle = writer._handle
        if damage == "leaves lost":
            for key in [key for key in handle.keys(b"") if key[1:3] == b"a\0"]:
                handle.delete(key)
            return
        handle.delete(b"ra")
        if damage != "lost":
            handle.put(b"rc" if damage == "renamed" else b"r!", row)

    store.write(work)
    before = contents(store)
    for operation in (find, collect):
        with pytest.raises(DamagedError):
            operation(store, quiet)
    assert contents(store) == before


def test_nothing_is_deleted_where_a_page_is_damaged(tmp_path, make_run):
    """A leaf page that seems to hold a single key, so that LMDB does not find the rows of runs."""
    path = tmp_path / "st"
    with open_store(path, create=True) as store:
        make_run(store, "a")
        make_run(store, "b", seed=2)
        with survey(store) as found:
            leaf = found._lookup._places[b"ra"].offset // 4096
    data = bytearray((path / "data.mdb").read_bytes())
    data[leaf * 4096 + 12 : leaf * 4096 + 14] = (18).to_bytes(2, "little")
    (path / "data.mdb").write_bytes(data)
    with open_store(path) as store:
        for operation in (find, collect):
            with pytest.raises(DamagedError, match=f"nothing is known to be garbage.*page {leaf}"):
                operation(store, quiet)
    assert (path / "data.mdb").read_bytes() == data


def test_progress_is_told_by_snapshots(store, make_run):
    make_run(store, "a", count=3)
    make_run(store, "b", count=2, seed=2)
    told = []
    find(store, lambda *what: told.append(what))
    assert told == [("reading records", done, 7) for done in range(1, 8)]


def test_garbage_is_named_and_only_then_deleted(store, make_run, snapshot_of):
    make_run(store)
    clean = contents(store)
    digests, state = put_garbage(store, snapshot_of)
    dirty = contents(store)
    found = find(store, quiet)
    assert contents(store) == dirty
    assert set(found.blobs) == digests - {key[1:] for key in clean}  # a frozen layer's frames may be shared
    assert found.snapshots == (state,)
    assert found.blob_bytes == sum(len(dirty[b"b" + digest]) for digest in found.blobs)
    assert not found.deleted
    gone = collect(store, quiet)
    assert gone.deleted
    assert (gone.blobs, gone.snapshots) == (found.blobs, found.snapshots)
    assert contents(store) == clean
    assert_whole(store)


def test_bases_outside_the_run_are_kept(store, make_run):
    """A snapshot may be stored against one that no run has any more."""
    make_run(store, "a", count=3)
    with store.read() as view:
        digest, other = view.snapshot_at("a", 2), view.snapshot_at("a", 3)
    snapshot, base = Run(store, "a").snapshot(digest), Run(store, "a").snapshot(other)
    moved = snapshot.tensors[1].data.copy()
    moved[0] += 1
    foreign_tensors = tuple(
        type(t)(t.name, t.dtype, t.shape, moved) if t is snapshot.tensors[1] else t for t in snapshot.tensors
    )
    foreign = type(snapshot)(foreign_tensors, snapshot.scalars)
    foreign_record, foreign_blobs, _ = frames.encode(foreign, base, "lossless")
    record, blobs, _ = frames.encode(snapshot, foreign, "lossless")

    def work(writer):
        for blob in (*foreign_blobs.values(), *blobs.values()):
            writer.put_blob(blob)
        writer.put_stored_snapshot(foreign_record.state_digest, foreign_record.encode())
        writer.put_stored_snapshot(record.state_digest, record.encode())

    store.write(work)
    assert collect(store, quiet).snapshots == ()
    assert_whole(store)


def test_an_unreadable_record_stops_everything(store, make_run, snapshot_of):
    make_run(store)
    put_garbage(store, snapshot_of)
    with store.read() as view:
        digest = view.snapshot_at("r", 4)
    store.write(lambda writer: writer.put_stored_snapshot(digest, b"not a record"))
    before = contents(store)
    for operation in (find, collect):
        with pytest.raises(DamagedError, match=digest.hex()):
            operation(store, quiet)
    store.write(lambda writer: writer.delete_stored_snapshot(digest))
    with pytest.raises(MissingError, match=digest.hex()):
        collect(store, quiet)
    assert contents(store) == {key: value for key, value in before.items() if key != b"d" + digest}


def test_nothing_is_deleted_when_it_is_interrupted(store, make_run, snapshot_of):
    make_run(store)
    put_garbage(store, snapshot_of)
    before = contents(store)

    def interrupt(what, done, total):
        if what == "deleting blobs" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(store, interrupt)
    assert contents(store) == before


def test_nothing_is_deleted_while_somebody_records(store, make_run, snapshot_of, tmp_path):
    make_run(store, complete=False)
    put_garbage(store, snapshot_of)
    before = contents(store)
    with store.exclusive():
        find(store, quiet)  # looking is free
        with pytest.raises(LockedError):
            collect(store, quiet)
    assert contents(store) == before


def test_extensions_keep_what_they_may_refer_to(store, make_run, monkeypatch):
    """A later version's extension may name a blob, alone or inside something that this version cannot read."""
    from polstore.wire.segment import SegmentRecord

    blobs = [os.urandom(40), os.urandom(50)]
    digests = store.write(lambda writer: [writer.put_blob(blob) for blob in blobs])
    make_run(store, count=1)
    with store.read() as view:
        leaf = SegmentRecord.parse(view.leaf("r", 1))
    extended = type(leaf)(
        **{**vars(leaf), "index": 1, "start_step": 1, "end_step": 2, "start_state": leaf.end_state,
           "extensions": (("a", digests[0]), ("b", b"\xc1??" + digests[1] + b"?"))}
    )  # fmt: skip

    def work(writer):
        writer.append_leaf("r", extended.encode())
        writer.put_snapshot("r", 2, leaf.end_state)

    store.write(work)
    assert collect(store, quiet).blobs == ()


def test_deleting_says_whether_there_was_anything(store):
    digest = store.write(lambda writer: writer.put_blob(b"x"))
    store.write(lambda writer: writer.put_stored_snapshot(digest, b"record"))
    assert store.write(lambda writer: (writer.delete_blob(digest), writer.delete_blob(digest))) == (True, False)
    assert store.write(lambda writer: writer.delete_stored_snapshot(digest))
    assert not store.write(lambda writer: writer.delete_stored_snapshot(digest))
    with store.read() as view:
        assert not list(view._handle.keys(keys.BLOB))
        assert not list(view.stored_snapshot_digests())


def test_deleting_everything_leaves_a_store_that_opens(tmp_path):
    """Freed pages at the end of the file must not make it look cut short."""
    with open_store(tmp_path / "s", create=True) as store:
        digests = store.write(lambda writer: [writer.put_blob(os.urandom(300_000)) for _ in range(20)])
        store.write(lambda writer: [writer.delete_blob(digest) for digest in digests])
    code = "import sys; from polstore.storage.store import open_store; open_store(sys.argv[1]).close()"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=True)


def test_stats_add_up(store, make_run, snapshot_of):
    make_run(store, "a", count=6)
    make_run(store, "b", count=2, fidelity="lossless")
    whole = contents(store)
    put_garbage(store, snapshot_of)
    result = stats(store, None, quiet)
    a, b = result.runs
    assert [(run.run, run.snapshots, run.segments, run.keyframes) for run in (a, b)] == [("a", 7, 6, 1), ("b", 3, 2, 1)]
    assert a.logical == 7 * (snapshot_of(0).nbytes)
    assert result.logical == a.logical + b.logical
    records = sum(len(value) for key, value in whole.items() if key[:1] == b"d")
    blobs = {key[1:]: len(value) for key, value in whole.items() if key[:1] == b"b"}
    assert result.stored == records + sum(blobs.values())
    assert result.ratio == result.logical / result.stored
    for run in (a, b):
        with store.read() as view:
            frame_sizes = {}
            for step in view.snapshot_steps(run.run):
                for group in frames.StoredSnapshot.parse(view.stored_snapshot(view.snapshot_at(run.run, step))).groups:
                    frame_sizes.update({(group.encoding, frame.digest): frame.size for frame in group.frames})
        assert sum(run.encodings.values()) == sum(frame_sizes.values())
    assert "scaled delta" in a.encodings
    assert "difference" in b.encodings
    # both have the same hyperparameters and sample hashes, and start from the same state
    assert a.shared == b.shared >= 2
    assert a.stored + b.stored > result.stored
    assert result.unreferenced == find(store, quiet).blobs.__len__()
    assert result.file == (store.path / "data.mdb").stat().st_size
    only = stats(store, "b", quiet)
    assert only.runs == [b]
    assert (only.logical, only.stored) == (result.logical, result.stored)
    with pytest.raises(MissingError):
        stats(store, "c", quiet)
