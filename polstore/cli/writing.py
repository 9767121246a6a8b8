"""Commands of the trainer: record, commit, prove, lineage."""

from __future__ import annotations

import json
import math
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polstore import terminal
from polstore.ancestry import lineage as prove_lineage
from polstore.ancestry import named_parent
from polstore.cli.keys import KeyName, PassphraseFile, PrivateKeys, load_keys
from polstore.cli.options import AsJson, RunName, StorePath, choose_run
from polstore.errors import PolstoreError, ProofError, TrainingError, UsageError
from polstore.files import read_file, write_atomic
from polstore.not_before import read_checkpoint
from polstore.prover import commit as commit_run
from polstore.prover import prove as prove_run
from polstore.prover import prove_records
from polstore.reader import open_archive
from polstore.storage.store import open_store
from polstore.wire import canonical
from polstore.wire.challenge import MAX_BYTES as MAX_CHALLENGE
from polstore.wire.challenge import Challenge
from polstore.wire.checkpoint import parse_text
from polstore.wire.note import MAX_NOTE
from polstore.wire.note import parse as parse_note

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["commit", "lineage", "prove", "record"]


def record(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Python file with build and step.")],
    store: StorePath,
    run: Annotated[str, typer.Option(metavar="NAME", help="Name of the run.")],
    every: Annotated[int, typer.Option(metavar="K", help="Steps from one snapshot to the next.")],
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps in all; one pass over the data if left out.")
    ] = None,
    fidelity: Annotated[
        str,
        typer.Option(metavar="F", help="What is kept: float16-writeback, compact-writeback, float16 or lossless."),
    ] = "float16-writeback",
    device: Annotated[str, typer.Option(metavar="D", help="Where to train: cpu, cuda, cuda:1.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last snapshot, if there is one.")] = False,
    sync: Annotated[
        bool,
        typer.Option(
            "--sync/--no-sync",
            help="Whether a snapshot counts only once the device has it; if not, a power failure can harm the store.",
        ),
    ] = True,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Number to derive all randomness from; fresh if left out.")
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(metavar="STORE[:RUN]", help="Signed run whose last snapshot to start from."),
    ] = None,
    parent_root: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Signed root of the parent; its newest one if left out.")
    ] = None,
    not_before: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="A recent witnessed checkpoint, to show that training began after it."),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Setting for the recipe's build; VALUE in JSON, or else text. Repeatable."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train what RECIPE describes and record it."""
    if steps is not None and steps < 1:
        raise UsageError("--steps", expected="1 or more", got=steps)
    settings = _settings(config or [])
    if parent is None and parent_root is not None:
        raise UsageError("--parent-root", expected="--parent beside it", got=parent_root)
    earlier = None if not_before is None else read_checkpoint(not_before)
    from polstore.codec.live.recipe import RecipeFile  # leads to torch, like the next one
    from polstore.recording import record_recipe

    recipe_file = RecipeFile.read(recipe)
    with terminal.progress() as progress, _recipe_at_work(recipe, run):
        recorder, training, loaded = record_recipe(
            recipe_file,
            every=every,
            store=store,
            run=run,
            config=settings,
            seed=seed,
            parent=parent,
            parent_root=None if parent_root is None else read_file(parent_root, MAX_NOTE),
            fidelity=fidelity,
            device=device,
            resume=resume,
            sync=sync,
            not_before=earlier,
            progress=lambda done, total: progress("hashing samples", done, total),
        )
        with recorder:
            total = steps if steps is not None else len(training.loader)
            first = recorder.steps_done
            recorder.train(
                training, loaded.step, total, lambda done, _loss: progress("training", done - first, total - first)
            )
            done = recorder.steps_done
    if as_json:
        terminal.emit_json({"run": run, "first_step": first, "steps": done, "every": every})
    terminal.note(f"recorded run {run}: {done} steps, a snapshot every {every}")


