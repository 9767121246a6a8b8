"""Child processes for the tests that kill, starve and damage: forked from a server that has loaded torch once.

The server uses no thread pool before it forks, and no store is ever opened in it: LMDB's locks do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from contextlib import contextmanager

PATIENCE = 120  # seconds until a child counts as hanging; a round takes a small part of one on an idle machine
PRELOAD = [  # torch loads its compiler when the first optimizer is made
    "torch",
    "torch._dynamo",
    "polstore.recording",
    "polstore.fsck",
    "polstore.prover",
]


class ChildError(AssertionError):
    """What a child raised, as text."""


class DiedError(Exception):
    """A child was ended by a signal, ``signal``, before it had sent its result."""

    def __init__(self, signal):
        super().__init__(f"signal {signal}")
        self.signal = signal


def context():
    """Return the forkserver; started on the first use, with one thread for each library."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(PRELOAD)
    return made


def _serve(pipe, work, arguments):
    import torch

    torch.set_num_threads(1)
    try:
        pipe.send(("done", work(pipe, *arguments)))
    except BaseException:  # noqa: BLE001 - it is shown where the child was started
        pipe.send(("failed", traceback.format_exc()))


class Child:
    """A child that does ``work(pipe, *arguments)``; what it sends through the pipe arrives here."""

    def __init__(self, work, *arguments):
        made = context()
        self._pipe, theirs = made.Pipe()
        self.process = made.Process(target=_serve, args=(theirs, work, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self, patience=PATIENCE):
        """Return what the child sent next as (kind, value); ("done", result) at the end.

        Raises `DiedError` and `ChildError`.
        """
        if not self._pipe.poll(patience):
            self.process.kill()
            raise TimeoutError(f"nothing heard of a child for {patience} seconds")
        try:
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self.process.join()
            raise DiedError(-self.process.exitcode) from error
        if kind == "failed":
            raise ChildError(value)
        return kind, value

    def pending(self, seconds=0):
        """Return whether something has arrived, or the child has ended."""
        return self._pipe.poll(seconds)

    def send(self, value):
        self._pipe.send(value)

    def kill(self):
        self.process.kill()
        self.process.join()

    def close(self):
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.process.close()
        self._pipe.close()


@contextmanager
def child(work, *arguments):
    """A child for the length of a block; killed if it has not ended by then."""
    started = Child(work, *arguments)
    try:
        yield started
    finally:
        started.close()


def call(work, *arguments, patience=PATIENCE):
    """Return what ``work(pipe, *arguments)`` returns in a child, whatever it sends before."""
    with child(work, *arguments) as started:
        while True:
            kind, value = started.receive(patience)
            if kind == "done":
                return value
