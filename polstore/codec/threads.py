"""Work on independent parts in a few threads, with the outcome of doing them one after the other.

zstd, hashlib and large numpy operations release the interpreter's lock, so the codec gains from it. Does no I/O.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["MAX_THREADS", "available", "in_order"]

MAX_THREADS = 8  # each holds a group of every stream it reads, and memory bandwidth is shared

T = TypeVar("T")
R = TypeVar("R")


def available() -> int:
    """Return how many threads can work at once."""
    return min(os.cpu_count() or 1, MAX_THREADS)


def in_order(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """Return what ``work`` returns for each part, in their order; if it raises, what it raises for the first that does.

    Parts after that one may have been worked on or not. With one part or one processor everything is done here.
    """
    threads = min(len(parts), available())
    if threads <= 1:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(threads, thread_name_prefix="polstore-codec") as pool:
        return list(pool.map(work, parts))
