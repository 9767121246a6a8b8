"""Whole training with a snapshot every so many steps, against the same training in a plain loop.

Recorded and plain rounds of so many steps alternate, and medians count, because absolute times on a shared machine say
little. A recorded round begins with the snapshot of the steps before it, which is encoded while it trains; what is not
finished at its end is waited for and counts as its time. Training with all processors shows what recording costs where
it has to take them from the training; training with one less shows it where there is one to spare, as beside a GPU.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tools.bench.store.clock import settle, timed
from tools.bench.store.files import report
from tools.bench.store.workloads import Loop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.bench.store.workloads import Workload

__all__ = ["Rounds", "train"]


@dataclass(frozen=True)
class Rounds:
    """Seconds of each round of ``every`` steps, trained with so many threads."""

    every: int
    threads: int
    recorded: Sequence[float]
    plain: Sequence[float]


def train(workload: Workload, fidelity: str, rounds: int, every: int, threads: int) -> Rounds:
    """Train both ways for ``rounds`` rounds with so many threads, after a round that warms up."""
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _train(workload, fidelity, rounds, every)
    finally:
        torch.set_num_threads(usual)


def _train(workload: Workload, fidelity: str, rounds: int, every: int) -> Rounds:
    recorded: list[float] = []
    plain: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        ordinary, watched = Loop(workload), Loop(workload)
        with watched.record(Path(folder) / "store", every=every, fidelity=fidelity):
            watched.fetch()
            watched.steps(every)
            ordinary.steps(2)
            for number in range(rounds + 1):
                began = time.perf_counter()
                watched.fetch()  # the snapshot
                watched.steps(every)
                ended = time.perf_counter()
                recorded.append(ended - began + settle())
                plain.append(timed(lambda: ordinary.steps(every)))
                report(f"  {workload.name}: round {number + 1} of {rounds + 1}")
    return Rounds(every, torch.get_num_threads(), recorded[1:], plain[1:])  # the first warms up, and takes a keyframe
