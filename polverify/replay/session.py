"""A replay session: the verifier's recipe built once, and segments replayed on it one after the other.

Executes the recipe file that the verifier has, and nothing that came with a proof. Implements specs/verification.md,
checks 5, 9 and 10, the parts that need the recipe.
"""

from __future__ import annotations

import hashlib
import inspect
from typing import TYPE_CHECKING, Any

from polstore.codec.live.environment import enter, make_deterministic
from polstore.codec.live.randomness import seed_all
from polstore.codec.live.samples import load_batch, sample_hash
from polstore.codec.live.state import LiveState, hyperparameters, loss_value
from polstore.codec.quantise import quantise, replays_exactly
from polstore.errors import CallerError, MissingError, PolstoreError, RecipeError, ReplayError, TrainingError
from polstore.wire import canonical
from polstore.wire.randomness import Stream, stream_seed
from polverify.replay.order import check_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from polstore.codec.live.recipe import RecipeFile, Training
    from polstore.codec.snapshot import Snapshot
    from polstore.wire.environment import Environment
    from polstore.wire.manifest import Manifest
    from polstore.wire.segment import SegmentRecord
    from polstore.wire.steps import Groups, Microbatch, Step, Steps

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
        self._exact = replays_exactly(manifest.fidelity)
        make_deterministic(device)
        enter(manifest.environment, device)
        self._recipe = recipe.load()
        self._training = self._build()
        self._live = LiveState(self._training.model, self._training.optimizer, self._training.extras)
        initial = self._live.capture(0)
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

    def check_order(self, segments: Iterable[Steps]) -> int | None:
        """Hold the order of samples against the one that the seed gives; see `polverify.replay.order.check_order`."""
        return check_order(self._training.loader.batch_sampler, self._manifest.seed, segments)

    def replay(
        self,
        record: SegmentRecord,
        start: Snapshot,
        base: Snapshot | None,
        steps: Steps,
        progress: Callable[[int], None],
    ) -> Snapshot:
        """Train one segment again and return the snapshot that it ends with, quantised as committed ones are.

        Args:
            record: the segment's record.
            start: the committed snapshot that it starts from.
            base: the committed snapshot that its end is quantised against, or None.
            steps: its step records.
            progress: told the steps done so far.

        Raises:
            ReplayError: the start does not fit the recipe, or a step is not what its record says; the loss is not
                compared where the fidelity leaves training with other values than were committed.
            CallerError: this machine cannot run it (memory, missing data).
        """
        self._restore(record, start)
        for offset, step in enumerate(steps.steps):
            self._step(record.start_step + offset, step)
            progress(offset + 1)
        try:
            end = self._live.capture(record.end_step)
        except TrainingError as error:  # what a hostile start led to: the proof's fault, not the verifier's
            raise ReplayError(f"state after step {record.end_step} is none that can be committed: {error}") from error
        return quantise(end, base, self._manifest.fidelity)

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

    def _restore(self, record: SegmentRecord, start: Snapshot) -> None:
        try:
            step = self._live.restore(start)
        except PolstoreError as error:
            raise ReplayError(f"snapshot at step {record.start_step} does not fit the recipe: {error}") from error
        except Exception as error:
            raise ReplayError(
                f"snapshot at step {record.start_step} does not fit the recipe: {type(error).__name__}: {error}"
            ) from error
        if step != record.start_step:
            raise ReplayError("step of the start snapshot", expected=record.start_step, got=step)
        for parameter in self._training.model.parameters():
            parameter.grad = None

    def _step(self, number: int, step: Step) -> None:
        used: list[Groups] = []
        hook = self._training.optimizer.register_step_pre_hook(
            lambda optimizer, *_: used.append(hyperparameters(optimizer))
        )
        batches = _Batches(self._training, self._manifest.seed, number, step.microbatches)
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
        got = used[-1] if used else ()
        if canonical.encode(got) != canonical.encode(step.hyperparameters):
            raise ReplayError(f"step {number}: hyperparameters", expected=step.hyperparameters, got=got)
        if self._exact and step.loss is not None and canonical.encode(loss) != canonical.encode(step.loss):
            raise ReplayError(f"step {number}: loss", expected=step.loss, got=loss)


class _Batches:
    """The committed batches of one step, each loaded and the generators seeded when the recipe takes it."""

    def __init__(self, training: Training, seed: bytes, step: int, microbatches: tuple[Microbatch, ...]) -> None:
        self._training = training
        self._seed = seed
        self._step = step
        self._microbatches = microbatches
        self._taken = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._taken == len(self._microbatches):
            raise ReplayError(f"step {self._step}: batches", expected=len(self._microbatches), got="more")
        microbatch = self._microbatches[self._taken]
        seed_all(stream_seed(self._seed, Stream.STEP, self._step, self._taken, 0))
        self._taken += 1
        try:
            return load_batch(self._training.loader, microbatch.ranks[0], self._seed, microbatch.number)
        except OSError as error:
            raise MissingError(f"step {self._step}: its samples cannot be read here: {error}") from error

    def require_all(self) -> None:
        """Require that the recipe took every committed batch; raises `ReplayError`."""
        if self._taken != len(self._microbatches):
            raise ReplayError(f"step {self._step}: batches", expected=len(self._microbatches), got=self._taken)
