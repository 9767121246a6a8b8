"""Small runs for the tests of the archive's operations, made without torch."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from polstore.codec.quantise import quantise
from polstore.codec.snapshot import Snapshot, Tensor
from polstore.run_row import RunRow
from polstore.run_writer import RunWriter
from polstore.wire import canonical, merkle
from polstore.wire.environment import Environment
from polstore.wire.manifest import Dataset, Initial, Manifest, Optimizer, Recipe
from polstore.wire.steps import Microbatch, Step, Steps

ENVIRONMENT = Environment("cpu", "test", "2", "AVX2", 1, ())
SAMPLES = [hashlib.sha256(bytes([number])).digest() for number in range(8)]


def floats(name, values):
    return Tensor(name, "float32", values.shape, np.ascontiguousarray(values, "<f4").reshape(-1))


def state(step, seed=1):
    """A state that moves a little at every step, and whose frozen layer does not."""
    weights = np.random.default_rng(seed).standard_normal((40, 50)) * 0.02
    moved = np.random.default_rng([seed, step]).standard_normal((40, 50))
    frozen = np.random.default_rng(99).standard_normal(3000)  # the same whatever the seed
    tensors = (
        Tensor("buffer/count", "int64", (), np.array([step], "<i8")),
        floats("optimizer/w/exp_avg", moved * 1e-3),
        floats("parameter/frozen", frozen),
        floats("parameter/w", weights + 1e-4 * step * moved),
    )
    return Snapshot(tensors, canonical.encode(("step", step)))


def make(store, name="r", count=6, *, fidelity="float16-writeback", seed=1, complete=True):
    """Write a run of ``count`` segments into a store and return its writer."""
    hypers, hashes = canonical.encode(("lr", 0.1)), b"".join(SAMPLES)
    initial = quantise(state(0, seed), None, fidelity)  # as a recorder begins
    manifest = Manifest(
        run=name,
        recipe=Recipe("none", bytes(32)),
        dataset=Dataset(merkle.root(SAMPLES), len(SAMPLES)),
        optimizer=Optimizer("test.Optimizer", hashlib.sha256(hypers).digest()),
        seed=bytes(32),
        sampler="free",
        initial=Initial("seed", initial.digest()),
        environment=ENVIRONMENT,
        fidelity=fidelity,
        every=1,
    )
    row = RunRow(bytes([seed]) * 32, hashlib.sha256(hashes).digest(), 0, 0, 0, complete=False)
    writer = RunWriter.create(store, manifest, row, initial, [hypers, hashes])
    extend(writer, 0, count, seed)
    if complete:
        writer.finish()
    return writer


def extend(writer, start, end, seed=1, order=None, without_optimizer=0):
    """Write segments up to step ``end``; ``order`` gives the states to use instead of each step's own.

    Snapshots up to step ``without_optimizer`` have no optimizer's state.
    """
    for step in range(start, end):
        steps = Steps(step, (Step((Microbatch(step, ((step % 8,),)),), (), 1.0),))
        end_state = state(step + 1 if order is None else order[step - start], seed)
        if step < without_optimizer:
            kept = tuple(tensor for tensor in end_state.tensors if not tensor.name.startswith("optimizer/"))
            end_state = Snapshot(kept, end_state.scalars)
        writer.add_segment(step + 1, end_state, steps, ENVIRONMENT, replace(writer.row, number=step + 1))
