"""Recording for long takes no more memory than recording for a while."""

from __future__ import annotations

import gc
import tracemalloc

import children
import training

WIDTH = 8000  # times 34 weights in float32: 1 MB, and their moments
WARM, LONG = 40, 200  # snapshots
TOLERANCE = 512 << 10  # bytes; a list of the snapshots' digests stays far below, one captured array of 3 MB does not


def record(_, recipe, store):
    """Return the bytes that Python holds and the process's resident bytes, at every tenth snapshot."""
    measured = []

    def each(step):
        if step == WARM:
            tracemalloc.start(1)
        if step >= WARM and step % 10 == 0:
            gc.collect()
            measured.append((tracemalloc.get_traced_memory()[0], resident()))

    training.record(recipe, store, LONG, every=1, width=WIDTH, each=each)
    return measured


def resident():
    with open("/proc/self/status") as file:  # noqa: PTH123
        (line,) = [line for line in file if line.startswith("RssAnon:")]
    return int(line.split()[1]) << 10
