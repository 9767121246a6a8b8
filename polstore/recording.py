"""Beginning and resuming a recording: from a loop's own objects (`record`) or from a recipe file (`record_recipe`).

Makes the manifest, hashes the dataset, and hands over to `polstore.recorder`.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
import warnings
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polstore.adapters.torch_loader import Position
from polstore.ancestry import ParentState, find_parent
from polstore.codec.live.capture import Capture
from polstore.codec.live.environment import detect, make_deterministic
from polstore.codec.live.order import follows_seed
from polstore.codec.live.randomness import seed_all
from polstore.codec.live.recipe import RecipeFile
from polstore.codec.live.samples import dataset_hashes
from polstore.codec.live.state import LiveState, hyperparameters
from polstore.codec.quantise import FIDELITIES
from polstore.errors import ExistsError, MissingError, TrainingError, UsageError
from polstore.inherited import store_inherited
from polstore.not_before import check_checkpoint
from polstore.reader import open_archive
from polstore.recorder import Recorder
from polstore.run_row import RunRow
from polstore.run_writer import RunWriter
from polstore.storage.keys import check_run_name
from polstore.storage.store import open_store
from polstore.wire import canonical, merkle
from polstore.wire.lineage import names_blob
from polstore.wire.manifest import MAX_EVERY, Dataset, Initial, Manifest, Optimizer, Recipe
from polstore.wire.randomness import SEED_SIZE, Stream, stream_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.utils.data import DataLoader

    from polstore.codec.live.recipe import Recipe as LoadedRecipe
    from polstore.codec.live.recipe import Training
    from polstore.storage.store import Store

__all__ = ["record", "record_recipe", "run_seed", "seed_initial"]

NO_RECIPE = Recipe("none", bytes(32))


def run_seed(seed: bytes | int | None) -> bytes:
    """Return a run's 32-byte seed from bytes, from a number, or fresh for None; raises `UsageError`."""
    if seed is None:
        return secrets.token_bytes(SEED_SIZE)
    if isinstance(seed, int):
        if not 0 <= seed < 2 ** (8 * SEED_SIZE):
            raise UsageError("seed", expected=f"0 or more, below 2**{8 * SEED_SIZE}", got=seed)
        return seed.to_bytes(SEED_SIZE, "big")
    if len(seed) != SEED_SIZE:
        raise UsageError("seed", expected=f"{SEED_SIZE} bytes", got=f"{len(seed)} bytes")
    return seed


def seed_initial(seed: bytes | int) -> None:
    """Seed all generators as a recipe's ``build`` is seeded: call it just before building the model."""
    seed_all(stream_seed(run_seed(seed), Stream.INITIAL))


def record(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Any] | None = None,
    *,
    every: int,
    store: Path | str,
    run: str,
    extras: Mapping[str, Any] | None = None,
    recipe: Path | str | None = None,
    config: Mapping[str, Any] | None = None,
    seed: bytes | int | None = None,
    initial: str = "distribution",
    parent: Path | str | None = None,
    parent_root: bytes | None = None,
    fidelity: str = FIDELITIES[0],
    dataset: Any = None,
    not_before: bytes | None = None,
    resume: bool = False,
    sync: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Recorder:
    """Record an ordinary training loop; use the result as a context manager around it.

    Args:
        model: its parameters and buffers are the state; on one device.
        optimizer: its state and hyperparameters are part of the state.
        loader: the DataLoader that the loop iterates over; None for loops that call `Recorder.step`.
        every: steps from one snapshot to the next, the paper's k.
        store: directory of the store, made if there is none.
        run: name of the run: letters, digits, ``.``, ``_``, ``-``.
        extras: whatever else has a ``state_dict``: schedulers, gradient scalers, averaged weights.
        recipe: the recipe that a verifier will replay with. None: the running script, if it has ``build`` and ``step``;
            otherwise the run cannot be replayed, and a warning says so.
        config: what the verifier's ``build`` is to be called with.
        seed: 32 bytes or a number from which all randomness is derived; fresh if None.
        initial: ``seed`` if the model was built right after `seed_initial` with this seed, else ``distribution``.
        parent: ``STORE`` or ``STORE:RUN``, a signed run whose last snapshot this one starts from: parameters and
            buffers of the same name, shape and dtype are put into the model. The rest is as it was built.
        parent_root: the signed root of the parent to start under; its newest one if None.
        fidelity: what is kept of a state (specs/codec.md): ``float16-writeback`` and ``compact-writeback`` round it and
            let training go on from the rounded values, ``float16`` rounds and leaves training alone, ``lossless`` keeps
            every bit.
        dataset: what to commit to; the loader's dataset if None.
        not_before: a recent checkpoint note with its witnesses' cosignatures, to show that training began after it.
        resume: go on from the run's last snapshot, which is put into the live objects; begin if there is no such run.
        sync: whether a snapshot counts only when the device has it; see `polstore.storage.store.open_store`.
        progress: told (samples hashed, samples in all).

    Raises:
        UsageError: arguments that make no sense together.
        TrainingError: a state, loader or dataset that cannot be recorded.
        ExistsError: the store has a run of that name, and ``resume`` is False.
        LockedError: somebody else is recording into the store.
    """
    if dataset is None and loader is None:
        raise UsageError("a recording without a loader needs its dataset", expected="dataset=...", got=None)
    live = LiveState(model, optimizer, extras or {})
    device = str(next((parameter.device for parameter in model.parameters()), torch.device("cpu")))
    reference = _reference(recipe, config)
    declaration = _Declaration(
        run=run,
        every=every,
        fidelity=fidelity,
        recipe=reference,
        seed=_seed_of(Path(store), run, seed, resume=resume),
        initial=initial,
        sampler=_sampler(loader),
        device=device,
        parent=None if parent is None else find_parent(parent, parent_root),
        not_before=not_before,
    )
    data = dataset if dataset is not None else loader.dataset if loader is not None else None
    return _start(Path(store), live, loader, data, declaration, resume=resume, sync=sync, progress=progress)


