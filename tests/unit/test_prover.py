"""Committing and proving: what is signed, what a bundle holds, and that a damaged store gives no bad bundle."""

import hashlib
import shutil
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest
import tiny_archive

import polstore
from polstore.errors import DamagedError, ExistsError, MissingError, UsageError
from polstore.prover import Proof
from polstore.segment_records import SegmentRecords
from polstore.storage.store import open_store
from polstore.wire import merkle
from polstore.wire.checkpoint import open_root
from polstore.wire.environment import Environment
from polstore.wire.keys import SigningKey
from polstore.wire.segment import Norms, SegmentRecord
from polverify.bundle_file import BundleFile


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_archive.make(tmp_path_factory.mktemp("prover"), runs=("a", "b"))


@pytest.fixture
def run(path):
    with polstore.open(path) as archive:
        yield archive.run("a")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny_archive.make(tmp_path_factory.mktemp("original"))


@pytest.fixture
def fresh(tmp_path, original):
    return Path(shutil.copytree(original, tmp_path / "st"))


@contextmanager
def raw(path):
    with lmdb.open(str(path), map_size=0, max_readers=1024) as opened, opened.begin(write=True) as transaction:
        yield transaction


def test_a_commit_is_signed_once(fresh):
    with open_store(fresh) as store:
        signed = polstore.commit(store, "r", tiny_archive.KEY, now=lambda: tiny_archive.NOW + 9)
        opened = open_root(signed, tiny_archive.KEY.verifier_keys())
        assert opened.timestamp == tiny_archive.NOW  # the first commit's
        assert (opened.checkpoint.origin, opened.checkpoint.size) == ("example.com/alice/r", 6)
        with pytest.raises(ExistsError, match="another key"):
            polstore.commit(store, "r", SigningKey("example.com/alice", bytes(32)))
        with pytest.raises(UsageError, match=r"expected a key of example\.com/alice, got example\.com/eve"):
            polstore.commit(store, "r", SigningKey("example.com/eve", bytes(range(32))))
        with store.read() as view:
            assert view.root("r", 6) == signed
        with pytest.raises(MissingError, match="no run"):
            polstore.commit(store, "s", tiny_archive.KEY)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_root_is_not_handed_out_again(fresh, damage):
    with raw(fresh) as transaction:
        key = b"tr\0" + (6).to_bytes(8, "big")
        text = bytes(transaction.get(key))
        transaction.put(key, text[:-9] + b"A" + text[-8:] if damage is None else damage)
    with open_store(fresh) as store, pytest.raises((DamagedError, ExistsError)):
        polstore.commit(store, "r", tiny_archive.KEY)


@pytest.mark.parametrize("wanted", [[0], [4], [1, 3], [3, 1, 1], [0, 1, 2, 3, 4]])
def test_a_bundle_opens_what_was_asked_for(run, tmp_path, wanted):
    proof = polstore.prove(run, wanted)
    assert isinstance(proof, Proof)
    proof.write(tmp_path / "bundle")
    with BundleFile(tmp_path / "bundle") as file:
        bundle = file.bundle
        assert bundle == proof.bundle
        assert (bundle.size, bundle.root) == (6, run.tree_root(6))
        assert [opened.index for opened in bundle.opened] == sorted(set(wanted))
        for opened in bundle.opened:
            leaf = bundle.leaves[opened.index + 1]
            merkle.verify_inclusion(merkle.leaf_hash(leaf), opened.index + 1, 6, opened.proof, bundle.root)
            assert SegmentRecord.parse(leaf) == run.segment(opened.index)
            assert file.blob(run.segment(opened.index).steps) == run.blob(run.segment(opened.index).steps)
        used = set().union(*(run.steps(index).samples() for index in wanted))
        assert {index for index, _ in bundle.samples.salts} == used
    assert b"".join(proof) == (tmp_path / "bundle").read_bytes()


def test_salts_of_unopened_samples_stay_secret(run):
    proof = polstore.prove(run, [0])
    assert run.row.salt not in b"".join(proof)


@pytest.mark.parametrize("wanted", [[5], [-1], [0, 99]])
def test_segments_that_are_not_there(run, wanted):
    with pytest.raises(MissingError, match="expected 0 to 4"):
        polstore.prove(run, wanted)


def test_calls_that_make_no_sense(run, tmp_path):
    with pytest.raises(UsageError):
        polstore.prove(run, [])
    with pytest.raises(MissingError, match="no signed root of that size"):
        polstore.prove(run, [0], size=3)
    unsigned = tiny_archive.make(tmp_path, steps=2, signed=False)
    with polstore.open(unsigned) as archive, pytest.raises(MissingError, match="run polstore commit"):
        polstore.prove(archive.run("r"), [0])


