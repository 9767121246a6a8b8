"""Two hundred honest runs, each of another seed and shape of training: none is rejected in its own class."""

from __future__ import annotations

import itertools

import pytest

from tests.replay.harness import Bench

RUNS = 200
PER_TEST = 25  # so that several workers can share them
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw")
KINDS = ("plain", "batchnorm", "dropout", "tied")
FIDELITIES = ("float16-writeback", "compact-writeback", "lossless")
SHAPES = tuple(itertools.product(OPTIMIZERS, KINDS, FIDELITIES))


@pytest.mark.parametrize("first", range(0, RUNS, PER_TEST))
def test_no_honest_run_is_rejected(first, tmp_path):
    bench = Bench(tmp_path)
    for number in range(first, first + PER_TEST):
        optimizer, kind, fidelity = SHAPES[number % len(SHAPES)]
        run = f"r{number}"
        bench.record(run, steps=6, every=3, seed=number, optimizer=optimizer, kind=kind, fidelity=fidelity)
        bench.require_accepted(run)
