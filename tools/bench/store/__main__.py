"""What a store costs, against named rivals on the same training.

python -m tools.bench.store [--quick] [--json] [--save] [--only PART ...] [--workload NAME ...]

Parts: trajectory (size, time blocked, CPU time, restoring), training (whole training with a snapshot every 20 steps),
memory, growth (10 to 10,000 snapshots), scale (1 to 25 million parameters). Ratios above 1 are better for us. Rivals
that are not installed are named on standard error and left out: the extra `bench`, and Debian's packages restic and
borgbackup, bring them.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import replace

import torch

from polstore.codec.quantise import FIDELITIES
from tools.bench.store import rows
from tools.bench.store.files import report
from tools.bench.store.growth import grow
from tools.bench.store.memory import extra_memory
from tools.bench.store.rivals import TORCH, ZIPNN, ZSTD
from tools.bench.store.training import train
from tools.bench.store.trajectory import follow
from tools.bench.store.workloads import SCALE, WORKLOADS, Workload
from tools.bench.table import Result, save, show

PARTS = ("trajectory", "training", "memory", "growth", "scale")
ROUNDS, QUICK_ROUNDS = 4, 2
EVERY, QUICK_EVERY = 20, 4  # steps of a round of whole training, and to its snapshot
FEWER = 4  # snapshots in the fidelities that are not the default, of which mostly the size is wanted
GROWTH, QUICK_GROWTH = (10, 100, 1000, 10_000), (10, 100)
TITLE = "What a store costs"
COMPRESSORS = frozenset({TORCH, ZSTD, ZIPNN})


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects")
    parser.add_argument("--save", action="store_true", help="write tools/bench/results/store.*")
    parser.add_argument("--quick", action="store_true", help="tiny models: to try the program, not to measure")
    parser.add_argument("--only", action="append", choices=PARTS, help="run this part only; may be given repeatedly")
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="likewise for a workload")
    arguments = parser.parse_args()
    if arguments.save and (arguments.quick or arguments.only or arguments.workload):
        parser.error("--save keeps figures of whole runs only: leave out --quick, --only and --workload")
    quick: bool = arguments.quick
    workloads = [WORKLOADS[name] for name in arguments.workload or WORKLOADS]
    if quick:
        workloads = [workload.small() for workload in workloads]
    results: list[Result] = []
    for part in arguments.only or PARTS:
        results += run_part(part, workloads, quick=quick)
    show(results, TITLE + (", tiny models: no figure counts" if quick else ""), as_json=arguments.json)
    if arguments.save:
        for path in save(results, "store", TITLE, notes(workloads)):
            report(f"wrote {path}")
    return 0


def run_part(part: str, workloads: list[Workload], *, quick: bool) -> list[Result]:
    """Run one part over all workloads that it is for."""
    results: list[Result] = []
    if part == "growth":
        report("growth")
        return rows.growth_rows(grow(QUICK_GROWTH if quick else GROWTH))
    if part == "scale":
        report("scale")
        only = frozenset({TORCH})
        sizes = [workload.small() if quick else workload for workload in SCALE]
        return rows.scale_rows([follow(workload, FIDELITIES[0], rivals=only) for workload in sizes])
    for workload in workloads:
        report(f"{part}: {workload.name}")
        if part == "trajectory":
            # Starting restic, borg and DVC takes most of a trial's time, so a trial does it once.
            results += trajectory(workload, repositories=not quick or workload is workloads[0])
        elif part == "training":
            count, every = (QUICK_ROUNDS, QUICK_EVERY) if quick else (ROUNDS, EVERY)
            usual = torch.get_num_threads()
            for threads in sorted({max(usual - 1, 1), usual}):
                rounds = train(workload, FIDELITIES[0], count, every, threads)
                results += rows.training_rows(workload.name, rounds)
        elif workload.large:
            results += rows.memory_rows(workload.name, extra_memory(workload, quick=quick))
    return results


def trajectory(workload: Workload, *, repositories: bool) -> list[Result]:
    """Measure one workload: in the default fidelity with all rivals, in the others with the compressors."""
    results = []
    for fidelity in FIDELITIES:
        default = fidelity == FIDELITIES[0]
        followed = workload if default else replace(workload, snapshots=min(workload.snapshots, FEWER))
        figures = follow(
            followed, fidelity, rivals=None if default else COMPRESSORS, repositories=default and repositories
        )
        aim = workload.size_aims.get(fidelity)
        results += rows.trajectory_rows(workload.name, fidelity, figures, aim, default=default)
    return results


def notes(workloads: list[Workload]) -> list[str]:
    """Return what one has to know to read the figures."""
    return [
        f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        *(f"{one.name}: a snapshot every {one.every} steps, {dict(one.config)}" for one in workloads),
        "Sizes: the rivals get the live state that our snapshot is then taken of, in the same training.",
        "A stored snapshot is one between keyframes; a whole store has one in few here, one in 64 in a long run.",
        "Blocked: the time of the fetch at which a snapshot is taken, less that of an ordinary fetch.",
        "What the recorder has not finished when the next snapshot is due counts as blocked, too.",
        "CPU time: of the whole process, until nothing runs in the background any more.",
        "Restoring: until all tensors are in memory; ours are checked against the state digest, torch.load's are not.",
        "Memory: the peak of a process, less that of one that trains without recording; gpt only.",
        "Of mapped files, the kernel maps pages ahead of any use and takes them back when it needs the room.",
        "Growth and scale compare us with ourselves.",
    ]


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
    sys.exit(main())
