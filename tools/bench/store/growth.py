"""A store as it grows: opening it, finding a segment, proving it, restoring a snapshot, adding one.

One run of a tiny model with a snapshot after every step is recorded, and the store copied at each size. The copies are
measured in turn, one look at each: what the machine does beside meets all sizes alike. A segment is proven with
continuity, as a verifier wants it (a bundle, which carries the records of the whole run), and alone, as an archive may
hand it out (a C2SP tlog-proof); both are written to a file. A snapshot is restored with the one that it is stored
against: an object of the run keeps that for the next time, so each look has its own.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import statistics
import tempfile
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, TensorDataset

import polstore
from polstore.files import write_atomic
from polstore.prover import commit, prove
from polstore.storage.store import open_store
from polstore.wire.keys import SigningKey
from tools.bench.store.clock import timed
from tools.bench.store.files import report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polstore.reader import Archive, Run

__all__ = ["Times", "grow"]

KEY = SigningKey("example.com/bench", bytes(range(32)))
SAMPLES = 64
LOOKS = 100  # segments looked at, drawn by chance; the median counts
WARM = 5  # looks before those, which do not count: the first ones read the file and fill caches
RECORDED = 50  # snapshots whose recording is timed, in each round
ROUNDS = 4  # of recording; each begins with a fresh copy of the store


@dataclass(frozen=True)
class Times:
    """What the store took when it held ``snapshots`` snapshots.

    Attributes:
        snapshots: how many.
        operations: seconds per operation, medians.
        bundle: size of the bundle of one segment, in bytes.
        limit: seconds that reading as many bytes as that bundle has from a file, and hashing them in one go, take.
    """

    snapshots: int
    operations: dict[str, float]
    bundle: int
    limit: float


def grow(sizes: Sequence[int]) -> list[Times]:
    """Record one run up to each of ``sizes`` further steps than its first snapshot, ascending, and measure there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = _stores(folder, sizes)
        report("  measuring")
        times = {"open the store": _in_turn([partial(_open, store) for store in stores], sizes)}
        with ExitStack() as stack:
            archives = [stack.enter_context(polstore.open(store)) for store in stores]
            runs = [archive.run("tiny") for archive in archives]
            bundles = [store.with_suffix(".bundle") for store in stores]
            operations: dict[str, Callable[[Run, Path, int], object]] = {
                "find a segment": lambda run, _, index: run.segment(index),
                "prove a segment": lambda run, bundle, index: prove(run, [index]).write(bundle),
                "inclusion proof of a segment": lambda run, bundle, index: write_atomic(
                    bundle.with_suffix(".tlog-proof"), run.proof_file(index).encode()
                ),
            }
            for operation, work in operations.items():
                each = [partial(work, run, bundle) for run, bundle in zip(runs, bundles, strict=True)]
                times[operation] = _in_turn(each, sizes)
            times["restore a snapshot"] = _in_turn([partial(_restore, archive) for archive in archives], sizes)
            snapshots = [len(run.snapshots) for run in runs]
        times["record a snapshot"] = _recording(stores)
        limits = _in_turn([partial(_limit, bundle) for bundle in bundles], sizes)
        return [
            Times(
                snapshots[number],
                {what: each[number] for what, each in times.items()},
                bundle.stat().st_size,
                limits[number],
            )
            for number, bundle in enumerate(bundles)
        ]


def _stores(folder: Path, sizes: Sequence[int]) -> list[Path]:
    """Record the run, sign it at each size, and return the copies made there."""
    stores: list[Path] = []
    done = 0
    for size in sizes:
        report(f"  {size} snapshots")
        _record(folder / "store", size - done)
        done = size
        with open_store(folder / "store") as opened:
            commit(opened, "tiny", KEY)
        stores.append(shutil.copytree(folder / "store", folder / f"{size}"))
    return stores


def _record(store: Path, steps: int) -> list[float]:
    """Record ``steps`` further steps; return the seconds from each batch to the next, with a snapshot each."""
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
    return [after - before for before, after in pairwise(ends)]


def _recording(stores: Sequence[Path]) -> list[float]:
    """Return the median seconds of a step with its snapshot, recorded into copies of each store in turn."""
    times: list[list[float]] = [[] for _ in stores]
    for _ in range(ROUNDS):
        for store, taken in zip(stores, times, strict=True):
            copy = shutil.copytree(store, store.with_suffix(".copy"))
            taken += _record(copy, RECORDED)[WARM:]
            shutil.rmtree(copy)
    return list(map(statistics.median, times))


def _restore(archive: Archive, index: int) -> None:
    archive.run("tiny").state(index)  # there is a snapshot after every step


def _open(store: Path, _: int) -> None:
    with polstore.open(store) as archive:
        archive.run("tiny")


def _limit(bundle: Path, _: int) -> None:
    hashlib.sha256(bundle.read_bytes()).digest()


def _in_turn(works: Sequence[Callable[[int], object]], counts: Sequence[int]) -> list[float]:
    """Return the median seconds of each work on segments drawn from as many as it has; they take turns."""
    rng = random.Random(0)  # noqa: S311 # no secret
    times: list[list[float]] = [[] for _ in works]
    for look in range(WARM + LOOKS):
        for work, count, taken in zip(works, counts, times, strict=True):
            seconds = timed(partial(work, rng.randrange(count)))
            if look >= WARM:
                taken.append(seconds)
    return list(map(statistics.median, times))
