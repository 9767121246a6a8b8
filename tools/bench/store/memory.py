"""Peak memory of a training that is recorded, saved by a rival, or left alone: each in a process of its own.

python -m tools.bench.store.memory WORKLOAD MODE [--quick] prints {"resident": bytes, "own": bytes, "state": bytes}. The
first is the kernel's high-water mark of resident memory. That counts pages of the store's file, too, which the kernel
maps ahead of any use and takes back when it needs the room; of what is left without them it keeps no mark, so that is
looked at every few milliseconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager, nullcontext
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
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from tools.bench.store.workloads import Workload

__all__ = ["MODES", "Extra", "extra_memory", "in_status", "own_peak"]

STATUS = Path("/proc/self/status")
MODES = ("plain", "recorded", TORCH, DCP)
EVERY = 5  # steps to a snapshot
SNAPSHOTS = 4  # besides the keyframe
TICK = 0.01  # seconds between two looks at the memory


@dataclass(frozen=True)
class Extra:
    """Memory beyond what the plain loop takes, in bytes.

    Attributes:
        state: size of the state.
        resident: by mode, the peak less that of the plain loop.
        own: by mode, the same of memory that belongs to no file.
    """

    state: int
    resident: dict[str, int]
    own: dict[str, int]


def extra_memory(workload: Workload, *, quick: bool) -> Extra:
    """Run one process per mode and return what each took beyond the plain loop."""
    resident, own, state = {}, {}, 0
    for mode in MODES:
        report(f"  {workload.name}: {mode}")
        command = [sys.executable, "-m", "tools.bench.store.memory", workload.name, mode, *["--quick"][: int(quick)]]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        resident[mode], own[mode], state = answer["resident"], answer["own"], answer["state"]
    return Extra(state, _beyond_plain(resident), _beyond_plain(own))


def _beyond_plain(peaks: Mapping[str, int]) -> dict[str, int]:
    return {mode: peak - peaks["plain"] for mode, peak in peaks.items() if mode != "plain"}


def in_status(status: str, field: str) -> int:
    """Return an amount of memory in bytes from the text of ``/proc/self/status``."""
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) << 10


@contextmanager
def own_peak() -> Iterator[list[int]]:
    """Watch how much memory of the process belongs to no file; the list's last item is the most so far."""
    seen, ended = [0], threading.Event()

    def look() -> None:
        last = False
        while not last:
            last = ended.wait(TICK)  # and one look more, so that what is there at the end is seen in any case
            seen.append(max(seen[-1], in_status(STATUS.read_text(), "RssAnon")))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


def _train(workload: Workload, mode: str) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        loop, paths = Loop(workload), (Path(folder) / f"saved-{number}" for number in range(SNAPSHOTS))
        recording: AbstractContextManager[object] = nullcontext()
        save = _savers(loop, paths).get(mode, lambda: None)
        if mode == "recorded":
            recording = loop.record(Path(folder) / "store", every=EVERY, fidelity=FIDELITIES[0])
        with own_peak() as own, recording:
            loop.fetch()
            for _ in range(SNAPSHOTS):
                loop.steps(EVERY)
                save()
                loop.fetch()
            settle()
        resident = in_status(STATUS.read_text(), "VmHWM")
        return {"resident": resident, "own": own[-1], "state": FlatCopy(flat_state(loop.training)).nbytes}


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
