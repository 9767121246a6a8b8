"""Commands that only read a store: ls, show, fsck, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polstore import terminal
from polstore.cli.options import AsJson, RunName, StorePath, choose_run
from polstore.errors import DamagedError
from polstore.fsck import check_store
from polstore.reader import open_archive
from polstore.storage.store import open_store

if TYPE_CHECKING:
    from polstore.reader import Run

__all__ = ["export", "fsck", "list_runs", "show"]


def list_runs(store: StorePath, as_json: AsJson = False) -> None:
    """List the runs of a store."""
    with open_archive(store) as archive:
        rows = [_summary(archive.run(name)) for name in archive.runs()]
    if as_json:
        terminal.emit_json(rows)
        return
    columns = ("run", "steps", "segments", "every", "fidelity", "complete", "signed")
    _table(columns, [[row[column] for column in columns] for row in rows])


def show(
    store: StorePath,
    run: RunName = None,
    segment: Annotated[int | None, typer.Option(help="Show this segment's record.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run declared, or one segment of it."""
    with open_archive(store) as archive:
        found = archive.run(choose_run(archive.runs(), run))
        facts = _manifest(found) if segment is None else _segment(found, segment)
    if as_json:
        terminal.emit_json(facts)
    else:
        _table(("field", "value"), [[name, _text(value)] for name, value in facts.items()])


def fsck(store: StorePath, as_json: AsJson = False) -> None:
    """Check every blob, record, tree node and signed root of a store."""
    with terminal.progress() as progress, open_store(store, readonly=True) as opened:
        report = check_store(opened, progress)
    if as_json:
        terminal.emit_json(report.as_json())
    else:
        for damage in report.damages:
            terminal.emit(f"damaged: {damage.what}: {damage.error}; affects {damage.cost}")
    if report.damages:
        raise DamagedError(f"{len(report.damages)} damages in {report.blobs} blobs and {report.runs} runs")
    terminal.note(f"no damage in {report.blobs} blobs, {report.snapshots} snapshots and {report.runs} runs")


def export(
    out: Annotated[Path, typer.Argument(help="safetensors file to write.")],
    store: StorePath,
    step: Annotated[int, typer.Option(help="Step of the snapshot.")],
    run: RunName = None,
) -> None:
    """Write a snapshot's weights as a safetensors file."""
    with open_archive(store) as archive:
        name = choose_run(archive.runs(), run)
        archive.run(name).export(step, out)
    terminal.note(f"wrote the weights of {name} at step {step} to {out}")


def _summary(run: Run) -> dict[str, Any]:
    signed = run.signed_sizes()
    return {
        "run": run.name,
        "steps": run.snapshots[-1],
        "segments": len(run.segments),
        "every": run.manifest.every,
        "fidelity": run.manifest.fidelity,
        "complete": run.complete,
        "signed": f"{signed[-1] - 1} segments" if signed else "no",
    }


def _manifest(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    return _summary(run) | {
        "recipe": f"{manifest.recipe.kind} {manifest.recipe.digest.hex()}",
        "config": dict(manifest.recipe.config),
        "dataset": f"{manifest.dataset.size} samples, root {manifest.dataset.root.hex()}",
        "optimizer": manifest.optimizer.name,
        "seed": manifest.seed,
        "sampler": manifest.sampler,
        "initial state": f"{manifest.initial.kind} {manifest.initial.state.hex()}",
        "environment": manifest.environment.value(),
        "snapshots": run.snapshots,
        "signed sizes": run.signed_sizes(),
    }


def _segment(run: Run, index: int) -> dict[str, Any]:
    record, steps = run.segment(index), run.steps(index)
    return {
        "segment": record.index,
        "steps": f"{record.start_step} to {record.end_step - 1}",
        "start state": record.start_state,
        "end state": record.end_state,
        "base step": record.base_step,
        "norms": {name: getattr(record.norms, name) for name in ("l1", "l2", "linf", "cos")},
        "environment": record.environment.value(),
        "samples": len(steps.samples()),
        "losses": [step.loss for step in steps.steps],
    }


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return ", ".join(f"{name}={_text(item)}" for name, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        text = ", ".join(_text(item) for item in value)
        return text if len(text) <= 400 else text[:400] + " …"
    return str(value)


def _table(columns: tuple[str, ...], rows: list[list[Any]]) -> None:
    """Print a table to stdout; plain text where stdout is no terminal."""
    console = Console()
    if not console.is_terminal:
        for row in (list(columns), *rows):
            terminal.emit("\t".join(_text(cell) for cell in row))
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(_text(cell)) for cell in row))
    console.print(table)