def commit(
    store: StorePath,
    key: PrivateKeys,
    run: RunName = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File for the signed root; stdout if left out.")
    ] = None,
    name: KeyName = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Sign the root over all that was recorded so far.

    With several keys of one name, as during a rotation, each of them signs.
    """
    keys = load_keys(key, name, passphrase_file)
    with open_store(store) as opened:
        with opened.read() as view:
            chosen = choose_run(view.runs(), run)
        signed = commit_run(opened, chosen, *keys)
    checkpoint = parse_text(parse_note(signed).text)
    if out is not None:
        write_atomic(out, signed)
        terminal.note(f"signed {checkpoint.size} leaves of {checkpoint.origin} into {out}")
    if as_json:
        terminal.emit_json(
            {
                "origin": checkpoint.origin,
                "leaves": checkpoint.size,
                "root": checkpoint.root,
                "signed_root": signed.decode(),
                "out": None if out is None else str(out),
            }
        )
    elif out is None:
        terminal.emit(signed.decode().removesuffix("\n"))


def prove(
    store: StorePath,
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="Bundle file to write.")],
    run: RunName = None,
    segment: Annotated[
        list[int] | None, typer.Option(metavar="I", help="Segment to open, counted from 0; repeatable.")
    ] = None,
    challenge: Annotated[Path | None, typer.Option(metavar="FILE", help="Challenge file from polverify.")] = None,
    records: Annotated[
        bool,
        typer.Option("--records", help="Open nothing: only show all segment records, for a verifier to choose by."),
    ] = False,
    audit: Annotated[
        bool, typer.Option("--audit", help="Hand over every snapshot, from which all norms can be computed again.")
    ] = False,
    leaves: Annotated[
        int | None,
        typer.Option(metavar="N", help="Leaves under the signed root to prove against; the newest if left out."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Open segments of a run in a bundle that polverify checks."""
    if bool(segment) + (challenge is not None) + records > 1 or not (segment or challenge or records or audit):
        wanted = "--segment, --challenge, --records or --audit"
        raise UsageError("what to open", expected=wanted, got="both" if segment and challenge else "neither or several")
    if records and audit:
        raise UsageError("--records", expected="no --audit, which shows the records too", got="both")
    if leaves is not None and challenge is not None:
        raise UsageError("--leaves", expected="no --challenge, which names its root", got="both")
    if segment and min(segment) < 0:
        raise UsageError("--segment", expected="0 or more", got=min(segment))
    with open_archive(store) as archive:
        name = choose_run(archive.runs(), run)
        found = archive.run(name)
        if records:
            proof = prove_records(found, leaves)
        elif challenge is None:
            proof = prove_run(found, segment or [], leaves, audit=audit)
        else:
            asked = _read_challenge(challenge)
            root = found.signed_checkpoint(asked.size)
            asked.require(root.origin, root.size, root.root)
            proof = prove_run(found, asked.segments, asked.size, audit=audit)
        proof.write(out)
    bundle = proof.bundle
    if as_json:
        terminal.emit_json(
            {
                "run": name,
                "leaves": bundle.size,
                "root": bundle.root,
                "segments": [opened.index for opened in bundle.opened],
                "out": str(out),
            }
        )
    terminal.note(f"opened {len(bundle.opened)} of {bundle.size - 1} segments of {name} into {out}")


def lineage(
    store: StorePath,
    out: Annotated[Path, typer.Option(metavar="LINEAGE", help="File to write.")],
    run: RunName = None,
    parent: Annotated[
        str | None,
        typer.Option(metavar="STORE[:RUN]", help="Where the parent is; the same store and its own name if left out."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that a run began with its parent's tensors.

    The file is for polverify check and polverify chain.
    """
    path, given = (store, None) if parent is None else named_parent(parent)
    with open_archive(store) as archive, open_archive(path) as parents:
        found = archive.run(choose_run(archive.runs(), run))
        wanted = found.manifest.initial.parent
        name = given or ("" if wanted is None else wanted.origin.rpartition("/")[2])
        evidence = prove_lineage(found, found if wanted is None else parents.run(name))
    write_atomic(out, evidence.encode())
    if as_json:
        terminal.emit_json(
            {
                "run": found.name,
                "parent": None if wanted is None else wanted.origin,
                "inherited": len(evidence.inherited),
                "tensors": len(evidence.entries),
                "out": str(out),
            }
        )
    terminal.note(
        f"{found.name} inherited {len(evidence.inherited)} of {len(evidence.entries)} tensors; proof in {out}"
    )


def _read_challenge(path: Path) -> Challenge:
    data = read_file(path, MAX_CHALLENGE)
    try:
        return Challenge.parse(data)
    except ProofError as error:
        raise type(error)(f"challenge {path}: {error}") from error


@contextmanager
def _recipe_at_work(recipe: Path, run: str) -> Iterator[None]:
    """Turn whatever a recipe raises into one line that says where; on Ctrl-C say how to go on."""
    try:
        with terminal.recipe_at_work():
            yield
    except (PolstoreError, OSError, MemoryError):
        raise
    except KeyboardInterrupt as error:
        terminal.note(
            f"interrupted; what run {run} has up to its last snapshot is kept, and --resume goes on from there"
        )
        raise typer.Exit(terminal.INTERRUPTED) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if frame.filename == str(recipe)] or frames
        place = f"{inside[-1].filename}, line {inside[-1].lineno}"
        raise TrainingError(f"recipe {recipe} failed: {type(error).__name__}: {error} ({place})") from error


def _settings(texts: list[str]) -> dict[str, bool | int | float | str | None]:
    """Parse the values of --config; raises `UsageError`."""
    settings: dict[str, bool | int | float | str | None] = {}
    for text in texts:
        name, value = _setting(text)
        if name in settings:
            raise UsageError("--config", expected="each name once", got=f"{name} twice")
        settings[name] = value
    return settings


def _setting(text: str) -> tuple[str, bool | int | float | str | None]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError("--config", expected="NAME=VALUE", got=text)
    try:
        parsed = json.loads(value, parse_constant=_no_constant)
        canonical.encode(parsed if not isinstance(parsed, (list, dict)) else None)
    except ProofError as error:
        raise UsageError(f"--config {name}", expected="-2**63 to 2**64 - 1", got=value) from error
    except (ValueError, RecursionError):
        return name, value
    if isinstance(parsed, (list, dict)) or (isinstance(parsed, float) and not math.isfinite(parsed)):
        raise UsageError(f"--config {name}", expected="a number, true, false, null or text", got=value)
    return name, parsed


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
