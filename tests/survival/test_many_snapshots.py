"""Ten thousand snapshots of a tiny model in one run: what it takes to find one does not grow with their number."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

import polstore
from polstore.cli.reading import list_runs
from polstore.codec.snapshot import Snapshot, Tensor
from polstore.prover import commit, prove
from polstore.run_row import RunRow
from polstore.run_writer import RunWriter
from polstore.storage.store import open_store
from polstore.storage.transaction import Handle
from polstore.wire import canonical, merkle
from polstore.wire.environment import Environment
from polstore.wire.keys import SigningKey
from polstore.wire.manifest import Dataset, Initial, Manifest, Optimizer, Recipe
from polstore.wire.steps import Microbatch, Step, Steps

FEW, MANY = 100, 10_000  # segments
WEIGHTS = 20
ENVIRONMENT = Environment("cpu", "test", "2", "AVX2", 1, ())
SAMPLES = [hashlib.sha256(bytes([number])).digest() for number in range(8)]
HYPERPARAMETERS = canonical.encode(("lr", 0.1))
KEY = SigningKey("example.com/alice", bytes(range(32)))
INITIAL = np.random.default_rng(1).standard_normal(WEIGHTS).astype("<f4")


def state(step):
    weights = INITIAL + np.float32(2**-10) * step
    return Snapshot((Tensor("parameter/w", "float32", (WEIGHTS,), weights),), canonical.encode(("step", step)))


def write(store, count):
    hashes = b"".join(SAMPLES)
    manifest = Manifest(
        run="r",
        recipe=Recipe("none", bytes(32)),
        dataset=Dataset(merkle.root(SAMPLES), len(SAMPLES)),
        optimizer=Optimizer("test.Optimizer", hashlib.sha256(HYPERPARAMETERS).digest()),
        seed=bytes(32),
        sampler="free",
        initial=Initial("distribution", state(0).digest()),
        environment=ENVIRONMENT,
        fidelity="lossless",
        every=1,
    )
    row = RunRow(bytes(32), hashlib.sha256(hashes).digest(), 0, 0, 0, complete=False)
    writer = RunWriter.create(store, manifest, row, state(0), [HYPERPARAMETERS, hashes])
    for step in range(count):
        steps = Steps(step, (Step((Microbatch(step, ((step % 8,),)),), (), 1.0),))
        writer.add_segment(step + 1, state(step + 1), steps, ENVIRONMENT, replace(row, number=step + 1))
    writer.finish()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    path = tmp_path_factory.mktemp("many")
    for count in (FEW, MANY):
        with open_store(path / str(count), create=True, sync=False) as store:
            write(store, count)
            commit(store, "r", KEY)
    return {count: path / str(count) for count in (FEW, MANY)}


@pytest.fixture
def reads(monkeypatch):
    """A list that gets one entry for each value or key that LMDB is asked for."""
    made = []

    def counted(name):
        original = getattr(Handle, name)

        def call(self, *arguments):
            result = original(self, *arguments)
            made.extend([name] * (max(len(result), 1) if name == "get_many" else 1))
            return each(result) if name == "keys" else result

        def each(found):
            for key in found:
                made.append(name)
                yield key

        monkeypatch.setattr(Handle, name, call)

    for name in ("get", "get_many", "size", "last_before", "keys"):
        counted(name)
    return made


def places(count):
    """Steps and segments at the same distances from a keyframe and from the leaves' powers of two."""
    return (0, 1, count // 2, count - 1)


def test_reading_one_of_many_takes_no_more_than_one_of_few(stores, reads):
    taken = {}
    for count, path in stores.items():
        reads.clear()
        with polstore.open(path) as archive:
            run = archive.run("r")
            assert archive.runs() == ["r"]
            assert run.complete
            assert run.manifest.every == 1
            opened = len(reads)
            assert len(run.segments) == count
            assert [run.segments[index].end_step for index in places(count)] == [index + 1 for index in places(count)]
            assert run.segments[-1].index == count - 1
            assert [run.steps(index).start_step for index in places(count)] == list(places(count))
            assert (run.newest_snapshot, run.newest_signed_size) == (count, count + 1)
            taken[count] = opened, len(reads)
    assert taken[FEW] == taken[MANY]


def test_listing_the_runs_takes_no_more_where_they_are_long(stores, reads, capsys):
    taken = {}
    for count, path in stores.items():
        reads.clear()
        list_runs(path)
        taken[count] = len(reads)
        assert capsys.readouterr().out.splitlines()[1].split("\t")[:3] == ["r", f"{count}", f"{count}"]
    assert taken[FEW] == taken[MANY]


def test_states_and_proofs_grow_with_their_chain_and_the_tree_only(stores, reads):
    for count, path in stores.items():
        with polstore.open(path) as archive:
            run = archive.run("r")
            root = run.tree_root(count + 1)
            for index in places(count):
                reads.clear()
                assert run.state(index).digest() == state(index).digest()
                assert len(reads) < 3 * 64 + 10  # the descriptions and frames of a chain back to a keyframe
                reads.clear()
                leaf = run.leaves(index + 2)[-1] if index < 2 else run.segment(index).encode()
                assert len(reads) < 10
                reads.clear()
                proof = run.inclusion_proof(index + 1, count + 1)
                assert len(reads) <= 4 * count.bit_length()
                merkle.verify_inclusion(merkle.leaf_hash(leaf), index + 1, count + 1, proof, root)
                reads.clear()
                file = run.proof_file(index)
                assert len(reads) <= 4 * count.bit_length() + 10
                assert (file.proof, file.extra) == (proof, leaf)


def test_a_bundle_of_one_segment_reads_all_leaves_and_little_else(stores, reads):
    """Continuity needs all leaves: that part grows by design, by the leaf and its hash."""
    beside = {}
    for count, path in stores.items():
        with polstore.open(path) as archive:
            reads.clear()
            prove(archive.run("r"), [64])
            beside[count] = len(reads) - 2 * (count + 1)
    assert beside[MANY] - beside[FEW] <= 8 * (MANY.bit_length() - FEW.bit_length())
