"""Several segments at once: each worker is a process with a replay session of its own, all on the verifier's device.

A worker gets the way to the bundle and the SHA-256 of the index that has passed checks 0 to 9. It opens the bundle
itself and parses what it replays with the functions of those checks; nothing that was made of a proof is handed over as
a Python object. What comes back is this program's own. The first segment in the order of the run that fails decides, so
a verdict is the same for any number of workers. Each holds the model, and up to 19 snapshots (`polverify.replaying`).
Implements specs/verification.md, section "Several segments at once".
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, TypeAlias

from polstore import terminal
from polstore.errors import CallerError, PolstoreError
from polstore.wire.manifest import Manifest
from polverify.bundle_file import BundleFile
from polverify.capability import narrow
from polverify.continuity import check_continuity
from polverify.data import check_steps
from polverify.replaying import REPLAYING, Decided, Material, replay_in_turn
from polverify.request import Request
from polverify.states import States

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnContext
    from pathlib import Path
    from types import TracebackType

__all__ = ["open_material", "replay_all"]

PATIENCE = 10.0  # seconds in which a worker that has nothing to do should end


def replay_all(
    material: Material, file: BundleFile, opened: Sequence[int], progress: Callable[[int], None]
) -> Iterator[Decided]:
    """Replay segments, as many at once as the request says, and yield what each came to, in the order of the run.

    Args:
        material: what replays in this process take.
        file: the bundle; checks 0 to 9 have passed.
        opened: the segments, ascending.
        progress: told the steps trained so far, of all segments.

    Raises:
        ProofError: a segment does not match; the first in the order of the run decides.
        CallerError: this machine cannot run it, or a worker died.
    """
    request = material.request
    jobs = min(request.jobs, len(opened))
    if jobs < 2:
        yield from replay_in_turn(material, opened, progress)
        return
    job = _Job(_for_replays(request, file.path), file.path, file.digest)
    waiting, answers, steps = deque(opened), dict[int, _Answer](), dict[int, int]()
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(context, job)) for _ in range(jobs)]
        for index in opened:
            while index not in answers:
                for worker in workers:
                    if not worker.busy and waiting:
                        worker.begin(waiting.popleft())
                for worker in _ready(workers):
                    message = worker.receive()
                    if isinstance(message, _Progress) and message.what == REPLAYING:
                        steps[worker.index] = message.done
                        progress(sum(steps.values()))
                    elif isinstance(message, _Progress):
                        request.progress(message.what, message.done, message.total)
                    else:
                        answers[worker.index] = message
                        if isinstance(message, _Fault):
                            waiting.clear()  # all of it comes later in the run
            answer = answers.pop(index)
            if isinstance(answer, _Fault):
                raise answer.kind(answer.message)
            yield answer
        for worker in workers:
            worker.dismiss()


@contextmanager
def open_material(request: Request, path: Path, digest: bytes) -> Iterator[Material]:
    """Open a bundle that has passed checks 0 to 9, and build the recipe in this process.

    Args:
        request: what the verifier wants to know.
        path: of the bundle.
        digest: SHA-256 of the index that has passed them; blobs are hashed whenever they are read.

    Raises:
        CallerError: another bundle lies there now, or as `polverify.replay.session.Session` raises.
    """
    with BundleFile(path) as file:
        if file.digest != digest:
            raise CallerError("bundle was replaced while it was checked", expected=digest, got=file.digest)
        manifest = Manifest.parse(file.bundle.leaves[0])
        records = check_continuity(file.bundle.leaves, file.bundle.root, manifest)
        opened = [records[segment.index] for segment in file.bundle.opened]
        steps = {record.index: check_steps(record, file.blob(record.steps), manifest.dataset) for record in opened}
        states = States(file.bundle.snapshots, file.blob)
        narrow(manifest.environment)
        from polverify.replay.session import Session  # loads torch, which must not happen sooner

        session = Session(request.recipe, manifest, request.device)
        states.limit(session.state_bytes)
        yield Material(request, manifest, records, steps, states, session)


@dataclass(frozen=True)
class _Job:
    """What a worker is told when it starts."""

    request: Request
    bundle: Path
    digest: bytes


@dataclass(frozen=True)
class _Progress:
    """What a worker says now and then."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class _Fault:
    """How a segment failed; as text, for an error may hold anything."""

    kind: type[Exception]
    message: str


_Answer: TypeAlias = Decided | _Fault


class _OrphanedError(Exception):
    """The program that started this worker has ended."""


class _Worker:
    """One process, seen from the program that started it; a context manager.

    Attributes:
        index: the segment that it was given last.
        busy: whether it is at it.
        connection: what its messages come by.
    """

    def __init__(self, context: SpawnContext, job: _Job) -> None:
        self.index = -1
        self.busy = False
        self.connection, self._theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(job, self._theirs), name="polverify-replay")

    def __enter__(self) -> _Worker:
        try:
            self._process.start()
        except (OSError, RuntimeError) as error:
            raise CallerError(f"a process for replays cannot be started: {error}") from error
        self._theirs.close()  # so that the other end is the only one, and its end is noticed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dismiss()
        if kind is not None:
            self._process.terminate()
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def begin(self, index: int) -> None:
        """Give it a segment to replay."""
        self.index, self.busy = index, True
        with suppress(OSError):  # it has died, which `receive` tells
            self.connection.send(index)

    def receive(self) -> _Progress | _Answer:
        """Return what it says next: progress, or what the segment came to; a fault if it has died."""
        message: _Progress | _Answer
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self._process.join(PATIENCE)
            text = f"the process that replayed segment {self.index} died, exit code {self._process.exitcode}"
            message = _Fault(CallerError, text)
        self.busy = isinstance(message, _Progress)
        return message

    def dismiss(self) -> None:
        """Let it end by itself, once it is at no segment."""
        self.connection.close()


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """Wait until some of those at work have something to say, and return them."""
    ready = wait([worker.connection for worker in workers if worker.busy])
    return [worker for worker in workers if worker.connection in ready]


def _for_replays(request: Request, path: Path) -> Request:
    """Return what a worker needs of a request: nothing of trust, which has been judged, and nothing that calls back."""
    return Request(
        signed_root=b"",
        keys=(),
        bundle=path,
        recipe=request.recipe,
        device=request.device,
        tolerant=request.tolerant,
        calibration=request.calibration,
        d_ref=dict(request.d_ref),
        criterion=request.criterion,
    )


def _work(job: _Job, connection: Connection) -> None:
    """Replay segments until nobody asks for more; the main function of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program that started it ends it

    def say(what: str, done: int, total: int) -> None:
        try:
            connection.send(_Progress(what, done, total))
        except OSError as error:
            raise _OrphanedError from error

    material: Material | None = None
    request = replace(job.request, progress=say)
    with suppress(EOFError, _OrphanedError, BrokenPipeError), ExitStack() as stack:
        while True:
            index: int = connection.recv()
            answer: _Answer
            try:
                with terminal.recipe_at_work():
                    if material is None:
                        material = stack.enter_context(open_material(request, job.bundle, job.digest))
                    (answer,) = replay_in_turn(material, [index], lambda done: say(REPLAYING, done, 0))
            except (PolstoreError, MemoryError, OSError) as error:
                answer = _Fault(type(error), str(error))
            connection.send(answer)
