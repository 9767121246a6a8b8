"""Repacking: smaller or differently based, but the same states, trees and signed roots, whatever happens meanwhile."""

import os
import resource
import signal
from dataclasses import replace

import pytest

from polstore.archive import repack as module
from polstore.archive.garbage import collect, find
from polstore.archive.repack import repack
from polstore.codec import frames
from polstore.errors import FullError, LockedError, MissingError, UsageError
from polstore.fsck import check_store
from polstore.prover import commit
from polstore.reader import Run
from polstore.storage.records import unpack_record
from polstore.storage.store import open_store
from polstore.wire.keys import SigningKey

KEY = SigningKey("example.org/archive", bytes(range(32)))


def quiet(*_):
    pass


def contents(store, tables=b""):
    with store.read() as view:
        return {key: view._handle.get(key) for key in view._handle.keys(b"") if not tables or key[:1] in tables}


def states(store, run="r"):
    found = Run(store, run)
    return {step: [tensor.data.tobytes() for tensor in found.state(step).tensors] for step in found.snapshots}


def record_of(store, step, run="r"):
    with store.read() as view:
        return frames.StoredSnapshot.parse(view.stored_snapshot(view.snapshot_at(run, step)))


COMMITTED = b"rlnst"  # runs, leaves, nodes, snapshots, signed roots


def test_only_the_bytes_change(store, make_run):
    make_run(store, "r")
    make_run(store, "lossless", fidelity="lossless", seed=2)
    signed = commit(store, "r", KEY)
    before, committed = states(store), contents(store, COMMITTED)
    size = sum(map(len, contents(store, b"b").values()))
    done = repack(store, None, quiet, level=22)
    assert done.damages == []
    assert 0 < done.rewritten <= done.snapshots == 14
    assert done.after < done.before
    assert done.based_anew == 0
    assert contents(store, COMMITTED) == committed
    assert states(store) == before
    assert Run(store, "r").signed_root() == signed
    assert sum(map(len, contents(store, b"b").values())) < size
    assert check_store(store, quiet).damages == []
    assert find(store, quiet).blobs == ()  # the old blobs are gone
    again = contents(store)
    assert repack(store, None, quiet, level=22).rewritten == 0
    assert repack(store, None, quiet, level=1).rewritten == 0  # nothing becomes larger
    assert contents(store) == again


def test_one_run_and_a_dry_run(store, make_run):
    make_run(store, "r")
    make_run(store, "other", seed=2)
    before = contents(store)
    with store.exclusive():
        dry = repack(store, "r", quiet, dry_run=True)
    assert contents(store) == before
    assert not dry.written
    other = states(store, "other"), record_of(store, 3, "other")
    done = repack(store, "r", quiet)
    assert (done.before, done.after, done.rewritten) == (dry.before, dry.after, dry.rewritten)
    assert (states(store, "other"), record_of(store, 3, "other")) == other
    assert check_store(store, quiet).damages == []


@pytest.mark.parametrize("every", [1, 2, 3, 64])
@pytest.mark.parametrize("fidelity", ["float16-writeback", "lossless"])
def test_other_keyframes(store, make_run, every, fidelity):
    make_run(store, fidelity=fidelity)
    before, committed = states(store), contents(store, COMMITTED)
    done = repack(store, None, quiet, level=1, keyframe_every=every)
    assert done.damages == []
    bases = [record_of(store, step).base for step in range(7)]
    with store.read() as view:
        digests = [view.snapshot_at("r", step) for step in range(7)]
    assert bases == [None if step % every == 0 else digests[step - step % every] for step in range(7)]
    assert states(store) == before
    assert contents(store, COMMITTED) == committed
    assert check_store(store, quiet).damages == []
    assert find(store, quiet).blobs == ()
    measured = sum(len(value) for value in contents(store, b"d").values())
    measured += sum(
        frames.StoredSnapshot.parse(unpack_record(value, "x")).stored_bytes for value in contents(store, b"d").values()
    )
    assert done.after == measured  # the cost is what it says


def test_a_keyframe_is_due_where_tensors_appear(store, make_run, extend_run, snapshot_of):
    """As in recording: against a snapshot without them, all that follow would be stored exactly."""
    writer = make_run(store, "r", count=0, fidelity="lossless")
    extend_run(writer, 0, 5, without_optimizer=3)
    before = states(store)
    assert repack(store, None, quiet, level=1, keyframe_every=2).damages == []
    with store.read() as view:
        digests = [view.snapshot_at("r", step) for step in range(6)]
    # 0 has an optimizer's state, as the fixture makes it; 1 to 3 have none, 4 and 5 have it again
    bases = [None, None, digests[1], None, None, digests[4]]
    assert [record_of(store, step).base for step in range(6)] == bases
    assert states(store) == before
    assert check_store(store, quiet).damages == []


def test_no_state_ever_becomes_its_own_base(store, make_run, extend_run):
    """Runs that come back to earlier states, and a run over another one's states in another order."""
    writer = make_run(store, "r", count=0, fidelity="lossless")
    extend_run(writer, 0, 7, order=[1, 2, 1, 0, 3, 2, 3])
    other = make_run(store, "other", count=0, fidelity="lossless")
    extend_run(other, 0, 4, order=[3, 2, 1, 0])
    before = states(store), states(store, "other")
    with store.read() as view:
        assert len(set(view.stored_snapshot_digests())) == 4
    for spacing, run in (
        (2, "r"),
        (2, "other"),
        (3, "other"),
        (3, "r"),
        (4, None),
        (1, None),
        (64, "other"),
        (64, "r"),
    ):
        assert repack(store, run, quiet, level=1, keyframe_every=spacing).damages == []
        assert (states(store), states(store, "other")) == before
    assert check_store(store, quiet).damages == []
    assert find(store, quiet).blobs == ()


