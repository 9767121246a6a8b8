"""Copying runs: all of it or none, checked on the way, taken up again, and never over something else."""

import resource
import signal

import pytest

from polstore.archive import copying
from polstore.archive.copying import copy_runs
from polstore.archive.garbage import collect, find
from polstore.archive.repack import repack
from polstore.codec import frames
from polstore.errors import DamagedError, ExistsError, FullError, LockedError, MissingError, UsageError
from polstore.fsck import check_store
from polstore.prover import commit, prove
from polstore.reader import Run
from polstore.storage.store import open_store
from polstore.wire.keys import SigningKey

KEY = SigningKey("example.org/archive", bytes(range(32)))


def quiet(*_):
    pass


@pytest.fixture
def stores(tmp_path):
    with open_store(tmp_path / "a", create=True) as first, open_store(tmp_path / "b", create=True) as second:
        yield first, second


def contents(store):
    """Return all that a store holds but its ledger, which is not copied: every store keeps its own."""
    with store.read() as view:
        return {key: view._handle.get(key) for key in view._handle.keys(b"") if key[:1] not in (b"L", b"N", b"H", b"E")}


def test_a_copy_is_the_same_to_the_last_byte(stores, make_run):
    source, destination = stores
    make_run(source, "r")
    make_run(source, "s", fidelity="lossless", seed=2)
    commit(source, "r", KEY)
    copied = copy_runs(source, destination, None, quiet)
    assert contents(destination) == contents(source)
    assert [(each.run, each.segments, each.added, each.roots) for each in copied] == [("r", 6, 6, 1), ("s", 6, 6, 0)]
    blobs = [value for key, value in contents(source).items() if key[:1] == b"b"]
    assert sum(each.blobs for each in copied) == len(blobs)  # what both runs share was copied once
    assert sum(each.bytes for each in copied) == sum(map(len, blobs))
    assert check_store(destination, quiet).damages == []
    assert b"".join(prove(Run(destination, "r"), [2])) == b"".join(prove(Run(source, "r"), [2]))
    again = copy_runs(source, destination, None, quiet)
    assert all((each.added, each.snapshots, each.blobs, each.roots) == (0, 0, 0, 0) for each in again)
    assert contents(destination) == contents(source)


def test_one_run_comes_alone(stores, make_run):
    source, destination = stores
    make_run(source, "r")
    make_run(source, "s", seed=2)
    copy_runs(source, destination, "s", quiet)
    with destination.read() as view:
        assert view.runs() == ["s"]
    assert find(destination, quiet).blobs == ()
    with pytest.raises(MissingError):
        copy_runs(source, destination, "t", quiet)


def test_a_longer_run_extends_a_shorter_one(stores, make_run, extend_run):
    source, destination = stores
    writer = make_run(source, count=2, complete=False)
    with source.exclusive():  # recording goes on
        copy_runs(source, destination, None, quiet)
        assert not Run(destination, "r").complete
        shorter = contents(source)
        assert contents(destination) == shorter
        extend_run(writer, 2, 5)
    first = commit(source, "r", KEY)
    extend_run(writer, 5, 6)
    writer.finish()
    commit(source, "r", KEY)
    [copied] = copy_runs(source, destination, None, quiet)
    assert (copied.added, copied.segments, copied.snapshots, copied.roots) == (4, 6, 4, 2)
    assert contents(destination) == contents(source)
    assert Run(destination, "r").complete
    assert Run(destination, "r").signed_root(6) == first


def test_a_longer_destination_stays_as_it_is(stores, make_run):
    source, destination = stores
    make_run(source, count=2, complete=False)
    make_run(destination, count=5)
    commit(source, "r", KEY)
    row = Run(destination, "r").row
    [copied] = copy_runs(source, destination, None, quiet)
    assert (copied.added, copied.segments, copied.roots) == (0, 5, 1)
    assert Run(destination, "r").row == row
    assert check_store(destination, quiet).damages == []


def test_only_completion_is_copied_too(stores, make_run):
    source, destination = stores
    writer = make_run(source, count=2, complete=False)
    copy_runs(source, destination, None, quiet)
    writer.finish()
    copy_runs(source, destination, None, quiet)
    assert Run(destination, "r").complete


def test_another_run_of_that_name_is_refused(stores, make_run):
    source, destination = stores
    make_run(source, "a", seed=5)
    make_run(source, "r")
    make_run(destination, "r", seed=2)
    before = contents(destination)
    with pytest.raises(ExistsError, match="another run r"):
        copy_runs(source, destination, None, quiet)
    assert contents(destination) == before  # nor was run a begun


def test_a_run_that_forks_is_refused(stores, make_run, extend_run):
    source, destination = stores
    for store, seed in ((source, 1), (destination, 3)):
        writer = make_run(store, count=2, complete=False)
        extend_run(writer, 2, 4, seed)
    before = contents(destination)
    with pytest.raises(ExistsError, match="segment 2"):
        copy_runs(source, destination, None, quiet)
    assert contents(destination) == before


def test_another_signed_root_is_refused(stores, make_run):
    source, destination = stores
    for store, number in ((source, 1), (destination, 2)):
        make_run(store)
        commit(store, "r", SigningKey("example.org/archive", bytes([number]) * 32), now=lambda: 1.0)
    before = contents(destination)
    with pytest.raises(ExistsError, match="signed root"):
        copy_runs(source, destination, None, quiet)
    assert contents(destination) == before


