"""A store as it grows: opening it, finding a segment, proving it, restoring a snapshot, adding one.

One run of a tiny model with a snapshot after every step is recorded, stopped, measured and taken up again.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, TensorDataset

import polstore
from polstore.prover import commit, prove
from polstore.storage.store import open_store
from polstore.wire.keys import SigningKey
from tools.bench.store.clock import timed
from tools.bench.store.files import report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Times", "grow"]

KEY = SigningKey("example.com/bench", bytes(range(32)))
SAMPLES = 64
LOOKS = 20  # segments looked at, drawn by chance; the median counts
LAST = 50  # snapshots whose recording is timed


@dataclass(frozen=True)
class Times:
    """Seconds per operation, medians, when the store held ``snapshots`` snapshots; and the bundle's size in bytes."""

    snapshots: int
    operations: dict[str, float]
    bundle: int


def grow(sizes: Sequence[int]) -> list[Times]:
    """Record one run up to each of ``sizes`` snapshots in turn, ascending, and measure there."""
    with tempfile.TemporaryDirectory() as folder:
        store, outcome = Path(folder) / "store", []
        done = 0
        for size in sizes:
            report(f"  {size} snapshots")
            adding = _record(store, size - done)
            done = size
            with open_store(store) as opened:
                commit(opened, "tiny", KEY)
            outcome.append(_measure(store, Path(folder) / "bundle", adding))
        return outcome


def _record(store: Path, steps: int) -> float:
    """Record ``steps`` further steps; return the median seconds from one batch to the next, with a snapshot each."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loader = DataLoader(TensorDataset(torch.randn(SAMPLES, 4), torch.arange(SAMPLES) % 3), batch_size=4, shuffle=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no recipe")  # nobody replays this
        recorder = polstore.record(model, optimizer, loader, every=1, store=store, run="tiny", seed=0, resume=True)
    ends: list[float] = []
    with recorder:
        while len(ends) < steps:
            for inputs, labels in loader:
                loss = torch.nn.functional.cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                ends.append(time.perf_counter())
                if len(ends) == steps:
                    break
    last = ends[-LAST:]
    return statistics.median(after - before for before, after in pairwise(last))


def _measure(store: Path, bundle: Path, adding: float) -> Times:
    def opening() -> None:
        with polstore.open(store) as archive:
            archive.run("tiny")

    operations = {"open the store": statistics.median(timed(opening) for _ in range(LOOKS))}
    with polstore.open(store) as archive:
        run = archive.run("tiny")
        snapshots, count = len(run.snapshots), len(run.segments)
        drawn = random.Random(count).choices(range(count), k=LOOKS)  # noqa: S311 # no secret
        operations |= {
            "find a segment": _median(run.segment, drawn),
            "prove a segment": _median(lambda index: prove(run, [index]).write(bundle), drawn),
            "restore a snapshot": _median(run.state, drawn),  # there is one after every step
            "record a snapshot": adding,
        }
    return Times(snapshots, operations, bundle.stat().st_size)


def _median(work: Callable[[int], object], drawn: Sequence[int]) -> float:
    """Return the median seconds of ``work`` on the segments drawn."""
    return statistics.median(timed(partial(work, index)) for index in drawn)
