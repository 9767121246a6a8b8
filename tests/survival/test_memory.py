"""Recording for long takes no more memory than recording for a while."""

from __future__ import annotations

import gc
import tracemalloc
from statistics import median

import children
import training

WIDTH = 2700  # times 34 weights in float32, and their moments: a state of 1.1 MB
WARM, LONG = 40, 200  # snapshots
PYTHON_TOLERANCE = 256 << 10  # bytes, over 80 snapshots: from each, less than a hundredth of its state may stay
RESIDENT_TOLERANCE = 8 << 20  # bytes; likewise less than a tenth: allocators give back what they like


def record(_, recipe, store):
    """Return the bytes that Python holds and the process's resident bytes, at every tenth snapshot."""
    measured = []
    written = training.Written()

    def each(step):
        if step == WARM:
            tracemalloc.start(1)
        if step > WARM and step % 10 == 0:
            written.wait(step - 1)  # so that nothing is under way
            gc.collect()
            measured.append((tracemalloc.get_traced_memory()[0], resident()))

    training.record(recipe, store, LONG, every=1, width=WIDTH, each=each)
    return measured


def resident():
    with open("/proc/self/status") as file:  # noqa: PTH123
        (line,) = [line for line in file if line.startswith("RssAnon:")]
    return int(line.split()[1]) << 10


def test_memory_does_not_grow_with_the_snapshots(tmp_path):
    measured = children.call(record, training.recipe_file(tmp_path), tmp_path / "st")
    half = len(measured) // 2
    for index, tolerance in enumerate((PYTHON_TOLERANCE, RESIDENT_TOLERANCE)):
        # the middle: at a keyframe there are two bases for a moment
        before, after = (median(taken[index] for taken in part) for part in (measured[:half], measured[half:]))
        assert after <= before + tolerance, measured
