"""Wall time and processor time of a piece of work, and waiting until what runs behind it has ended."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Cost", "measured", "settle", "timed"]

TASKS = Path("/proc/self/task")  # one directory for each thread of this process
TICK = 0.005  # seconds between two looks at the threads
QUIET = 0.05  # seconds in which no thread ran after which the background counts as done: beyond any hand-over
WORKING = (
    "R",
    "D",
)  # running or wanting to, and waiting for the disk; on a busy machine CPU time alone tells too little

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a piece of work cost.

    Attributes:
        blocked: seconds until the call returned.
        cpu: seconds of CPU time of the whole process, background threads included, until nothing ran any more; less
            what looking whether anything runs took itself.
    """

    blocked: float
    cpu: float


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measured(work: Callable[[], T]) -> tuple[Cost, T]:
    """Do ``work``, wait for what it left running in the background, and return the cost with its result.

    What shows that something is left: a future as the result, and threads that are still at work.
    """
    cpu = time.process_time()
    began = time.perf_counter()
    result = work()
    blocked = time.perf_counter() - began
    if isinstance(result, Future):
        result.result()
    own = time.thread_time()
    settle()
    own = time.thread_time() - own
    return Cost(blocked, time.process_time() - cpu - own), result


def settle() -> float:
    """Wait until no other thread has run for `QUIET`; return the seconds from the call to the last sign of work."""
    began = last = time.perf_counter()
    while True:
        now = time.perf_counter()
        if _others_work():
            last = now
        elif now - last >= QUIET:
            return last - began
        time.sleep(TICK)


def _others_work() -> bool:
    """Say whether another thread that Python started is at work.

    OpenMP's threads spin for milliseconds after their last work, whoever gave it to them; nobody waits for that.
    """
    for thread in threading.enumerate():
        if thread.native_id is not None and thread is not threading.current_thread():
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended in between
                state = (TASKS / str(thread.native_id) / "stat").read_text().rpartition(")")[2].split()[0]
                if state in WORKING:
                    return True
    return False
