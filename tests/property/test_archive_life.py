"""The whole life of two stores, at random: what was recorded and signed stays, whatever the archive does, or fails at.

The model is what LMDB holds of the runs and the ledger, key by key, and the tensors of every state by its digest.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from safetensors.numpy import load_file

from polstore.archive.copying import copy_runs
from polstore.archive.garbage import collect, find
from polstore.archive.repack import repack
from polstore.archive.stats import stats
from polstore.codec import frames
from polstore.errors import ExistsError
from polstore.fsck import check_store
from polstore.prover import commit, prove
from polstore.reader import Run, open_archive
from polstore.run_row import RunRow
from polstore.run_writer import RunWriter
from polstore.storage.environment import Environment
from polstore.storage.store import open_store
from polstore.wire.keys import SigningKey
from polstore.wire.merkle import leaf_hash
from tests import synthetic_runs

KEY = SigningKey("example.org/archive", bytes(range(32)))
NOW = 1_800_000_000
COMMITTED = b"rlnst"  # runs, leaves, nodes, snapshots, signed roots
LEDGER = b"LNHE"
STORES = ("a", "b")

stores = st.sampled_from(STORES)
names = st.sampled_from(["x", "y", "z"])
seeds = st.integers(1, 2)
fidelities = st.sampled_from(["float16-writeback", "compact-writeback", "float16", "lossless"])
orders = st.lists(st.integers(0, 4), min_size=1, max_size=4)  # states that come again, in this run and in others
spacings = st.sampled_from([None, 1, 2, 3, 64])
levels = st.sampled_from([1, 3, 12])
crashes = st.tuples(st.integers(1, 8), st.booleans())  # at which transaction, and whether it had been committed


class CrashError(BaseException):
    """The end of the program, in the middle of something."""


def quiet(*_):
    pass


def contents(store, tables=b""):
    with store.read() as view:
        return {key: view._handle.get(key) for key in view._handle.keys(b"") if not tables or key[:1] in tables}


def of_runs(contents):
    """Return what was committed to, run by run."""
    found = {}
    for key, value in contents.items():
        if key[:1] in COMMITTED:
            found.setdefault(key[1:].partition(b"\0")[0].decode(), {})[key] = value
    return found


def tensors(snapshot):
    return snapshot.scalars, [(each.name, each.dtype, each.shape, each.data.tobytes()) for each in snapshot.tensors]


def crashing(number, committed):
    """Let the program end at a transaction: before it counts, or right after."""
    commit_transaction = Environment._commit
    left = Counter(transactions=number)

    def end(self, transaction, handle):
        left["transactions"] -= 1
        if left["transactions"]:
            commit_transaction(self, transaction, handle)
            return
        if committed:
            commit_transaction(self, transaction, handle)
        raise CrashError

    return patch.object(Environment, "_commit", end)


def put_unless_known(writer, record, blobs):
    if not writer.has_snapshot(record.state_digest):
        for blob in blobs.values():
            writer.put_blob(blob)
        writer.put_stored_snapshot(record.state_digest, record.encode())


class ArchiveLife(RuleBasedStateMachine):
    """Two stores, and what must be in them."""

    def __init__(self):
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.stores = {}
        self.held = {name: {} for name in STORES}  # all that was committed to, and the ledger
        self.sound = dict.fromkeys(STORES)  # what fsck has seen
        self.states = {}  # state digest -> its tensors

    @initialize(seed=seeds, fidelity=fidelities, order=orders)
    def create(self, seed, fidelity, order):
        for name in STORES:
            self.stores[name] = open_store(self.path / name, create=True, sync=False)
        self.record("a", "x", seed, fidelity, order, complete=False)

    def teardown(self):
        for name, store in self.stores.items():
            for run in self.runs(name):
                for step in Run(store, run).snapshots:
                    state = Run(store, run).state(step)
                    assert tensors(state) == self.states[state.digest()]
            store.close()
        shutil.rmtree(self.path)

    def runs(self, store):
        return sorted(of_runs(self.held[store]))

    def run_in(self, data, store):
        """Draw one of a store's runs."""
        return data.draw(st.sampled_from(self.runs(store)))

    def remember(self, store):
        """Take what a store holds now for what it must hold."""
        self.held[store] = contents(self.stores[store], COMMITTED + LEDGER)
        for key, digest in self.held[store].items():
            if key[:1] == b"s" and digest not in self.states:
                run = Run(self.stores[store], key[1:].partition(b"\0")[0].decode())
                self.states[digest] = tensors(run.snapshot(digest))

    # what fills a store

    @rule(store=stores, name=names, seed=seeds, fidelity=fidelities, order=orders, complete=st.booleans())
    def record(self, store, name, seed, fidelity, order, complete):
        opened = self.stores[store]
        if name in self.runs(store):
            with pytest.raises(ExistsError):
                synthetic_runs.make(opened, name, 1, fidelity=fidelity, seed=seed)
            return
        garbage = find(opened, quiet)
        with opened.exclusive():
            writer = synthetic_runs.make(opened, name, 0, fidelity=fidelity, seed=seed, complete=False)
            synthetic_runs.extend(writer, 0, len(order), seed, order)
            if complete:
                writer.finish()
        self.remember(store)
        assert set(find(opened, quiet).blobs) <= set(garbage.blobs)
        if fidelity == "lossless":
            run = Run(opened, name)
            for step, number in enumerate([0, *order]):
                assert tensors(run.state(step)) == tensors(synthetic_runs.state(number, seed))

    @rule(data=st.data(), seed=seeds, order=st.just([]) | orders, complete=st.booleans())
    def resume(self, data, seed, order, complete):
        store = data.draw(st.sampled_from([store for store in STORES if self.runs(store)]))
        name = self.run_in(data, store)
        before = self.held[store]
        with self.stores[store].exclusive():
            writer, snapshot, step = RunWriter.resume(self.stores[store], name)
            assert tensors(snapshot) == self.states[snapshot.digest()]
            synthetic_runs.extend(writer, step, step + len(order), seed, order)
            if complete:
                writer.finish()
        self.remember(store)
        row = b"r" + name.encode()
        assert {key: value for key, value in before.items() if key != row}.items() <= self.held[store].items()

    @rule(data=st.data(), later=st.integers(0, 1))
    def sign(self, data, later):
        store = data.draw(st.sampled_from([store for store in STORES if self.runs(store)]))
        before = self.held[store]
        commit(self.stores[store], self.run_in(data, store), KEY, now=lambda: NOW + later)
        self.remember(store)
        assert before.items() <= self.held[store].items()

    @rule(store=stores, seed=seeds, numbers=st.lists(st.integers(0, 4), min_size=1, max_size=2, unique=True))
    def leave_garbage(self, store, seed, numbers):
        """Leave a stored snapshot that may be of no run, perhaps against another, as a copy that was stopped does."""
        base = None
        for number in numbers:
            snapshot = synthetic_runs.state(number, seed)
            record, blobs, _ = frames.encode(snapshot, base, "lossless")
            self.stores[store].write(partial(put_unless_known, record=record, blobs=blobs))
            base = snapshot

    # what an archive does

    @rule(store=stores)
    def collect(self, store):
        opened = self.stores[store]
        before = contents(opened)
        found, counted = find(opened, quiet), stats(opened, None, quiet)
        assert contents(opened) == before
        assert (counted.unreferenced, counted.unreferenced_bytes) == (len(found.blobs), found.blob_bytes)
        gone = collect(opened, quiet)
        assert (gone.blobs, gone.snapshots) == (found.blobs, found.snapshots)
        after = contents(opened)
        lost = {b"b" + blob for blob in found.blobs} | {b"d" + digest for digest in found.snapshots}
        assert after == {key: value for key, value in before.items() if key not in lost}
        again = collect(opened, quiet)
        assert (again.blobs, again.snapshots) == ((), ())
        assert contents(opened) == after

    @rule(store=stores, data=st.data(), level=levels, spacing=spacings)
    def repack(self, store, data, level, spacing):
        opened = self.stores[store]
        run = data.draw(st.sampled_from([None, *self.runs(store)]))
        before, garbage = contents(opened), find(opened, quiet)
        dry = repack(opened, run, quiet, level=level, keyframe_every=spacing, dry_run=True)
        assert contents(opened) == before
        done = repack(opened, run, quiet, level=level, keyframe_every=spacing)
        assert done.damages == dry.damages == []
        assert (done.snapshots, done.rewritten, done.based_anew) == (dry.snapshots, dry.rewritten, dry.based_anew)
        if not garbage.snapshots:  # else what one of them shared with a run may be its alone now
            assert find(opened, quiet).blobs == garbage.blobs
        if spacing is None:
            assert done.after <= done.before
            assert repack(opened, run, quiet, level=level).rewritten == 0

    @rule(data=st.data(), source=stores)
    def copy(self, data, source):
        destination = STORES[source == STORES[0]]
        run = data.draw(st.sampled_from([None, *self.runs(source)]))
        expected = self.copied(source, destination, run)
        if expected is None:
            before = contents(self.stores[destination])
            with pytest.raises(ExistsError, match="another run"):
                copy_runs(self.stores[source], self.stores[destination], run, quiet)
            assert contents(self.stores[destination]) == before
            return
        copy_runs(self.stores[source], self.stores[destination], run, quiet)
        self.held[destination] = expected
        whole = contents(self.stores[destination])
        for again in copy_runs(self.stores[source], self.stores[destination], run, quiet):
            assert (again.added, again.snapshots, again.blobs, again.roots) == (0, 0, 0, 0)
        assert contents(self.stores[destination]) == whole

    def copied(self, source, destination, run):
        """Return what the destination must hold after a copy, or None where another run of the name is there."""
        theirs, ours = of_runs(self.held[source]), of_runs(self.held[destination])
        expected = dict(self.held[destination])
        for name in theirs if run is None else [run]:
            new, old, row = theirs[name], ours.get(name, {}), b"r" + name.encode()
            if any(new[key] != old[key] for key in new.keys() & old.keys() if key != row):
                return None
            if old:
                rows = [RunRow.parse(each[row]) for each in (new, old)]
                if rows[0].salt != rows[1].salt:
                    return None
            counts = [sum(key[:1] == b"l" for key in each) for each in (new, old)]
            longer = counts[0] > counts[1] or (counts[0] == counts[1] and RunRow.parse(new[row]).complete)
            expected |= {key: value for key, value in new.items() if key != row}
            expected[row] = new[row] if longer else old[row]
        return expected

    # what may happen meanwhile

    @rule(store=stores, crash=crashes, level=levels, spacing=spacings)
    def crash_in_upkeep(self, store, crash, level, spacing):
        with crashing(*crash), suppress(CrashError):
            repack(self.stores[store], None, quiet, level=level, keyframe_every=spacing)
            collect(self.stores[store], quiet)

    @rule(source=stores, crash=crashes)
    def crash_in_copy(self, source, crash):
        destination = STORES[source == STORES[0]]
        with crashing(*crash), suppress(CrashError, ExistsError):
            copy_runs(self.stores[source], self.stores[destination], None, quiet)
        before, got = of_runs(self.held[destination]), of_runs(contents(self.stores[destination]))
        for name in before.keys() | got.keys():  # every run is as it was, or as it is after the whole copy
            if got.get(name) != before.get(name):
                whole = self.copied(source, destination, name)
                assert whole is not None
                assert got[name] == of_runs(whole)[name]
        self.remember(destination)

    @rule(data=st.data(), seed=seeds, order=orders, crash=crashes)
    def crash_in_recording(self, data, seed, order, crash):
        store = data.draw(st.sampled_from([store for store in STORES if self.runs(store)]))
        name = self.run_in(data, store)
        before = self.held[store]
        with self.stores[store].exclusive(), crashing(*crash), suppress(CrashError):
            writer, _, step = RunWriter.resume(self.stores[store], name)
            synthetic_runs.extend(writer, step, step + len(order), seed, order)
        self.remember(store)
        row = b"r" + name.encode()
        assert {key: value for key, value in before.items() if key != row}.items() <= self.held[store].items()

    @rule(store=stores)
    def reopen(self, store):
        self.stores[store].close()
        self.stores[store] = open_store(self.path / store, sync=False)

    # what a reader sees

    @rule(data=st.data())
    def read(self, data):
        store = data.draw(st.sampled_from([store for store in STORES if self.runs(store)]))
        name = self.run_in(data, store)
        self.stores[store].close()
        with open_archive(self.path / store) as archive:
            run = archive.run(name)
            step = data.draw(st.sampled_from(run.snapshots))
            run.export(step, self.path / "weights.safetensors")
            exported = load_file(self.path / "weights.safetensors")
            arrays = run.arrays(step)
            for each, array in arrays.items():
                kind, _, weights = each.partition("/")
                assert run.array(step, each).tobytes() == array.tobytes()
                assert kind == "optimizer" or exported.pop(weights).tobytes() == array.tobytes()
            assert not exported
            if run.newest_signed_size and run.newest_signed_size > 1:
                index = data.draw(st.integers(0, run.newest_signed_size - 2))
                file = run.proof_file(index)
                file.verify(leaf_hash(file.extra), KEY.verifier_keys())
                assert b"".join(prove(run, [index]))
        self.stores[store] = open_store(self.path / store, sync=False)

    @invariant()
    def everything_is_there(self):
        for name, store in self.stores.items():
            whole = contents(store)
            if whole == self.sound[name]:
                continue
            self.sound[name] = whole
            assert {key: value for key, value in whole.items() if key[:1] in COMMITTED + LEDGER} == self.held[name]
            assert check_store(store, quiet, KEY.verifier_keys()).damages == []


TestArchiveLife = ArchiveLife.TestCase
TestArchiveLife.settings = settings(
    deadline=None,
    derandomize=True,
    max_examples=20,
    stateful_step_count=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