def record_recipe(
    recipe: RecipeFile,
    *,
    every: int,
    store: Path | str,
    run: str,
    config: Mapping[str, Any] | None = None,
    seed: bytes | int | None = None,
    parent: Path | str | None = None,
    parent_root: bytes | None = None,
    fidelity: str = FIDELITIES[0],
    device: str = "cpu",
    not_before: bytes | None = None,
    resume: bool = False,
    sync: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Recorder, Training, LoadedRecipe]:
    """Build what a recipe describes and begin to record it; what no parent gives then follows from the seed.

    Arguments and errors as for `record`. Returns the recorder, not yet entered, with what to hand to `Recorder.train`.
    """
    make_deterministic(device)
    derived = _seed_of(Path(store), run, seed, resume=resume)
    loaded = recipe.load()
    seed_initial(derived)  # after whatever the file drew when it was executed, as in a replay
    training = loaded.build(device, config or {})
    live = LiveState(training.model, training.optimizer, training.extras)
    declaration = _Declaration(
        run=run,
        every=every,
        fidelity=fidelity,
        recipe=Recipe("file", recipe.digest, _config(config)),
        seed=derived,
        initial="seed",
        sampler=_sampler(training.loader),
        device=device,
        parent=None if parent is None else find_parent(parent, parent_root),
        not_before=not_before,
    )
    recorder = _start(
        Path(store),
        live,
        training.loader,
        training.loader.dataset,
        declaration,
        resume=resume,
        sync=sync,
        progress=progress,
    )
    return recorder, training, loaded


class _Declaration:
    """What the caller declares of a run, before the state and the dataset are looked at."""

    def __init__(
        self,
        *,
        run: str,
        every: int,
        fidelity: str,
        recipe: Recipe,
        seed: bytes,
        initial: str,
        sampler: str,
        device: str,
        parent: ParentState | None = None,
        not_before: bytes | None,
    ) -> None:
        if fidelity not in FIDELITIES:
            raise UsageError("unknown fidelity", expected=" or ".join(FIDELITIES), got=fidelity)
        if not 1 <= every <= MAX_EVERY:
            raise UsageError("steps between snapshots", expected=f"1 to {MAX_EVERY}", got=every)
        if initial not in ("seed", "distribution"):
            raise UsageError("unknown kind of initial state", expected="seed or distribution", got=initial)
        self.run = check_run_name(run)
        self.every = every
        self.fidelity = fidelity
        self.recipe = recipe
        self.seed = seed
        self.initial = initial
        self.sampler = sampler
        self.device = device
        self.parent = parent
        self.not_before = None if not_before is None else check_checkpoint(not_before)

    def inherit(self, live: LiveState) -> tuple[str, ...]:
        """Put the parent's tensors into the live model and return their names; raises `TrainingError` if none fits."""
        if self.parent is None:
            return ()
        names = live.inherit(self.parent.snapshot)
        if not names:
            raise TrainingError(f"no tensor of {self.parent.origin} fits this model", expected="one or more", got=0)
        return names

    def manifest(
        self, live: LiveState, dataset: Dataset, state: bytes, inherited: tuple[str, ...]
    ) -> tuple[Manifest, bytes]:
        """Return the manifest and the blob of hyperparameters that it refers to."""
        initial = Initial(self.initial, state)
        if self.parent is not None:
            initial = Initial("parent", state, self.parent.reference(inherited))
        hypers = canonical.encode(hyperparameters(live.optimizer))
        kind = type(live.optimizer)
        optimizer = Optimizer(f"{kind.__module__}.{kind.__qualname__}", hashlib.sha256(hypers).digest())
        manifest = Manifest(
            run=self.run,
            recipe=self.recipe,
            dataset=dataset,
            optimizer=optimizer,
            seed=self.seed,
            sampler=self.sampler,
            initial=initial,
            environment=detect(self.device),
            fidelity=self.fidelity,
            every=self.every,
            not_before=self.not_before,
        )
        return manifest, hypers

    def require(self, manifest: Manifest) -> None:
        """Require that a run to be resumed was declared like this."""
        for what, expected, got in (
            ("recipe", manifest.recipe, self.recipe),
            ("fidelity", manifest.fidelity, self.fidelity),
            ("steps between snapshots", manifest.every, self.every),
            ("seed", manifest.seed, self.seed),
            ("sampler", manifest.sampler, self.sampler),
            ("checkpoint to begin after", manifest.not_before, self.not_before or manifest.not_before),
        ):
            if expected != got:
                raise UsageError(f"run {self.run} was declared with another {what}", expected=expected, got=got)
        declared = manifest.initial.parent
        if self.parent is not None and (
            declared is None or replace(self.parent.reference(()), inherited=declared.inherited) != declared
        ):
            raise UsageError(
                f"run {self.run} was declared with another parent", expected=declared, got=self.parent.root
            )


