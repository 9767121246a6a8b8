"""One thread beside the training: jobs are done in order, at most one waits, and putting another blocks until it began.

An error ends the work: it is raised at the next call here, and jobs after it are not done. Knows nothing of runs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from polstore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Background"]

PAUSE = 1e-4  # seconds; what another thread needs to wake up and take the interpreter's lock
SLICE = 5e-4  # seconds of work between two pauses; waking up again takes processor time, so not after each small tensor

T = TypeVar("T")


class Background:
    """Does jobs in a thread that starts with the first one. To be called from one thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: deque[Callable[[], object]] = deque()
        self._busy = False
        self._closing = False
        self._awaited = False  # whether the calling thread waits for the jobs
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, job: Callable[[], object]) -> None:
        """Have a job done after those before it.

        Raises:
            UsageError: the thread is gone, since this is a forked child; or else what an earlier job raised.
        """
        with self._changed:
            self._wait_for(lambda: not self._waiting)
            self._raise()
            if self._thread is None:  # a daemon: whoever forgets to close must still be able to leave the program
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                thread.start()
                self._thread = thread  # now: one that an interrupt kept from starting could not be joined
            self._waiting.append(job)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all jobs are done; raises as `put` does."""
        with self._changed:
            self._wait_for(lambda: not self._waiting and not self._busy)
            self._raise()

    def close(self) -> BaseException | None:
        """Wait until all jobs are done, end the thread, and return the error of a job that failed."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        return self._error

    def unhurried(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items to a job that works on one after the other, and pause now and then while nobody waits for it.

        A thread that trains lets go of the interpreter's lock at every operation, and gets it back from a busy one when
        that lets go of it, too, or after 5 ms. Small tensors are encoded without ever letting go for long enough.
        """
        worked = time.perf_counter()
        for item in items:
            yield item
            if time.perf_counter() - worked > SLICE and not (self._awaited or self._closing):
                time.sleep(PAUSE)
                worked = time.perf_counter()

    def _wait_for(self, done: Callable[[], bool]) -> None:
        if self._thread is not None and not self._thread.is_alive():
            raise UsageError(
                f"{self._name}: its thread is gone", expected="the process that began", got="a forked child"
            )
        self._awaited = True
        try:
            self._changed.wait_for(done)
        finally:
            self._awaited = False

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                self._busy = True
                self._changed.notify_all()
            error = None
            try:
                job()
            except BaseException as caught:  # noqa: BLE001 - whatever it is, the thread that trains has to hear of it
                error = caught
            del job  # and with it the captured state
            with self._changed:
                self._busy = False
                if error is not None:
                    self._error = error
                    self._waiting.clear()
                self._changed.notify_all()