@pytest.mark.parametrize("stop", range(1, 9))
def test_a_stopped_copy_is_completed(stores, make_run, stop):
    source, destination = stores
    make_run(source)
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_runs(source, destination, None, interrupt)
    with destination.read() as view:
        assert view.runs() == []  # a run is there whole or not at all
        there = sum(1 for _ in view.stored_snapshot_digests())
    assert there == min(stop, 7)
    [copied] = copy_runs(source, destination, None, quiet)
    assert copied.snapshots == 7 - there  # what was there was not copied again
    assert contents(destination) == contents(source)


def test_what_a_stopped_copy_left_can_be_collected(stores, make_run):
    source, destination = stores
    make_run(source)

    def interrupt(_what, done, _total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_runs(source, destination, None, interrupt)
    collect(destination, quiet)
    assert contents(destination) == {}


@pytest.mark.parametrize("table", [b"b", b"d", b"l", b"n", b"r", b"t", b"s"])
def test_damage_in_the_source_is_named_and_changes_no_run(stores, make_run, table):
    source, destination = stores
    make_run(source, "r", count=3, complete=False)
    copy_runs(source, destination, None, quiet)
    commit(source, "r", KEY)
    whole = contents(destination)
    for key, value in contents(source).items():
        if key[:1] != table:
            continue
        spoilt = value[:-1] + bytes([value[-1] ^ 1])
        for missing in (False, True):
            if missing:
                source.write(lambda writer, key=key: writer._handle.delete(key))
            else:
                source.write(lambda writer, key=key, spoilt=spoilt: writer._handle.put(key, spoilt, overwrite=True))
            with open_store(destination.path.parent / f"c{key.hex()}{missing}", create=True) as empty:
                try:
                    copy_runs(source, empty, None, quiet)
                except (DamagedError, MissingError, ExistsError):
                    with empty.read() as view:
                        assert view.runs() == []
                else:
                    # a signed root is not checked without a key; a leaf or node cut off the end is a shorter run,
                    # and without its row there is no run
                    assert table in (b"t", b"l", b"n") or (table == b"r" and missing)
                    assert check_store(empty, quiet).damages == []
        source.write(lambda writer, key=key, value=value: writer._handle.put(key, value, overwrite=True))
    assert contents(destination) == whole


def test_a_lie_in_a_record_is_refused(stores, make_run):
    """A record with whole blobs that leads to another state than its digest."""
    from dataclasses import replace

    from polstore.codec.frames import StoredSnapshot

    source, destination = stores
    make_run(source)
    with source.read() as view:
        digest = view.snapshot_at("r", 2)
        other = StoredSnapshot.parse(view.stored_snapshot(view.snapshot_at("r", 3)))
        record = StoredSnapshot.parse(view.stored_snapshot(digest))
    groups = tuple(
        ours if ours.count != theirs.count else replace(ours, frames=theirs.frames)
        for ours, theirs in zip(record.groups, other.groups, strict=True)
    )
    forged = replace(record, groups=groups)
    source.write(lambda writer: writer.put_stored_snapshot(digest, forged.encode()))
    with pytest.raises(DamagedError, match=digest.hex()):
        copy_runs(source, destination, None, quiet)
    with destination.read() as view:
        assert view.runs() == []
        assert not view.has_snapshot(digest)


def test_a_repacked_source_and_destination_differ_only_in_storage(stores, make_run, extend_run):
    source, destination = stores
    writer = make_run(source, count=3, complete=False)
    copy_runs(source, destination, None, quiet)
    repack(destination, None, quiet, level=22)
    extend_run(writer, 3, 5)
    [copied] = copy_runs(source, destination, None, quiet)
    assert copied.snapshots == 2
    assert check_store(destination, quiet).damages == []
    assert Run(destination, "r").tree_root(6) == Run(source, "r").tree_root(6)


def test_a_snapshot_that_gets_another_base_meanwhile_comes_with_it(stores, make_run, monkeypatch):
    """A repack of the source, which the copy does not lock, may store a snapshot against one of another run."""
    source, destination = stores
    make_run(source, "other", seed=2)
    make_run(source)
    wanted, base = Run(source, "r").state(4), Run(source, "other").state(3)
    fetch = copying.fetch_stored

    def after_a_repack(store, digest):
        if digest == wanted.digest():
            monkeypatch.setattr(copying, "fetch_stored", fetch)
            stored, blobs, _ = frames.encode(wanted, base, "lossless")

            def work(writer):
                for blob in blobs.values():
                    writer.put_blob(blob)
                writer.put_stored_snapshot(digest, stored.encode())

            source.write(work)
        return fetch(store, digest)

    monkeypatch.setattr(copying, "fetch_stored", after_a_repack)
    copy_runs(source, destination, "r", quiet)
    assert check_store(destination, quiet).damages == []
    assert contents(destination).keys() >= {b"d" + wanted.digest(), b"d" + base.digest()}


def test_locks_and_wrong_calls(stores, make_run):
    source, destination = stores
    make_run(source)
    with pytest.raises(UsageError):
        copy_runs(source, source, None, quiet)
    with destination.exclusive(), pytest.raises(LockedError):
        copy_runs(source, destination, None, quiet)


def test_a_full_device_changes_no_run(stores, make_run):
    source, destination = stores
    make_run(source)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limit[1]))
    try:
        with pytest.raises(FullError):
            copy_runs(source, destination, None, quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    with destination.read() as view:
        assert view.runs() == []
    copy_runs(source, destination, None, quiet)
    assert contents(destination) == contents(source)
