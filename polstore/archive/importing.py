"""Making a run of snapshots that a training saved by other means, so that it can be signed and archived.

What nobody recorded is not made up: the run has no recipe, its initial state is a distribution, it commits to no
dataset, its environment class is unknown, and its step records are empty but for the sample indices that the paper's
own layout has. The first snapshot is the run's step 0; which step of the training that was, and the layout, are in an
extension of the manifest (`polstore.archive.provenance`). Snapshots are kept to the last bit.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from polstore.archive.loading import Loaded, load, peek_step
from polstore.archive.mapping import hyperparameters, to_snapshot
from polstore.archive.provenance import Provenance
from polstore.archive.sources import Source, find_sources
from polstore.errors import ExistsError, MalformedError, TrainingError
from polstore.reader import Run
from polstore.run_row import RunRow
from polstore.run_writer import RunWriter
from polstore.storage.keys import check_run_name
from polstore.wire import canonical
from polstore.wire.environment import Environment
from polstore.wire.fields import MAX_INDEX
from polstore.wire.manifest import MAX_EVERY, Dataset, Initial, Manifest, Optimizer, Recipe
from polstore.wire.randomness import SEED_SIZE
from polstore.wire.steps import Microbatch, Step, Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from polstore.codec.snapshot import Snapshot
    from polstore.storage.store import Store

__all__ = ["Imported", "import_run"]

FIDELITY = "lossless"
UNKNOWN = "unknown"
UNKNOWN_ENVIRONMENT = Environment(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, 1, ())  # no machine is of this class
NO_ROW = RunRow(bytes(32), hashlib.sha256(b"").digest(), 0, 0, 0, complete=False)  # no samples, so no salt to keep
INDICES = "indices.npy"  # of the paper's layout: sample indices, one row per step


@dataclass(frozen=True)
class Imported:
    """What was imported.

    Attributes:
        run: its name.
        layout: what the files were taken for.
        first_step: step of the training that is the run's step 0.
        snapshots: snapshots of the run.
        added: how many of them are new in the store.
        samples: whether sample indices were found.
    """

    run: str
    layout: str
    first_step: int
    snapshots: int
    added: int
    samples: bool

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


def import_run(
    path: Path, store: Store, run: str, progress: Callable[[str, int, int], None], *, layout: str | None = None
) -> Imported:
    """Make a run of saved snapshots; one that was stopped is taken up again.

    Args:
        path: a directory of saved snapshots, or one of them (see `polstore.archive.sources`).
        store: an open store.
        run: name of the new run.
        progress: told (what is being done, done, in all).
        layout: what to take the files for; None goes by their names.

    Raises:
        MissingError: nothing to import.
        UsageError: no name for a run, an unknown layout, or files of several.
        TrainingError: a file that cannot be loaded safely or committed, or whose step is unclear; it is named.
        ExistsError: the store has another run of that name.
        LockedError: somebody is recording into the store.
        FullError: no room on the device; import again once there is some.
    """
    check_run_name(run)
    layout, sources = find_sources(path, layout)
    ordered = _ordered(sources, progress)
    first = ordered[0][0]
    files = {step - first: source.path for step, source in ordered}
    steps = list(files)
    loaded = load(files[0])
    initial = _snapshot(files[0], loaded, 0)
    with _named(files[0]):
        hypers = canonical.encode(hyperparameters(loaded))
    manifest = _manifest(run, layout, first, steps, initial, hypers)
    indices = _indices(path, first, ordered[-1][0]) if layout == "paper" else None
    with store.exclusive():
        writer, have = _begin(store, manifest, hypers, initial, files)
        for number, (start, end) in enumerate(pairwise(steps), 1):
            if number >= have:
                snapshot = _snapshot(files[end], load(files[end]), end)
                records = _step_records(indices, first, start, end)
                try:
                    writer.add_segment(end, snapshot, records, UNKNOWN_ENVIRONMENT, NO_ROW)
                except MalformedError as error:
                    raise TrainingError(f"{files[end]} does not go with the file before it: {error}") from error
            progress("importing snapshots", number, len(steps) - 1)
        writer.finish()
    return Imported(run, layout, first, len(steps), len(steps) - have, indices is not None)


def choose_every(steps: Sequence[int]) -> int:
    """Return the smallest spacing of which every multiple up to the last step has a snapshot, at least 1.

    Raises:
        TrainingError: there is none that a manifest may state.
    """
    last, present = steps[-1], set(steps)
    for every in [step for step in steps[1:] if step <= MAX_EVERY]:
        if all(multiple in present for multiple in range(every, last, every)):
            return every
    if last == 0:
        return 1
    raise TrainingError(
        "snapshots lie too far apart", expected=f"at most {MAX_EVERY} steps", got=f"{last} steps in all"
    )


def _ordered(sources: list[Source], progress: Callable[[str, int, int], None]) -> list[tuple[int, Source]]:
    """Return the snapshots with their steps, ascending: the step that the content states, or else the name."""
    found: dict[int, Source] = {}
    for done, source in enumerate(sources, 1):
        inside = peek_step(source.path)
        step = source.named_step if inside is None else inside
        if step is None and len(sources) == 1:
            step = 0
        if step is None or step > MAX_INDEX:
            expected = f"a number up to {MAX_INDEX} in its name or content"
            raise TrainingError(f"{source.path} states no step of a run", expected=expected, got=step)
        if step in found:
            raise TrainingError(f"{source.path} is of the same step as {found[step].path}: {step}")
        found[step] = source
        progress("looking at files", done, len(sources))
    return sorted(found.items())


def _snapshot(path: Path, loaded: Loaded, step: int) -> Snapshot:
    with _named(path):
        return to_snapshot(loaded, step)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file whose content cannot be committed."""
    try:
        yield
    # RuntimeError: nested without end, or a tensor that is larger than the memory; UnicodeEncodeError: a name
    except (MalformedError, TrainingError, RuntimeError, UnicodeEncodeError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(f"{path} cannot be committed: {reason[:300]}") from error


def _manifest(run: str, layout: str, first: int, steps: list[int], initial: Snapshot, hypers: bytes) -> Manifest:
    """Return a manifest that claims no more than is known; ``hypers`` is the blob of hyperparameters."""
    return Manifest(
        run=run,
        recipe=Recipe("none", bytes(32)),
        dataset=Dataset.not_committed(),
        optimizer=Optimizer(UNKNOWN, hashlib.sha256(hypers).digest()),
        seed=bytes(SEED_SIZE),
        sampler="free",
        initial=Initial("distribution", initial.digest()),
        environment=UNKNOWN_ENVIRONMENT,
        fidelity=FIDELITY,
        every=choose_every(steps),
        extensions=Provenance(layout, first).extensions(),
    )


def _begin(
    store: Store, manifest: Manifest, hypers: bytes, initial: Snapshot, files: dict[int, Path]
) -> tuple[RunWriter, int]:
    """Begin the run, or go on with one of the same files; return how many snapshots the store had of it."""
    with store.read() as view:
        exists = manifest.run in view.runs()
    if not exists:
        return RunWriter.create(store, manifest, NO_ROW, initial, [hypers, b""]), 0
    run = Run(store, manifest.run)
    steps = run.snapshots
    what = f"run {manifest.run} exists already"
    if run.manifest != manifest or steps != list(files)[: len(steps)]:
        raise ExistsError(f"{what} and is not of these files; choose another name")
    if run.state(steps[-1]).digest() != _snapshot(files[steps[-1]], load(files[steps[-1]]), steps[-1]).digest():
        raise ExistsError(f"{what}, with another snapshot than {files[steps[-1]]}; choose another name")
    return RunWriter.resume(store, manifest.run)[0], len(steps)


def _indices(path: Path, first: int, last: int) -> np.ndarray[Any, np.dtype[Any]] | None:
    """Return the paper's sample indices, one row per step of the training, or None where there are none."""
    file = (path if path.is_dir() else path.parent) / INDICES
    if not file.is_file():
        return None
    try:
        indices: np.ndarray[Any, np.dtype[Any]] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise TrainingError(f"{file} is no array of numbers: {error}") from error
    if indices.ndim != 2 or indices.dtype.kind not in "iu" or len(indices) < last:
        raise TrainingError(
            f"{file} does not hold the samples of every step",
            expected=f"integers, {last} rows or more",
            got=f"{indices.dtype}, shape {indices.shape}",
        )
    used = indices[first:last]
    if used.size and not 0 <= used.min() <= used.max() <= MAX_INDEX:
        raise TrainingError(
            f"{file} holds what is no sample's index",
            expected=f"numbers from 0 to {MAX_INDEX}",
            got=f"{used.min()} to {used.max()}",
        )
    return indices


def _step_records(indices: np.ndarray[Any, np.dtype[Any]] | None, first: int, start: int, end: int) -> Steps:
    """Return the records of a segment's steps: the sample indices where they are known, else no record at all."""
    if indices is None:
        return Steps(start, ())
    return Steps(
        start,
        tuple(
            Step((Microbatch(step, (tuple(map(int, indices[first + step])),)),), (), None) for step in range(start, end)
        ),
    )
