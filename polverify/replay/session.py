"""A replay session: the verifier's recipe built once, and segments replayed on it one after the other.

Executes the recipe file that the verifier has, and nothing that came with a proof. Implements specs/verification.md,
checks 5, 9 and 10, the parts that need the recipe. What a replay means is decided elsewhere.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from polstore.codec.live.environment import detect, enter, make_deterministic
from polstore.codec.live.randomness import preserved, seed_all, seed_cpu
from polstore.codec.live.samples import load_batch, sample_hash
from polstore.codec.live.state import LiveState, hyperparameters, loss_value
from polstore.codec.quantise import quantise
from polstore.errors import CallerError, MissingError, PolstoreError, RecipeError, ReplayError, TrainingError
from polstore.wire import canonical
from polstore.wire.randomness import Stream, stream_seed
from polverify.noise import Replayed, shaken
from polverify.replay.order import check_order
from polverify.replay.settings import applied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from polstore.codec.live.recipe import RecipeFile, Training
    from polstore.codec.snapshot import Snapshot
    from polstore.wire.environment import Environment
    from polstore.wire.manifest import Manifest
    from polstore.wire.steps import Groups, Microbatch, Steps
    from polverify.noise import Segment
    from polverify.replay.settings import Setting

__all__ = ["Session"]


class Session:
    """One run's recipe, built on ``device`` in the environment class that the manifest names, as far as possible.

    Raises:
        RecipeError: the recipe does not take the committed configuration.
        TrainingError: the recipe fails here.
        MissingError: the recipe misses a file here.
    """

    def __init__(self, recipe: RecipeFile, manifest: Manifest, device: str) -> None:
        self._manifest = manifest
        self._device = device
        make_deterministic(device)
        enter(manifest.environment, device)
        self._recipe = recipe.load()
        self._training = self._build()
        self._live = LiveState(self._training.model, self._training.optimizer, self._training.extras)
        initial = quantise(self._live.capture(0), None, manifest.fidelity)
        self.initial_state = initial.digest()
        self.initial_entries = {entry.name: entry for entry in initial.entries()}
        self.initial_scalars = initial.scalars
        self.state_bytes = initial.nbytes
        self.hyperparameters = hashlib.sha256(canonical.encode(hyperparameters(self._training.optimizer))).digest()

    @property
    def dataset_size(self) -> int:
        """Samples in the verifier's own copy of the dataset."""
        return len(self._dataset)

    @property
    def optimizer_name(self) -> str:
        """Class of the optimizer that the recipe builds."""
        kind = type(self._training.optimizer)
        return f"{kind.__module__}.{kind.__qualname__}"

    def differences(self, recorded: Environment) -> list[str]:
        """Enter a recorded environment class and say in which points this process still is of another."""
        return recorded.differences(enter(recorded, self._device))

    def sample_hash(self, index: int, salt: bytes) -> bytes:
        """Return the leaf hash of sample ``index`` of the verifier's own copy; raises `MissingError`."""
        try:
            return sample_hash(self._dataset, index, salt)
        except PolstoreError:
            raise
        except Exception as error:
            raise MissingError(f"sample {index} cannot be read here: {type(error).__name__}: {error}") from error

    def here(self) -> Environment:
        """Return the environment class that this process is in."""
        return detect(self._device)

    def check_order(self, segments: Iterable[Steps]) -> int | None:
        """Hold the order of samples against the one that the seed gives; see `polverify.replay.order.check_order`."""
        return check_order(self._training.loader.batch_sampler, self._manifest.seed, segments)

    def replay(self, segment: Segment, progress: Callable[[int], None], *, exact: bool) -> Replayed:
        """Train one segment again; its end is quantised as committed ones are.

        Args:
            segment: the segment, its start and what its end is quantised against.
            progress: told the steps done so far.
            exact: whether every loss must be the recorded one, and other hyperparameters than the recorded ones end the
                replay. Else both are reported.

        Raises:
            ReplayError: the start does not fit the recipe, or a step is not what its record says.
            CallerError: this machine cannot run it (memory, missing data).
        """
        return self.as_committed(segment, self.train(segment, progress, exact=exact))

    def train(self, segment: Segment, progress: Callable[[int], None], *, exact: bool) -> Replayed:
        """Train one segment again; its end is a copy of the live state. Arguments and errors as for `replay`."""
        return self._train(segment, segment.start, progress, exact=exact)

    def as_committed(self, segment: Segment, trained: Replayed) -> Replayed:
        """Quantise the end of a replay as committed ones are; any thread may do it while another one trains."""
        return replace(trained, end=quantise(trained.end, segment.base, self._manifest.fidelity))

    def vary(self, segment: Segment, setting: Setting, progress: Callable[[int], None]) -> Replayed:
        """Train one segment again under a setting that rounds differently; raises as `replay` does."""
        start = segment.start
        if setting.start is not None:
            start = shaken(start, segment.start_base, setting.start)
        with applied(setting, segment.record.environment, self.here()):
            return self.as_committed(segment, self._train(segment, start, progress, exact=False))

    def evaluate(self, step: int, snapshot: Snapshot) -> dict[str, float]:
        """Run the recipe's own evaluation on the snapshot at ``step``, the generators seeded by that step.

        It may leave the model in another mode, so nothing is to be replayed afterwards.

        Raises:
            UsageError: the recipe has no ``evaluate``.
            ReplayError: the snapshot does not fit the recipe.
            TrainingError: the evaluation fails here.
        """
        self._restore(step, snapshot)
        seed_all(stream_seed(self._manifest.seed, Stream.STEP, step, 0, 0))
        return self._recipe.evaluate(self._training)

    def train_afresh(self, steps: int, progress: Callable[[int], None]) -> Snapshot:
        """Train from the initial state for ``steps`` steps, on batches that the recipe's own sampler draws.

        Raises:
            TrainingError: the recipe's loader has no batch sampler, or the recipe fails here.
        """
        batches = self._own_batches()
        for number in range(steps):
            seed_all(stream_seed(self._manifest.seed, Stream.STEP, number, 0, 0))
            try:
                self._recipe.step(self._training, batches)
            except PolstoreError:
                raise
            except Exception as error:
                raise TrainingError(f"step {number}: the recipe failed: {type(error).__name__}: {error}") from error
            progress(number + 1)
        return self._live.capture(steps)

    def _own_batches(self) -> Iterator[Any]:
        loader, number = self._training.loader, 0
        for epoch in itertools.count():
            with preserved():
                seed_cpu(stream_seed(self._manifest.seed, Stream.EPOCH, epoch))
                order = None if loader.batch_sampler is None else [tuple(indices) for indices in loader.batch_sampler]
            if not order:
                raise TrainingError("the recipe's loader", expected="a batch sampler that yields batches", got="none")
            for indices in order:
                yield load_batch(loader, indices, self._manifest.seed, number)
                number += 1

    def _train(self, segment: Segment, start: Snapshot, progress: Callable[[int], None], *, exact: bool) -> Replayed:
        record = segment.record
        self._restore(record.start_step, start)
        losses, used, mismatch, drew = [], hashlib.sha256(), None, False
        for offset, step in enumerate(segment.steps.steps):
            number = record.start_step + offset
            batches = _Batches(self._training, self._manifest.seed, number, step.microbatches, watch=not exact)
            groups, loss = self._step(number, batches)
            encoded = canonical.encode(groups)
            if encoded != canonical.encode(step.hyperparameters) and mismatch is None:
                mismatch = ReplayError(f"step {number}: hyperparameters", expected=step.hyperparameters, got=groups)
                if exact:
                    raise mismatch
            if exact and step.loss is not None and canonical.encode(loss) != canonical.encode(step.loss):
                raise ReplayError(f"step {number}: loss", expected=step.loss, got=loss)
            used.update(hashlib.sha256(encoded).digest())
            losses.append(loss)
            drew = drew or batches.drew()
            progress(offset + 1)
        try:
            end = self._live.capture(record.end_step)
        except TrainingError as error:  # what a hostile start led to: the proof's fault, not the verifier's
            raise ReplayError(f"state after step {record.end_step} is none that can be committed: {error}") from error
        return Replayed(end, tuple(losses), used.digest(), mismatch, drew)

    @property
    def _dataset(self) -> Any:
        return self._training.loader.dataset

    def _build(self) -> Training:
        config = dict(self._manifest.recipe.config)
        try:
            inspect.signature(self._recipe.build_function).bind(device=self._device, **config)
        except TypeError as error:
            raise RecipeError(f"recipe does not take the committed configuration: {error}") from error
        seed_all(stream_seed(self._manifest.seed, Stream.INITIAL))
        return self._recipe.build(self._device, config)

    def _restore(self, wanted: int, start: Snapshot) -> None:
        try:
            step = self._live.restore(start)
        except PolstoreError as error:
            raise ReplayError(f"snapshot at step {wanted} does not fit the recipe: {error}") from error
        except Exception as error:
            raise ReplayError(
                f"snapshot at step {wanted} does not fit the recipe: {type(error).__name__}: {error}"
            ) from error
        if step != wanted:
            raise ReplayError("step of the snapshot", expected=wanted, got=step)

    def _step(self, number: int, batches: _Batches) -> tuple[Groups, float | None]:
        """Train one step and return the hyperparameters that it used, and its loss."""
        used: list[Groups] = []
        hook = self._training.optimizer.register_step_pre_hook(
            lambda optimizer, *_: used.append(hyperparameters(optimizer))
        )
        try:
            loss = loss_value(self._recipe.step(self._training, batches))
        except TrainingError as error:  # hyperparameters that cannot be committed, from a hostile start
            raise ReplayError(f"step {number}: {error}") from error
        except (PolstoreError, MemoryError):
            raise
        except Exception as error:
            if "out of memory" in str(error).lower():
                raise CallerError(f"step {number} does not fit this machine: {error}") from error
            raise ReplayError(f"step {number}: the recipe failed: {type(error).__name__}: {error}") from error
        finally:
            hook.remove()
        batches.require_all()
        return (used[-1] if used else ()), loss


