"""One training, recorded once, whose every snapshot all rivals are given, too: size, blocked time, CPU time, restoring.

The rivals save the live state just before our snapshot of it is taken, so nobody sees what our quantisation leaves. A
snapshot is taken when the loop fetches its next batch; blocked is the time of that fetch, less that of an ordinary one.
In the first half of the rounds the training goes on at once, and what the recorder has not finished when the next
snapshot is due counts as blocked. In the second half the loop waits for it, to see all the CPU time that it uses.
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import zstandard

import polstore
from tools.bench.store.clock import Cost, measured, settle, timed
from tools.bench.store.files import report, room
from tools.bench.store.repositories import Kept, keep_all
from tools.bench.store.rivals import FlatCopy, Savers, flat_state
from tools.bench.store.workloads import Loop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.reader import Run
    from tools.bench.store.workloads import Workload

__all__ = ["Figures", "follow", "stored_bytes"]

LIMIT_BYTES = 64 << 20  # of the state that the limits are measured on; beyond all caches
REPEATS = 3


@dataclass
class Figures:
    """What was measured along one training; sizes in bytes, times in seconds.

    Attributes:
        parameters: of the model.
        state: size of the whole state's tensors.
        blocked: per snapshot, how long training was blocked.
        cpu: per snapshot, CPU time of the whole process.
        stored: mean size of a stored snapshot between keyframes, its description included.
        snapshots: how many the store holds, that where recording began included.
        store: size of the store on disk.
        restored: per snapshot, time until its tensors were in memory and checked.
        loaded: per snapshot, the same by torch.load, unchecked.
        costs: by rival, what each snapshot cost.
        sizes: by rival, what each snapshot took.
        kept: by rival, what a repository of all files of torch.save takes.
        limits: by name, how fast the same bytes can be worked on at all, in bytes per second.
    """

    parameters: int
    state: int
    blocked: list[float]
    cpu: list[float]
    stored: float = 0.0
    snapshots: int = 0
    store: int = 0
    restored: list[float] = field(default_factory=list)
    loaded: list[float] = field(default_factory=list)
    costs: dict[str, list[Cost]] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)


def follow(
    workload: Workload, fidelity: str, *, rivals: frozenset[str] | None = None, repositories: bool = False
) -> Figures:
    """Record one training in a temporary folder and return its figures.

    Args:
        workload: what is trained.
        fidelity: of the recording.
        rivals: names from `tools.bench.store.rivals`; None for all of them. torch.save is always among them.
        repositories: whether backup programs are given the files, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        loop = Loop(workload)
        savers = Savers(loop.training, Path(folder) / "saved", only=rivals)
        figures = _record(loop, workload, fidelity, store, savers)
        figures.costs, figures.sizes = dict(savers.costs), dict(savers.sizes)
        figures.store = room(store)
        with polstore.open(store) as archive:
            run = archive.run("bench")
            figures.stored = stored_bytes(run)
            figures.snapshots = len(run.snapshots)
            figures.restored, figures.loaded = _restore(run, savers.files)
        shutil.rmtree(store)
        if repositories:
            figures.kept = keep_all(savers.files, Path(folder))
    return figures


def stored_bytes(run: Run) -> float:
    """Return what one snapshot between keyframes takes: its frames and its description."""
    stored = [run.stored_snapshots(record.end_state)[0] for record in run.segments]
    return statistics.mean(one.stored_bytes + len(one.encode()) for one in stored if one.base is not None)


def _record(loop: Loop, workload: Workload, fidelity: str, store: Path, savers: Savers) -> Figures:
    blocked: list[float] = []
    cpu: list[float] = []
    with loop.record(store, every=workload.every, fidelity=fidelity):
        savers.save(warm=True)
        loop.fetch()
        unfinished = False  # whether the last snapshot of `blocked` may have been encoded while the training went on
        for number in range(workload.snapshots + 1):  # the first warms up
            loop.steps(workload.every)
            behind = settle()
            if unfinished:
                blocked[-1] += behind
            savers.save(warm=not number)
            alone = number > workload.snapshots // 2
            if alone:
                cost, _ = measured(loop.fetch)
                cpu.append(cost.cpu)
                seconds = cost.blocked
            else:
                seconds = timed(loop.fetch)
            if number:
                blocked.append(max(seconds - statistics.median(loop.ordinary), 0.0))
            unfinished = bool(number) and not alone
            report(f"  {workload.name}, {fidelity}: snapshot {number + 1} of {workload.snapshots + 1}")
        flat = FlatCopy(flat_state(loop.training))
        flat.copy()
        limits = _limits(flat)
    half = workload.snapshots // 2
    parameters = sum(parameter.numel() for parameter in loop.training.model.parameters())
    return Figures(parameters, flat.nbytes, blocked[:half], cpu, limits=limits)


def _restore(run: Run, files: Sequence[Path]) -> tuple[list[float], list[float]]:
    """Return the seconds that each snapshot takes from our store and from a file of torch.save, one after the other."""
    restored, loaded = [], []
    for step, file in list(zip(run.snapshots, files, strict=True))[1:]:
        restored.append(timed(lambda: run.state(step)))  # noqa: B023 # called at once
        loaded.append(timed(lambda: torch.load(file)))  # noqa: B023
    return restored, loaded


def _limits(state: FlatCopy) -> dict[str, float]:
    data = state.buffers[torch.float32].view(torch.uint8).numpy()[:LIMIT_BYTES].tobytes()
    source = np.frombuffer(data, np.uint8)
    target = np.empty_like(source)
    compressor = zstandard.ZstdCompressor(level=1)
    works = {
        "memcpy": lambda: np.copyto(target, source),
        "SHA-256": lambda: hashlib.sha256(data).digest(),
        "zstd level 1": lambda: compressor.compress(data),
    }
    return {name: len(data) / min(timed(work) for _ in range(REPEATS)) for name, work in works.items()}
