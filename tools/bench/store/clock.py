"""Wall time and processor time of a piece of work, and waiting until what runs behind it has ended."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Cost", "measured", "settle", "timed"]

TICK = 0.01  # seconds between two looks at the process's CPU time
BUSY = 0.5  # share of a tick, spent on any core, that counts as work going on
QUIET = 0.1  # seconds without work after which a background thread counts as done; it may be waiting for the disk

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a piece of work cost.

    Attributes:
        blocked: seconds until the call returned.
        cpu: seconds of CPU time of the whole process, background threads included, until nothing ran any more.
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

    What shows that something is left: a future as the result, and CPU time that goes on being used.
    """
    cpu = time.process_time()
    began = time.perf_counter()
    result = work()
    blocked = time.perf_counter() - began
    if isinstance(result, Future):
        result.result()
    settle()
    return Cost(blocked, time.process_time() - cpu), result


def settle() -> float:
    """Wait until this process has been idle for `QUIET`; return the seconds from the call to the last sign of work."""
    began = last = time.perf_counter()
    before, cpu = began, time.process_time()
    while True:
        time.sleep(TICK)
        now, used = time.perf_counter(), time.process_time()
        if used - cpu > BUSY * (now - before):
            last = now
        elif now - last >= QUIET:
            return last - began
        before, cpu = now, used