def test_blobs_that_another_snapshot_needs_stay(store, make_run):
    """Runs of one frozen layer share its frames; repacking one run must leave them to the other."""
    make_run(store, "r", count=3)
    make_run(store, "b", count=3, seed=2)
    for run in ("r", "b"):
        assert repack(store, run, quiet, level=22).damages == []
        assert check_store(store, quiet).damages == []
    assert find(store, quiet).blobs == ()


def test_blobs_that_a_run_names_itself_stay(store, make_run, monkeypatch):
    """A frame may happen to have the bytes of a blob that a record names."""
    make_run(store, "r", count=2)
    named = record_of(store, 0).groups[-1].frames[-1].digest
    original = module.store_needs

    def needs(*arguments):
        found = original(*arguments)
        found.direct.add(named)
        return found

    monkeypatch.setattr(module, "store_needs", needs)
    assert repack(store, "r", quiet, level=1, keyframe_every=3).damages == []
    assert repack(store, "r", quiet, level=22).rewritten
    with store.read() as view:
        assert view.has_blob(named)


@pytest.mark.parametrize("stop", range(1, 8))
def test_stopped_at_any_snapshot(store, make_run, stop):
    make_run(store)
    before = states(store)

    def interrupt(what, done, total):
        if what == "repacking snapshots" and done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repack(store, None, interrupt, keyframe_every=3)
    assert states(store) == before
    assert check_store(store, quiet).damages == []
    assert repack(store, None, quiet, keyframe_every=3).damages == []
    assert states(store) == before
    assert collect(store, quiet).blobs == ()


def test_killed_inside_a_transaction(store, make_run, monkeypatch):
    make_run(store)
    before = contents(store)
    monkeypatch.setattr("polstore.storage.writer.Writer.delete_blob", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        repack(store, None, quiet)
    monkeypatch.undo()
    assert contents(store) == before


def test_a_damaged_blob_is_named_and_nothing_is_lost(store, make_run):
    make_run(store)
    digest = record_of(store, 4).groups[0].frames[0].digest
    with store.read() as view:
        good = view.get_blob(digest)
    store.write(lambda writer: writer._handle.put(b"b" + digest, good[:-1] + b"?", overwrite=True))
    records = contents(store, b"d")
    done = repack(store, None, quiet)
    with store.read() as view:
        state = view.snapshot_at("r", 4)
        assert view._handle.get(b"b" + digest) == good[:-1] + b"?"
    assert len(done.damages) == 1
    assert state.hex() in done.damages[0]
    assert digest.hex() in done.damages[0]
    assert contents(store, b"d")[b"d" + state] == records[b"d" + state]
    store.write(lambda writer: writer.put_blob(good))  # found again in a copy: all is well
    assert check_store(store, quiet).damages == []


def test_a_damaged_keyframe_leaves_all_as_it_is(store, make_run):
    make_run(store)
    digest = record_of(store, 0).groups[0].frames[0].digest
    store.write(lambda writer: writer.delete_blob(digest))
    before = contents(store)
    done = repack(store, None, quiet)
    assert len(done.damages) == 7
    assert all(digest.hex() in damage for damage in done.damages)
    assert contents(store) == before


def test_snapshots_stored_against_one_another_end_nothing(store, make_run):
    """A store that somebody else made may hold records that lead in a circle."""
    make_run(store, "r", count=3)
    one, other = record_of(store, 1), record_of(store, 2)

    def close(transaction):
        for stored, base in ((one, other), (other, one)):
            record = replace(stored, base=base.state_digest).encode()
            transaction.put_stored_snapshot(stored.state_digest, record)

    store.write(close)
    done = repack(store, None, quiet, level=1)
    assert len(done.damages) == 2
    assert all("stored against itself" in damage for damage in done.damages)


def test_what_was_compressed_wrongly_replaces_nothing(store, make_run, monkeypatch):
    make_run(store)
    before = contents(store)

    def wrong(frame, count, compressor, _):
        return bytes((frames.ZSTD,)) + compressor.compress(bytes(count))

    monkeypatch.setattr(module, "_smaller", wrong)
    done = repack(store, None, quiet)
    assert len(done.damages) == done.snapshots == 7
    assert contents(store) == before


def fill(store):
    for _ in range(100):  # freed pages give room for a while
        repack(store, None, quiet, level=1, keyframe_every=1)
        repack(store, None, quiet, level=1, keyframe_every=7)


def test_a_full_device_leaves_the_rest_as_it_was(tmp_path, make_run):
    """A file size limit stands for the full device."""
    with open_store(tmp_path / "s", create=True) as store:
        make_run(store)
        before = states(store)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((store.path / "data.mdb").stat().st_size, limit[1]))
        try:
            with pytest.raises(FullError):
                fill(store)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, handler)
        assert states(store) == before
        assert check_store(store, quiet).damages == []


def test_wrong_calls(store, make_run):
    make_run(store, count=1)
    for wrong in ({"level": 0}, {"level": 23}, {"keyframe_every": 0}):
        with pytest.raises(UsageError):
            repack(store, None, quiet, **wrong)
    with pytest.raises(MissingError):
        repack(store, "other", quiet)
    with store.exclusive(), pytest.raises(LockedError):
        repack(store, None, quiet)