def test_an_older_root_can_still_be_proven_against(tmp_path):
    path = tiny_archive.make(tmp_path, steps=2)
    from polstore.codec.live.recipe import RecipeFile
    from polstore.recording import record_recipe

    recorder, training, loaded = record_recipe(
        RecipeFile.read(tmp_path / "recipe.py"), every=tiny_archive.EVERY, store=path, run="r", resume=True
    )
    with recorder:
        recorder.train(training, loaded.step, 4, lambda _done, _loss: None)
    with open_store(path) as store:
        polstore.commit(store, "r", tiny_archive.KEY)
    with polstore.open(path) as archive:
        run = archive.run("r")
        assert run.signed_sizes() == [2, 3]
        assert polstore.prove(run, [0], size=2).bundle.root == run.tree_root(2)
        assert polstore.prove(run, [0, 1]).bundle.root == run.tree_root(3)
        with pytest.raises(MissingError, match="expected 0 to 0, got 1"):
            polstore.prove(run, [1], size=2)


def record(index, start, end, base):
    steps = hashlib.sha256(b"steps").digest()
    environment, norms = Environment("cpu", "test", "2", "AVX2", 1, ()), Norms(1.0, 1.0, 1.0, 1.0)
    return SegmentRecord(index, start, end, digest_at(start), digest_at(end), base, steps, environment, norms)


def digest_at(step):
    return hashlib.sha256(b"%d" % step).digest()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 33])
def test_the_bases_of_opened_segments_are_found(count):
    """All records are looked at here; the prover finds those it needs by bisection."""
    steps = [0]
    for index in range(count):
        steps.append(steps[-1] + 1 + index % 3)
    for distance in range(count + 1):
        bases = [None if distance > index else steps[index - distance] for index in range(count)]
        records = [record(index, steps[index], steps[index + 1], bases[index]) for index in range(count)]
        leaves = (b"manifest", *(one.encode() for one in records))
        for wanted in ([0], [count - 1], range(0, count, 2), range(count)):
            needed = {step for index in wanted for step in (steps[index], steps[index + 1], bases[index])} - {None}
            assert SegmentRecords(leaves).needed_states(wanted) == [digest_at(step) for step in sorted(needed)]


@pytest.mark.parametrize("base", [1, 3])
def test_a_base_without_a_snapshot_is_damage(base):
    records = [record(0, 0, 2, None), record(1, 2, 4, None), record(2, 4, 6, base)]
    leaves = (b"manifest", *(one.encode() for one in records))
    with pytest.raises(DamagedError, match=f"a step without a snapshot.*got {base}"):
        SegmentRecords(leaves).needed_states([2])


def number(value):
    return value.to_bytes(8, "big")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"nr\0\0" + number(3), bytes(32)),  # hash of leaf 3
        (b"nr\0\1" + number(1), bytes(32)),  # node over leaves 2 and 3
        (b"lr\0" + number(3), b"nonsense"),
        (b"tr\0" + number(6), b"nonsense"),
        (b"tr\0" + number(6), None),  # the root of another tree
    ],
)
def test_a_damaged_store_gives_no_bundle(fresh, key, value):
    with raw(fresh) as transaction:
        if value is None:
            text = bytes(transaction.get(key))[:-32].replace(b"\n6\n", b"\n7\n", 1)
            value = text + hashlib.sha256(text).digest()
        transaction.put(key, value)
    with polstore.open(fresh) as archive:
        run = archive.run("r")
        if key.startswith(b"tr") and value.count(b"\n7\n"):
            assert run.signed_checkpoint(6).size == 7
        with pytest.raises(DamagedError):
            polstore.prove(run, [0])


def test_a_lost_blob_stops_the_bundle_and_leaves_no_file(fresh, tmp_path):
    with polstore.open(fresh) as archive:
        wanted = archive.run("r").segment(1).steps
    with raw(fresh) as transaction:
        transaction.delete(b"b" + wanted)
    with polstore.open(fresh) as archive:
        run = archive.run("r")
        with pytest.raises(MissingError):
            polstore.prove(run, [1])
        polstore.prove(run, [0]).write(tmp_path / "bundle")
    with raw(fresh) as transaction:
        transaction.put(b"b" + wanted, b"other")
    with polstore.open(fresh) as archive, pytest.raises(DamagedError):
        polstore.prove(archive.run("r"), [1])
