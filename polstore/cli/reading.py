"""Commands that only read a store: ls, show, fsck, export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polstore import terminal
from polstore.archive.provenance import Provenance
from polstore.cli.options import AsJson, RunName, StorePath, choose_run
from polstore.errors import DamagedError, UsageError
from polstore.fsck import check_store
from polstore.keyfile import load_verifier_keys
from polstore.reader import open_archive
from polstore.storage.store import open_store

if TYPE_CHECKING:
    from polstore.reader import Archive, Run
    from polstore.wire.environment import Environment

__all__ = ["export", "fsck", "list_runs", "show", "show_table"]

MAX_CELL = 400  # characters of a value in a table; --json has all of it
COLUMNS = ("run", "steps", "segments", "every", "fidelity", "complete", "signed_segments")


def list_runs(store: StorePath, as_json: AsJson = False) -> None:
    """List the runs of a store."""
    with open_archive(store) as archive:
        rows = [_row(archive, name) for name in archive.runs()]
    if as_json:
        terminal.emit_json(rows)
    else:
        show_table(COLUMNS, [[row.get(column, "?") for column in COLUMNS] for row in rows])
    damaged = [row["damage"] for row in rows if "damage" in row]
    if damaged:
        raise DamagedError(
            f"{len(damaged)} of {len(rows)} runs cannot be read, see polstore fsck; the first: {damaged[0]}"
        )


def show(
    store: StorePath,
    run: RunName = None,
    segment: Annotated[
        int | None, typer.Option(metavar="I", help="Show this segment's record, counted from 0.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run declared, or one segment of it."""
    _require_not_negative("--segment", segment)
    with open_archive(store) as archive:
        found = archive.run(choose_run(archive.runs(), run))
        facts = _manifest(found) if segment is None else _segment(found, segment)
    if as_json:
        terminal.emit_json(facts)
    else:
        show_table(("field", "value"), [[name.replace("_", " "), value] for name, value in facts.items()])


def fsck(
    store: StorePath,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Public keys to check signatures under; repeatable. Without any, no signature is."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check all that a store holds, and name what is damaged."""
    keys = tuple(dict.fromkeys(found for file in key or () for found in load_verifier_keys(file)))
    with terminal.progress() as progress, open_store(store, readonly=True) as opened:
        report = check_store(opened, progress, keys)
    if as_json:
        terminal.emit_json(report.as_json())
    else:
        for damage in report.damages:
            terminal.emit(terminal.text(f"damaged: {damage.what}: {damage.error}; affects {damage.cost}"))
        for what in report.other_signers:
            terminal.note(f"signed by none of these keys: {what}")
        for root in report.not_entered:
            terminal.note(f"not in the ledger, as it was copied or is older than that: {root}")
    size = f"{report.blobs} blobs, {report.snapshots} snapshots, {report.runs} runs and {report.ledger} ledger entries"
    if keys:
        size += f"; {report.signatures} signed roots and heads hold under these keys"
    if report.damages:
        raise DamagedError(f"{len(report.damages)} damages in {size}")
    terminal.note(f"no damage in {size}")


def export(
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="File to write.")],
    store: StorePath,
    step: Annotated[int, typer.Option(metavar="N", help="Step of the snapshot.")],
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Write a snapshot's weights as a safetensors file."""
    _require_not_negative("--step", step)
    with open_archive(store) as archive:
        name = choose_run(archive.runs(), run)
        archive.run(name).export(step, out)
    if as_json:
        terminal.emit_json({"run": name, "step": step, "out": str(out)})
    terminal.note(f"wrote the weights of {name} at step {step} to {out}")


def _require_not_negative(option: str, number: int | None) -> None:
    if number is not None and number < 0:
        raise UsageError(option, expected="0 or more", got=number)


def _row(archive: Archive, name: str) -> dict[str, Any]:
    """Return what `ls` says of a run; a damaged one must not hide the others."""
    try:
        return _summary(archive.run(name))
    except DamagedError as error:
        return {"run": name, "damage": str(error)}


def _summary(run: Run) -> dict[str, Any]:
    signed = run.newest_signed_size
    newest = run.newest_snapshot
    if newest is None:
        raise DamagedError(f"run {run.name} has lost its snapshots")
    return {
        "run": run.name,
        "steps": newest,
        "segments": len(run.segments),
        "every": run.manifest.every,
        "fidelity": run.manifest.fidelity,
        "complete": run.complete,
        "signed_segments": signed - 1 if signed else None,
    }


def _manifest(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    provenance = Provenance.find(manifest.extensions)
    return _summary(run) | {
        "recipe": {"kind": manifest.recipe.kind, "sha256": manifest.recipe.digest},
        "config": dict(manifest.recipe.config),
        "dataset": {"size": manifest.dataset.size, "root": manifest.dataset.root},
        "optimizer": manifest.optimizer.name,
        "seed": manifest.seed,
        "sampler": manifest.sampler,
        "initial_state": {"kind": manifest.initial.kind, "state": manifest.initial.state},
        "environment": _environment(manifest.environment),
        "imported": None if provenance is None else asdict(provenance),
        "snapshots": run.snapshots,
        "signed_sizes": run.signed_sizes(),
    }


def _segment(run: Run, index: int) -> dict[str, Any]:
    record, steps = run.segment(index), run.steps(index)
    return {
        "segment": record.index,
        "start_step": record.start_step,
        "end_step": record.end_step,
        "start_state": record.start_state,
        "end_state": record.end_state,
        "base_step": record.base_step,
        "norms": {name: getattr(record.norms, name) for name in ("l1", "l2", "linf", "cos")},
        "environment": _environment(record.environment),
        "samples": len(steps.samples()),
        "losses": [step.loss for step in steps.steps],
    }


def _environment(environment: Environment) -> dict[str, Any]:
    return asdict(environment) | {"flags": dict(environment.flags)}


def _cell(value: Any) -> str:
    line = terminal.text(value)
    return line if len(line) <= MAX_CELL else line[:MAX_CELL] + " …"


def show_table(columns: tuple[str, ...], rows: list[list[Any]]) -> None:
    """Print a table to stdout; tab-separated text, uncut, where stdout is no terminal."""
    titles = [column.replace("_", " ") for column in columns]
    console = Console()
    if not console.is_terminal:
        for row in (titles, *rows):
            terminal.emit("\t".join(terminal.text(cell) for cell in row))
        return
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(cell)) for cell in row))
    console.print(table)
