"""Peak memory of a training that is recorded, saved by a rival, or left alone: each in a process of its own.

python -m tools.bench.store.memory WORKLOAD MODE [--quick] prints {"peak": bytes, "state": bytes}. The peak is the
kernel's high-water mark of resident memory, which counts pages of the store's file that are mapped as well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from polstore.codec.quantise import FIDELITIES
from tools.bench.store.clock import settle
from tools.bench.store.files import report
from tools.bench.store.rivals import DCP, TORCH, AsyncSave, FlatCopy, flat_state, whole_state
from tools.bench.store.workloads import WORKLOADS, Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tools.bench.store.workloads import Workload

__all__ = ["MODES", "Extra", "extra_memory", "high_water"]

STATUS = Path("/proc/self/status")
MODES = ("plain", "recorded", TORCH, DCP)
EVERY = 5  # steps to a snapshot
SNAPSHOTS = 4  # besides the keyframe


@dataclass(frozen=True)
class Extra:
    """Memory beyond what the plain loop takes, in bytes.

    Attributes:
        state: size of the state.
        modes: by mode, the peak less that of the plain loop.
    """

    state: int
    modes: dict[str, int]


def extra_memory(workload: Workload, *, quick: bool) -> Extra:
    """Run one process per mode and return what each took beyond the plain loop."""
    peaks, state = {}, 0
    for mode in MODES:
        report(f"  {workload.name}: {mode}")
        command = [sys.executable, "-m", "tools.bench.store.memory", workload.name, mode, *["--quick"][: int(quick)]]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        peaks[mode], state = answer["peak"], answer["state"]
    return Extra(state, {mode: peak - peaks["plain"] for mode, peak in peaks.items() if mode != "plain"})


def high_water(status: str) -> int:
    """Return the peak of resident memory in bytes from the text of ``/proc/self/status``."""
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def _train(workload: Workload, mode: str) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        loop, paths = Loop(workload), (Path(folder) / f"saved-{number}" for number in range(SNAPSHOTS))
        recording: AbstractContextManager[object] = nullcontext()
        save = _savers(loop, paths).get(mode, lambda: None)
        if mode == "recorded":
            recording = loop.record(Path(folder) / "store", every=EVERY, fidelity=FIDELITIES[0])
        with recording:
            loop.fetch()
            for _ in range(SNAPSHOTS):
                loop.steps(EVERY)
                save()
                loop.fetch()
            settle()
        peak = high_water(STATUS.read_text())
        return {"peak": peak, "state": FlatCopy(flat_state(loop.training)).nbytes}


def _savers(loop: Loop, paths: Iterator[Path]) -> dict[str, Callable[[], object]]:
    async_save = AsyncSave()
    return {
        TORCH: lambda: torch.save(whole_state(loop.training), next(paths)),
        DCP: lambda: async_save(flat_state(loop.training), next(paths)),
    }


def main() -> int:
    """Train as the command line says and print the peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    workload = WORKLOADS[arguments.workload]
    print(json.dumps(_train(workload.small() if arguments.quick else workload, arguments.mode)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
