"""Commands of whoever keeps a store: stats, gc, repack, copy, import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polstore import terminal
from polstore.archive.copying import copy_runs
from polstore.archive.garbage import collect, find
from polstore.archive.repack import DEFAULT_LEVEL
from polstore.archive.repack import repack as repack_store
from polstore.archive.sources import find_sources
from polstore.archive.stats import stats as store_stats
from polstore.cli.options import AsJson, StorePath, choose_run
from polstore.cli.reading import show_table
from polstore.errors import DamagedError, UsageError
from polstore.storage.keys import check_run_name
from polstore.storage.store import open_store

if TYPE_CHECKING:
    from polstore.archive.stats import RunStats

__all__ = ["copy", "gc", "import_snapshots", "repack", "stats"]

RunOrAll = Annotated[str | None, typer.Option("--run", metavar="NAME", help="Name of the run; all runs if left out.")]


def stats(store: StorePath, run: RunOrAll = None, as_json: AsJson = False) -> None:
    """Show how many bytes the runs of a store take, and in what."""
    with terminal.progress() as progress, open_store(store, readonly=True) as opened:
        found = store_stats(opened, run, progress)
    if as_json:
        terminal.emit_json(found.as_json())
        return
    columns = ("run", "snapshots", "segments", "keyframes", "state", "stored", "ratio", "shared", "encodings")
    show_table(columns, [_row(each) for each in found.runs])
    terminal.emit(
        f"all runs: {_size(found.logical)} of state in {_size(found.stored)}, ratio {found.ratio:.2f}; "
        f"{found.blobs} blobs of {_size(found.blob_bytes)}, "
        f"{found.unreferenced} of {_size(found.unreferenced_bytes)} unreferenced; "
        f"{found.ledger} ledger entries; data file {_size(found.file)}"
    )


def gc(
    store: StorePath,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it nothing is changed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go: the default.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete blobs and stored snapshots that no run needs.

    Only says what would go unless --yes is given.
    """
    if yes and dry_run:
        raise UsageError("gc", expected="--yes or --dry-run", got="both")
    with terminal.progress() as progress, open_store(store, readonly=not yes) as opened:
        garbage = collect(opened, progress) if yes else find(opened, progress)
    if as_json:
        terminal.emit_json(garbage.as_json())
        return
    for digest in garbage.blobs:
        terminal.emit(f"blob {digest.hex()}")
    for digest in garbage.snapshots:
        terminal.emit(f"snapshot {digest.hex()}")
    total = _size(garbage.blob_bytes + garbage.snapshot_bytes)
    what = f"{len(garbage.blobs)} blobs and {len(garbage.snapshots)} stored snapshots, {total}"
    if yes:
        terminal.note(
            f"deleted {what}; {garbage.kept} blobs are needed. The file keeps its length, the room is used again"
        )
    else:
        terminal.note(f"would delete {what}; {garbage.kept} blobs are needed. Delete with --yes")


def repack(
    store: StorePath,
    run: RunOrAll = None,
    level: Annotated[int, typer.Option(metavar="N", help="Level of zstd, 1 to 22.")] = DEFAULT_LEVEL,
    keyframe_every: Annotated[
        int | None,
        typer.Option(metavar="N", help="Snapshots that share one keyframe; keeps every snapshot's base if left out."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only measure.")] = False,
    as_json: AsJson = False,
) -> None:
    """Store snapshots in fewer bytes.

    No digest and no signed root changes.
    """
    with terminal.progress() as progress, open_store(store, readonly=dry_run) as opened:
        done = repack_store(opened, run, progress, level=level, keyframe_every=keyframe_every, dry_run=dry_run)
    if as_json:
        terminal.emit_json(done.as_json())
    else:
        for damage in done.damages:
            terminal.emit(terminal.text(f"damaged: {damage}"))
        would = "would be " if dry_run else ""
        terminal.note(
            f"{done.rewritten} of {done.snapshots} snapshots {would}rewritten, {done.based_anew} of them against "
            f"another base: {_size(done.before)} before, {_size(done.after)} after"
        )
    if done.damages:
        raise DamagedError(
            f"{len(done.damages)} of {done.snapshots + len(done.damages)} snapshots were left as they are"
        )


def copy(
    source: Annotated[Path, typer.Option("--from", metavar="DIR", help="Directory of the store to copy from.")],
    destination: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="Directory of the store to copy into; made if missing.")
    ],
    run: RunOrAll = None,
    as_json: AsJson = False,
) -> None:
    """Copy runs into another store, everything checked on the way.

    Copying again completes a copy that was stopped, and adds what was recorded since. The ledger is not copied: every
    store keeps its own, which enters what is committed there.
    """
    with terminal.progress() as progress, open_store(source, readonly=True) as from_store:
        if run is not None:
            with from_store.read() as view:
                choose_run(view.runs(), run)  # before a store is made for nothing
        with open_store(destination, create=True) as to_store:
            copied = copy_runs(from_store, to_store, run, progress)
    if as_json:
        terminal.emit_json([each.as_json() for each in copied])
        return
    for each in copied:
        terminal.note(
            f"run {each.run}: {each.segments} segments, {each.added} of them new; copied {each.snapshots} snapshots, "
            f"{each.blobs} blobs of {_size(each.bytes)}, {each.roots} signed roots"
        )


def import_snapshots(
    source: Annotated[Path, typer.Argument(metavar="PATH", help="Directory of saved snapshots, or one of them.")],
    store: StorePath,
    run: Annotated[str, typer.Option(metavar="NAME", help="Name of the new run.")],
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="L",
            help="huggingface, paper, lightning, torch or safetensors; by the names of the files if left out.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a run of snapshots that were saved by other means.

    It can be signed and archived, and nobody can replay it: there is no recipe.
    """
    check_run_name(run)
    find_sources(source, layout)  # before torch is loaded, or a store is made, for nothing
    from polstore.archive.importing import import_run  # leads to torch

    with terminal.progress() as progress, open_store(store, create=True) as opened:
        done = import_run(source, opened, run, progress, layout=layout)
    if as_json:
        terminal.emit_json(done.as_json())
    else:
        terminal.note(
            f"imported {done.snapshots} snapshots of layout {done.layout} as run {run}, {done.added} of them new; "
            f"its step 0 is step {done.first_step} of the training. Nobody can replay it: there is no recipe"
        )


def _row(run: RunStats) -> list[str]:
    encodings = ", ".join(f"{name} {_size(size)}" for name, size in run.encodings.items())
    shared = f"{run.shared} blobs, {_size(run.shared_bytes)}"
    counts = [str(number) for number in (run.snapshots, run.segments, run.keyframes)]
    return [run.run, *counts, _size(run.logical), _size(run.stored), f"{run.ratio:.2f}", shared, encodings or "none"]


def _size(count: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
