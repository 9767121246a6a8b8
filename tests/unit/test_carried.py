"""What a bundle of a run carries whose snapshots are stored against one another in a long chain."""

from __future__ import annotations

import weakref

import pytest

import polstore
from polstore import carried
from polstore.carried import Carried
from polstore.codec.frames import StoredSnapshot
from polstore.errors import MissingError
from polstore.prover import commit, prove
from polstore.reader import Run
from polstore.storage.store import open_store
from polstore.wire.keys import SigningKey
from polverify.bundle_file import BundleFile
from polverify.states import States

COUNT = 40
KEY = SigningKey("example.com/alice", bytes(range(32)))


@pytest.fixture
def store(tmp_path, make_run):
    with open_store(tmp_path / "st", create=True) as opened:
        make_run(opened, count=COUNT, fidelity="compact-writeback")
        commit(opened, "r", KEY)
        yield opened


@pytest.fixture
def run(store):
    return Run(store, "r")


def read(path, run, segments):
    """Decode the ends of these segments out of a bundle and return its snapshots, in the order of their steps."""
    with BundleFile(path) as file:
        states = States(file.bundle.snapshots, file.blob)
        ends = {run.segment(index).start_state for index in segments}
        ends |= {run.segment(index).end_state for index in segments}
        states.closure(ends)  # nothing is missing, nothing of no use
        for digest in ends:
            assert states.get(digest).digest() == digest
        carried_blobs = {digest for digest, _ in file.bundle.blobs}
        found = {s.state_digest: s for s in map(StoredSnapshot.parse, file.bundle.snapshots)}
        assert {blob for stored in found.values() for blob in stored.blobs} <= carried_blobs
        file.check_blobs(lambda done, total: None)
    at = [run.segment(0).start_state, *(record.end_state for record in run.segments)]
    return {at.index(digest): stored for digest, stored in found.items()}


@pytest.mark.parametrize("limit", [0, carried.IN_MEMORY])
def test_a_late_segment_takes_two_snapshots(run, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(carried, "IN_MEMORY", limit)  # so that a file is used, or none
    small, large = tmp_path / "small", tmp_path / "large"
    prove(run, [COUNT - 1]).write(small)
    found = read(small, run, [COUNT - 1])
    assert sorted(found) == [COUNT - 1, COUNT]
    assert (found[COUNT - 1].base, found[COUNT].base) == (None, found[COUNT - 1].state_digest)
    assert found[COUNT] == run.stored_snapshots(found[COUNT].state_digest)[0]
    monkeypatch.setattr(carried, "LONGEST", 1000)
    prove(run, [COUNT - 1]).write(large)
    assert len(read(large, run, [COUNT - 1])) == COUNT + 1
    with BundleFile(small) as one, BundleFile(large) as other:
        assert 4 * sum(size for _, size in one.bundle.blobs) < sum(size for _, size in other.bundle.blobs)
    assert 2 * small.stat().st_size < large.stat().st_size  # leaves and records included


def test_several_segments_share_what_they_need(run, tmp_path):
    wanted = [0, 10, 11, 12, 30]
    prove(run, wanted).write(tmp_path / "bundle")
    found = read(tmp_path / "bundle", run, wanted)
    assert sorted(found) == [0, 1, 10, 11, 12, 13, 30, 31]
    base = {step: None if stored.base is None else stored.base for step, stored in found.items()}
    digest = {step: stored.state_digest for step, stored in found.items()}
    assert base[0] is base[10] is None
    assert [base[step] for step in (1, 11, 12, 13, 31)] == [digest[step] for step in (0, 10, 11, 12, 30)]
    assert base[30] == digest[10]


def test_all_segments_are_carried_as_they_are(run, tmp_path):
    prove(run, range(COUNT)).write(tmp_path / "bundle")
    for stored in read(tmp_path / "bundle", run, range(COUNT)).values():
        assert stored == run.stored_snapshots(stored.state_digest)[0]


def test_short_chains_are_carried_as_they_are(tmp_path, make_run):
    with open_store(tmp_path / "other", create=True) as store:
        make_run(store, count=9)
        run = Run(store, "r")
        ends = [run.segment(7).start_state, run.segment(7).end_state]
        got = Carried(run, ends).records
        assert got == {s.state_digest: s for digest in ends for s in run.stored_snapshots(digest)}
        assert len(got) == 3


def test_few_snapshots_are_held_at_a_time(run, monkeypatch):
    at = [run.segment(0).start_state, *(record.end_state for record in run.segments)]
    alive: list[weakref.ref] = []
    original = Run.snapshot

    def counted(self, digest):
        assert sum(reference() is not None for reference in alive) <= 2
        snapshot = original(self, digest)
        alive.append(weakref.ref(snapshot))
        return snapshot

    monkeypatch.setattr(Run, "snapshot", counted)
    got = Carried(run, at[5::5])
    assert len(alive) == len(at[5::5]) == 8
    assert [got.records[digest].base for digest in at[5::5]] == [None, *[at[5]] * 7]
    for digest, size in got.blobs().items():
        assert len(got.blob(digest)) == size


def test_a_snapshot_whose_chain_is_broken_is_not_carried(store, run):
    own, *before = run.stored_snapshots(run.segment(20).end_state)
    lost = set(own.blobs) - {blob for stored in before for blob in stored.blobs}
    store.write(lambda writer: [writer.delete_blob(blob) for blob in lost])
    with pytest.raises(MissingError):
        polstore.prove(run, [30])
    with pytest.raises(MissingError):
        polstore.prove(run, [20])
    polstore.prove(run, [10])