class _Batches:
    """The committed batches of one step, each loaded and the generators seeded when the recipe takes it."""

    def __init__(
        self, training: Training, seed: bytes, step: int, microbatches: tuple[Microbatch, ...], *, watch: bool
    ) -> None:
        self._training = training
        self._seed = seed
        self._step = step
        self._microbatches = microbatches
        self._taken = 0
        self._watch = watch
        self._drew = False
        self._seeded: tuple[object, ...] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._taken == len(self._microbatches):
            raise ReplayError(f"step {self._step}: batches", expected=len(self._microbatches), got="more")
        microbatch = self._microbatches[self._taken]
        self._drew = self.drew()
        seed_all(stream_seed(self._seed, Stream.STEP, self._step, self._taken, 0))
        self._seeded = _generators() if self._watch else None
        self._taken += 1
        try:
            return load_batch(self._training.loader, microbatch.ranks[0], self._seed, microbatch.number)
        except OSError as error:
            raise MissingError(f"step {self._step}: its samples cannot be read here: {error}") from error

    def require_all(self) -> None:
        """Require that the recipe took every committed batch; raises `ReplayError`."""
        if self._taken != len(self._microbatches):
            raise ReplayError(f"step {self._step}: batches", expected=len(self._microbatches), got=self._taken)

    def drew(self) -> bool:
        """Whether anything was drawn from a generator so far, but for what loading the samples drew."""
        return self._drew or (self._seeded is not None and self._seeded != _generators())


def _generators() -> tuple[object, ...]:
    """Return what is another value once a generator was drawn from."""
    numpy_state = np.random.get_state(legacy=False)
    devices = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    return (
        random.getstate(),
        numpy_state["state"]["key"].tobytes(),
        (numpy_state["state"]["pos"], numpy_state["gauss"]),
        torch.get_rng_state().numpy().tobytes(),
        *devices,
    )
