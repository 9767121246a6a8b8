"""A fine-tune begins with its parent's blobs: what it inherits is stored once, and all operations know."""

from dataclasses import replace

import lmdb
import pytest
import tiny_archive
import torch
from torch import nn
from torch.utils.data import TensorDataset

import polstore
from polstore import inherited
from polstore.archive.copying import copy_runs
from polstore.archive.garbage import collect
from polstore.archive.repack import repack
from polstore.archive.stats import stats
from polstore.codec.frames import StoredSnapshot
from polstore.errors import DamagedError
from polstore.fsck import check_store
from polstore.prover import commit, prove
from polstore.publish import publish
from polstore.reader import Run
from polstore.storage.store import open_store
from polstore.wire import merkle
from polstore.wire.archive_files import snapshot_name
from polverify.bundle_file import BundleFile
from polverify.states import States


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny_archive.make(tmp_path_factory.mktemp("parent"))


@pytest.fixture
def path(made, tmp_path):
    with open_store(made, readonly=True) as source, open_store(tmp_path / "st", create=True) as copied:
        copy_runs(source, copied, None, quiet)
    return tmp_path / "st"


def fine_tune(store, parent, run="child", fidelity="float16-writeback"):
    """Train the last layer of the tiny archive's network, from its last snapshot."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)
    data = TensorDataset(torch.ones(16, 4))
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    recipe = store.parent / "recipe.py"
    recipe.write_text(tiny_archive.RECIPE)
    with polstore.record(
        model,
        optimizer,
        every=1,
        store=store,
        run=run,
        parent=parent,
        dataset=data,
        seed=1,
        fidelity=fidelity,
        recipe=recipe,
    ) as recorder:
        for number in range(4):
            recorder.step([number])
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
    torch.set_num_threads(threads)
    torch.set_rng_state(generator)


def records(run, step):
    return run.stored_snapshots(run.state(step).digest())


@pytest.mark.parametrize("fidelity", ["float16-writeback", "compact-writeback", "lossless"])
def test_what_a_fine_tune_inherits_takes_no_bytes(path, made, fidelity):
    fine_tune(path, f"{path}:r", fidelity=fidelity)
    fine_tune(path, f"{made}:r", run="apart", fidelity=fidelity)
    with open_store(path) as store:
        child, parent = Run(store, "child"), Run(store, "r")
        assert records(child, 0)[0].base == parent.state(parent.snapshots[-1]).digest()
        assert all(row.encoding.name == "SAME" for row in records(child, 0)[0].tensors)
        assert records(child, 0)[0].blobs == ()
        assert check_store(store, quiet).damages == []
        assert child.state(4).digest() == child.segment(3).end_state
        # how it is stored is no part of what it is
        assert child.state(0).entries() == Run(store, "apart").state(0).entries()
        by_name = {found.run: found for found in stats(store, None, quiet).runs}
        assert by_name["child"].shared_bytes > 0


def test_a_parent_in_another_store_is_not_needed_there(path, tmp_path):
    fine_tune(tmp_path / "other", f"{path}:r")
    with open_store(tmp_path / "other") as store:
        assert records(Run(store, "child"), 0)[0].base is None
        assert check_store(store, quiet).damages == []


def test_nothing_is_inherited_from_a_record_that_was_not_signed(path, tmp_path):
    """A parent's store may be somebody else's: here its last record names another state, and all hashes fit."""
    with open_store(path) as store:
        run = Run(store, "r")
        number = (run.size() - 1).to_bytes(8, "big")
        last = replace(run.segments[-1], end_state=run.segments[-2].end_state).encode()
    with lmdb.open(str(path), map_size=0, max_readers=1024) as opened, opened.begin(write=True) as transaction:
        assert transaction.replace(b"lr\0" + number, last)
        assert transaction.replace(b"nr\0\0" + number, merkle.leaf_hash(last))
    with pytest.raises(DamagedError, match="tree of run r is damaged"):
        fine_tune(tmp_path / "other", f"{path}:r")


def test_a_long_line_of_snapshots_is_not_made_longer(path, monkeypatch):
    monkeypatch.setattr(inherited, "MAX_BEHIND", 0)
    fine_tune(path, f"{path}:r")
    with open_store(path) as store:
        assert records(Run(store, "child"), 0)[0].base is None


def test_a_fine_tune_is_copied_proven_collected_and_repacked(path, tmp_path):
    fine_tune(path, f"{path}:r")
    with open_store(path) as store, open_store(tmp_path / "copy", create=True) as other:
        commit(store, "child", tiny_archive.KEY)
        states = {step: Run(store, "child").state(step).digest() for step in range(5)}
        assert prove(Run(store, "child"), [1]).bundle.opened[0].index == 1
        copy_runs(store, other, "child", quiet)
        with other.read() as view:
            assert view.runs() == ["child"]
        assert collect(other, quiet).blobs == ()
        repack(other, None, quiet, keyframe_every=2)
        assert {step: Run(other, "child").state(step).digest() for step in range(5)} == states
        assert collect(other, quiet).snapshots  # the parent's, which are no longer needed
        assert check_store(other, quiet).damages == []
        assert check_store(store, quiet).damages == []


def test_neither_a_bundle_nor_an_archive_shows_other_snapshots_of_the_parent(path, tmp_path):
    fine_tune(path, f"{path}:r")
    with open_store(path) as store:
        commit(store, "child", tiny_archive.KEY)
        child = Run(store, "child")
        own = {child.state(step).digest() for step in child.snapshots}
        proof = prove(child, [0, 2])
        carried = {stored.state_digest: stored for stored in map(StoredSnapshot.parse, proof.bundle.snapshots)}
        assert set(carried) == {child.state(step).digest() for step in (0, 1, 2, 3)}
        initial = child.manifest.initial.state
        assert carried[initial].base is None
        others = [stored for digest, stored in carried.items() if digest != initial]
        assert all(stored == child.stored_snapshots(stored.state_digest)[0] for stored in others)
        proof.write(tmp_path / "bundle")
    with BundleFile(tmp_path / "bundle") as file:
        file.check_blobs(lambda *_: None)
        decoded = States(file.bundle.snapshots, file.blob)
        assert {decoded.get(digest).digest() for digest in carried} == set(carried)
    with polstore.open(path) as archive:
        publish(archive, tmp_path / "www", ["child"], quiet)
        names = {tmp_path / "www" / snapshot_name(digest) for digest in own}
        assert set((tmp_path / "www" / "snapshot").iterdir()) == names
        publish(archive, tmp_path / "www", ["child"], quiet)


def test_what_a_crash_before_the_run_leaves_is_garbage(path, monkeypatch):
    def crash(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("polstore.recording.RunWriter.begin", crash)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(path, f"{path}:r")
    monkeypatch.undo()
    with open_store(path) as store:
        assert len(collect(store, quiet).snapshots) == 1
    fine_tune(path, f"{path}:r")
    with open_store(path) as store:
        assert check_store(store, quiet).damages == []
