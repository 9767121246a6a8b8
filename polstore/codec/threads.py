"""Work on independent parts in a few threads, with the outcome of doing them one after the other.

zstd, hashlib and large numpy operations release the interpreter's lock, so the codec gains from it. Does no I/O.
"""

from __future__ import annotations

import os
import threading
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


def in_order(work: Callable[[T], R], parts: Sequence[T], threads: int | None = None) -> list[R]:
    """Return what ``work`` returns for each part, in their order; if it raises, what it raises for the first that does.

    Parts after that one may have been worked on or not. The calling thread works, too, and takes the next part when it
    is through with one: whoever else keeps a processor busy (torch's threads wait actively) holds nothing up.

    Args:
        work: may be called from several threads at once.
        parts: what to call it with.
        threads: how many, the calling one included; as many as can work at once if None.
    """
    results: dict[int, R] = {}
    errors: dict[int, BaseException] = {}
    numbered = iter(list(enumerate(parts)))

    def drain() -> None:
        while not errors and (taken := next(numbered, None)) is not None:
            number, part = taken
            try:
                results[number] = work(part)
            except BaseException as error:  # noqa: BLE001 - raised below, in the calling thread
                errors[number] = error

    wanted = min(len(parts), available() if threads is None else threads)
    others = [threading.Thread(target=drain, name="polstore-codec", daemon=True) for _ in range(wanted - 1)]
    for other in others:
        other.start()
    drain()
    for other in others:
        other.join()
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(parts))]
