"""The recorder: turns a training loop into a run under proof.

    with polstore.record(model, optimizer, loader, every=50, store="runs", run="first") as rec:
        for epoch in range(rec.epoch, epochs):
            for inputs, labels in loader:
                ...

A step begins when the loop is handed its first batch and ends when the optimizer has stepped; what the loop still does
before the next batch (a scheduler, averaged weights) belongs to it. Of a recipe, a step is what its ``step`` does, from
beginning to end. At that boundary the state is captured if a snapshot is due, and the generators are seeded for the
next step. A replay starts a segment without gradients, so they are dropped at each snapshot. Encoding, hashing and
writing go on in a thread beside the training, one snapshot at a time; an error there is raised at the next snapshot or
at the end. Loops that a loader cannot show call `Recorder.step`.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.amp import GradScaler

from polstore.adapters.torch_loader import LoaderTap, Position
from polstore.background import Background
from polstore.codec.live.capture import Capture
from polstore.codec.live.environment import detect
from polstore.codec.live.randomness import seed_all
from polstore.codec.live.state import LiveState, hyperparameters, loss_value
from polstore.errors import TrainingError, UsageError
from polstore.wire.randomness import Stream, stream_seed
from polstore.wire.steps import Groups, Microbatch, Step, Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from polstore.codec.live.recipe import Training
    from polstore.run_writer import RunWriter
    from polstore.wire.environment import Environment

__all__ = ["Recorder"]


class Recorder:
    """Records one training loop between ``__enter__`` and ``__exit__``; made by `polstore.record`.

    Leaving the ``with`` block in order writes the last snapshot, however short its segment; leaving it through an
    exception writes nothing more, and the run can be resumed from its last snapshot.
    """

    def __init__(
        self,
        resources: ExitStack,
        writer: RunWriter,
        live: LiveState,
        loader: Any,
        device: str,
        position: Position,
        step: int,
    ) -> None:
        self._resources = resources  # the open store and its recording lock
        self._writer = writer
        self._row = writer.row
        self._live = live
        self._capture = Capture(writer.manifest.fidelity)
        self._background = Background(f"recording {writer.manifest.run}")
        self._seed = writer.manifest.seed
        self._device = device
        self._environment = detect(device)  # of the segment under way
        self._tap = None if loader is None else LoaderTap(loader, self._seed, position, self._deliver, self._new_pass)
        self._explicit_position = position
        self._entered = False
        self._active = False
        self._counts_optimizer_steps = loader is not None
        self._cleanup = ExitStack()  # takes hooks and the tap away again
        self._step = step
        self._snapshot_step = step
        self._steps: list[Step] = []
        self._open: list[Microbatch] = []  # batches handed out since the last step ended
        self._marks: list[object] = []  # for each of them, `_mark` when it was handed out
        self._open_position = position  # before the first of them
        self._forwards = 0  # calls of the model that can lead to gradients
        self._used: Groups = ()
        self._loss: float | None = None
        self._boundary_due = False
        self._taking: int | None = None  # step of the snapshot that is being taken
        self._versions = live.versions()
        self._start = position

    @property
    def epoch(self) -> int:
        """The pass over the data to begin or go on with: start the loop over epochs here, so that it can be resumed."""
        return self._start.epoch

    @property
    def steps_done(self) -> int:
        """Steps recorded so far, those before a resume included."""
        return self._step

    def __enter__(self) -> Recorder:
        if self._entered:
            raise UsageError("a recorder records once", expected="another call of polstore.record", got="a second with")
        self._entered = self._active = True
        optimizer = self._live.optimizer
        with ExitStack() as stack:
            for hook in (
                optimizer.register_step_pre_hook(self._before_optimizer),
                optimizer.register_step_post_hook(self._after_optimizer),
                self._live.model.register_forward_pre_hook(self._before_forward),
            ):
                stack.callback(hook.remove)
            for extra in self._live.extras.values():
                if isinstance(extra, GradScaler):
                    stack.callback(self._watch(extra))
            if self._tap is not None:
                self._tap.install()
                stack.callback(self._tap.remove)
            self._cleanup = stack.pop_all()
        self._live.drop_gradients()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._active = False
        try:
            self._cleanup.close()
            if kind is None:
                self._finish()
        finally:
            failed = self._background.close()
            self._resources.close()
            if error is not None and failed is not None and failed is not error:
                error.add_note(f"the snapshot under way could not be written either: {failed}")

    def step(self, indices: Sequence[int]) -> None:
        """Begin a step on the samples at ``indices``, in a loop without a loader; the step before has then ended.

        Raises:
            UsageError: this recorder watches a loader, or is not under way.
            TrainingError: there are no such samples.
        """
        self._require_active()
        if self._tap is not None:
            raise UsageError("rec.step(indices) is for loops without a loader; this recorder was given one")
        if self._open:
            self._end_step()
        now = self._explicit_position
        self._deliver(now.number, indices)
        self._explicit_position = Position(0, 0, now.number + 1)

    def loss(self, value: float) -> None:
        """Report the loss of the step under way, or of the one that just ended; a float or a tensor of one element."""
        self._require_active()
        if self._open:
            self._loss = loss_value(value)
        elif self._steps:
            self._steps[-1] = replace(self._steps[-1], loss=loss_value(value))

    def train(
        self,
        training: Training,
        step: Callable[[Training, Iterator[Any]], Any],
        steps: int,
        progress: Callable[[int, float | None], None],
    ) -> None:
        """Run a recipe's own loop up to step ``steps``; ``progress`` is told each step done and its loss."""
        self._require_active()
        self._counts_optimizer_steps = False
        batches = _endless(training.loader)
        while self._step < steps:
            loss = step(training, batches)
            if not self._open:
                raise TrainingError("the recipe's step took no batch", expected="next(batches) at least once")
            self._loss = loss_value(loss)
            self._end_step()
            progress(self._step, self._steps[-1].loss)
            self._boundary()  # before the next step begins, which need not be by taking a batch

    def _require_active(self) -> None:
        if not self._active:
            raise UsageError(
                "the recorder is not under way", expected="a call inside its with block", got="one outside"
            )

    def _before_forward(self, *_: Any) -> None:
        self._forwards += torch.is_grad_enabled()

    def _watch(self, scaler: GradScaler) -> Callable[[], None]:
        """Have a step that a gradient scaler skips count as the step it is; return how to undo that."""
        original = scaler.step

        def step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            before = self._step
            result = original(optimizer, *args, **kwargs)
            if optimizer is self._live.optimizer and self._step == before:
                self._after_optimizer()
            return result

        scaler.__dict__["step"] = step
        return lambda: scaler.__dict__.pop("step", None)

    def _before_optimizer(self, optimizer: Any, *_: Any) -> None:
        self._used = hyperparameters(optimizer)

    def _after_optimizer(self, *_: Any) -> None:
        if self._counts_optimizer_steps:
            if not self._open:
                raise TrainingError(
                    "the optimizer stepped without a batch", expected="a batch from the recorded loader"
                )
            self._end_step()

    def _deliver(self, number: int, indices: Sequence[int]) -> None:
        """Take note of a batch that the loop is about to get, and seed the generators for what it does with it."""
        samples = tuple(int(index) for index in indices)
        size = self._writer.manifest.dataset.size
        if not samples or min(samples) < 0 or max(samples) >= size:
            raise TrainingError("samples of a batch", expected=f"at least one, from 0 to {size - 1}", got=samples)
        if self._boundary_due:
            self._boundary()
        if not self._open:
            self._open_position = self._position()
        if not self._steps and not self._open:
            self._environment = self._detect()
        seed_all(stream_seed(self._seed, Stream.STEP, self._step, len(self._open), 0))
        self._marks.append(self._mark() if self._counts_optimizer_steps else None)
        self._open.append(Microbatch(number, (samples,)))

    def _mark(self) -> object:
        """Return what is another value once a batch was trained on."""
        return self._forwards, self._live.versions(), self._live.gradient_versions()

    def _new_pass(self) -> None:
        """Forget the batches of earlier passes that the loop took and did not train on: it left that pass by ``break``,
        or looked at the data in between. A recipe's own loop takes the same batches when it is replayed.
        """
        if self._counts_optimizer_steps:
            now = self._mark()
            while self._open and self._marks[-1] == now:
                self._open.pop()
                self._marks.pop()

    def _end_step(self) -> None:
        self._steps.append(Step(tuple(self._open), self._used, self._loss))
        self._open, self._marks, self._used, self._loss = [], [], (), None
        self._step += 1
        self._boundary_due = True

    def _boundary(self) -> None:
        if self._step % self._writer.manifest.every == 0:
            self._snapshot(self._position())
        self._boundary_due = False  # not before: a loop may go on after an interrupt while it waited here
        self._versions = self._live.versions()

    def _detect(self) -> Environment:
        """Return this process's class now. Autocast is looked at once: a loop may fetch inside or outside of it."""
        now, ambient = detect(self._device), dict(self._environment.flags)["autocast"]
        return replace(now, flags=tuple((name, ambient if name == "autocast" else flag) for name, flag in now.flags))

    def _position(self) -> Position:
        return self._explicit_position if self._tap is None else self._tap.next_position()

    def _snapshot(self, position: Position) -> None:
        if self._taking is not None:  # the state may be half of what was written back, half of what was trained
            raise TrainingError(
                f"taking the snapshot of step {self._taking} was cut short, so nothing can be recorded after it",
                expected="the run resumed from its last snapshot",
                got="a loop that went on",
            )
        now = self._detect()
        if now != self._environment:
            raise TrainingError(
                "the environment class changed inside a segment, which nobody could replay",
                expected="threads and flags as at its first step",
                got="; ".join(self._environment.differences(now)),
            )
        self._row = row = replace(
            self._row, epoch=position.epoch, batch=position.batch, number=position.number, complete=False
        )
        steps = Steps(self._snapshot_step, tuple(self._steps))
        tensors, scalars = self._live.walk(self._step)
        self._background.flush()  # the last snapshot has to be through before its memory is used again
        self._taking = self._step
        plan = self._writer.plan(self._step, tuple(sorted(tensors, key=str.encode)))
        captured = self._capture.take(tensors, scalars, plan.base)

        def write() -> None:
            captured.wait()
            parts = partial(self._background.unhurried, captured.parts)
            self._writer.write(plan, parts, captured.scalars, steps, now, row)

        self._live.drop_gradients()
        self._background.put(write)
        self._steps, self._snapshot_step, self._taking = [], self._step, None

    def _finish(self) -> None:
        if self._open and self._tap is None:
            self._end_step()
        if self._boundary_due:
            self._boundary()
        elif self._open and self._live.versions() != self._versions:
            raise TrainingError(
                "the loop ended inside a step, after the model had changed",
                expected="an optimizer step after the last batch",
                got=f"{len(self._open)} batches without one; the run ends at its last snapshot",
            )
        if self._steps:
            self._snapshot(self._open_position if self._open else self._position())
        self._background.flush()
        self._writer.finish()


def _endless(loader: Any) -> Iterator[Any]:
    """Yield the loader's batches, pass after pass."""
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise TrainingError("the loader gives no batch", expected="at least one batch in a pass over the data")