def _start(
    path: Path,
    live: LiveState,
    loader: Any,
    dataset: Any,
    declaration: _Declaration,
    *,
    resume: bool,
    sync: bool,
    progress: Callable[[int, int], None] | None,
) -> Recorder:
    with ExitStack() as stack:
        store = stack.enter_context(open_store(path, create=True, sync=sync))
        stack.enter_context(store.exclusive())
        report = progress or (lambda _done, _all: None)
        with store.read() as view:
            exists = declaration.run in view.runs()
        if exists and not resume:  # before the dataset is hashed, which can take minutes
            raise ExistsError(f"run {declaration.run} exists already; go on with --resume or choose another name")
        begin = _resumed if exists else _created
        writer, position, step = begin(store, live, dataset, declaration, report)
        return Recorder(stack.pop_all(), writer, live, loader, declaration.device, position, step)


def _created(
    store: Store, live: LiveState, dataset: Any, declaration: _Declaration, progress: Callable[[int, int], None]
) -> tuple[RunWriter, Position, int]:
    if declaration.recipe.kind == "none":
        warnings.warn("no recipe: this run can be signed and audited, but nobody can replay it", stacklevel=4)
    inherited = declaration.inherit(live)
    tensors, scalars = live.walk(0)
    initial = Capture(declaration.fidelity).take(tensors, scalars, None)  # an optimizer may come with moments
    salt = secrets.token_bytes(32)
    committed, hashes = _commit_dataset(dataset, salt, progress)
    manifest, hypers = declaration.manifest(live, committed, initial.digest, inherited)
    row = RunRow(salt, hashlib.sha256(hashes).digest(), 0, 0, 0, complete=False)
    blobs = [hypers, hashes]
    if declaration.parent is not None:
        blobs.append(names_blob(inherited))
        store_inherited(store, initial.committed, declaration.parent.snapshot)
    return RunWriter.begin(store, manifest, row, initial.parts, initial.scalars, blobs), Position(), 0


def _resumed(
    store: Store, live: LiveState, dataset: Any, declaration: _Declaration, progress: Callable[[int, int], None]
) -> tuple[RunWriter, Position, int]:
    writer, snapshot, step = RunWriter.resume(store, declaration.run)
    declaration.require(writer.manifest)
    committed, _ = _commit_dataset(dataset, writer.row.salt, progress)
    if committed != writer.manifest.dataset:
        raise TrainingError("the dataset has changed", expected=writer.manifest.dataset, got=committed)
    live.restore(snapshot)
    row = writer.row
    return writer, Position(row.epoch, row.batch, row.number), step


def _sampler(loader: Any) -> str:
    """Return what is declared of the order of samples."""
    return "seed" if loader is not None and follows_seed(loader.batch_sampler) else "free"


def _commit_dataset(dataset: Any, salt: bytes, progress: Callable[[int, int], None]) -> tuple[Dataset, bytes]:
    if len(dataset) < 1:
        raise TrainingError("the dataset is empty", expected="at least one sample", got=0)
    hashes = dataset_hashes(dataset, salt, progress)
    return Dataset(merkle.root(hashes), len(hashes)), b"".join(hashes)


def _seed_of(path: Path, run: str, seed: bytes | int | None, *, resume: bool) -> bytes:
    """Return the seed to use: the one given, that of the run to be resumed, or a fresh one."""
    if seed is None and resume:
        with suppress(MissingError), open_archive(path) as archive:
            return archive.run(run).manifest.seed
    return run_seed(seed)


def _reference(recipe: Path | str | None, config: Mapping[str, Any] | None) -> Recipe:
    """Return the reference to a recipe file: the one given, or the running script if it is a recipe itself."""
    if recipe is None:
        main = sys.modules.get("__main__")
        script = getattr(main, "__file__", None)
        if script is None or not (callable(getattr(main, "build", None)) and callable(getattr(main, "step", None))):
            return NO_RECIPE
        recipe = script
    path = Path(recipe)
    if not path.is_file():
        raise MissingError(f"no recipe {path}")
    return Recipe("file", RecipeFile.read(path).digest, _config(config))


def _config(config: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((config or {}).items()))
