"""Commands of the trainer: keygen, record, commit, prove."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from polstore import keyfile, terminal
from polstore.cli.options import RunName, StorePath, choose_run
from polstore.errors import ProofError, UsageError
from polstore.files import read_file, write_atomic
from polstore.prover import commit as commit_run
from polstore.prover import prove as prove_run
from polstore.reader import open_archive
from polstore.storage.store import open_store
from polstore.wire.challenge import MAX_BYTES as MAX_CHALLENGE
from polstore.wire.challenge import Challenge
from polstore.wire.checkpoint import parse_text
from polstore.wire.note import parse as parse_note

__all__ = ["commit", "keygen", "prove", "record"]


def keygen(
    name: Annotated[
        str, typer.Option(help="Name of the signer, for instance example.com/alice; origins begin with it.")
    ],
    out: Annotated[Path, typer.Option(help="Private key file to make; the public lines go into OUT.pub.")],
) -> None:
    """Make a signing key: OUT (keep it secret) and OUT.pub (give it to verifiers)."""
    key = keyfile.generate(name, out)
    for line in key.verifier_keys():
        terminal.emit(line.line())


def record(
    recipe: Annotated[Path, typer.Argument(help="Python file with build and step.")],
    store: StorePath,
    run: Annotated[str, typer.Option(help="Name of the run.")],
    every: Annotated[int, typer.Option(help="Steps from one snapshot to the next.")],
    steps: Annotated[int | None, typer.Option(help="Steps in all; one pass over the data if left out.")] = None,
    fidelity: Annotated[str, typer.Option(help="float16-writeback or lossless.")] = "float16-writeback",
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last snapshot, if there is one.")] = False,
    seed: Annotated[int | None, typer.Option(help="Number to derive all randomness from; fresh if left out.")] = None,
    config: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for the recipe's build; VALUE in JSON, or else text.")
    ] = None,
) -> None:
    """Train what RECIPE describes and record it."""
    from polstore.codec.live.recipe import RecipeFile  # leads to torch, like the next one
    from polstore.recording import record_recipe

    if steps is not None and steps < 1:
        raise UsageError("--steps", expected="1 or more", got=steps)
    with terminal.progress() as progress:
        recorder, training, loaded = record_recipe(
            RecipeFile.read(recipe),
            every=every,
            store=store,
            run=run,
            config=dict(map(_setting, config or [])),
            seed=seed,
            fidelity=fidelity,
            device=device,
            resume=resume,
            progress=lambda done, total: progress("hashing samples", done, total),
        )
        with recorder:
            total = steps if steps is not None else len(training.loader)
            first = recorder.steps_done
            recorder.train(
                training, loaded.step, total, lambda done, _loss: progress("training", done - first, total - first)
            )
            done = recorder.steps_done
    terminal.note(f"recorded run {run}: {done} steps, a snapshot every {every}")


def commit(
    store: StorePath,
    key: Annotated[Path, typer.Option(help="Private key file, made by keygen.")],
    run: RunName = None,
    out: Annotated[Path | None, typer.Option(help="File for the signed root; stdout if left out.")] = None,
) -> None:
    """Sign the root over all that was recorded so far."""
    signing_key = keyfile.load_signing_key(key)
    with open_store(store) as opened:
        with opened.read() as view:
            name = choose_run(view.runs(), run)
        signed = commit_run(opened, name, signing_key)
    if out is None:
        terminal.emit(signed.decode().removesuffix("\n"))
    else:
        write_atomic(out, signed)
        checkpoint = parse_text(parse_note(signed).text)
        terminal.note(f"signed {checkpoint.size} leaves of {checkpoint.origin} into {out}")


def prove(
    store: StorePath,
    out: Annotated[Path, typer.Option(help="Bundle file to write.")],
    run: RunName = None,
    segment: Annotated[list[int] | None, typer.Option(help="Segment to open; may be repeated.")] = None,
    challenge: Annotated[Path | None, typer.Option(help="Challenge file from polverify.")] = None,
) -> None:
    """Open segments of a run under its signed root, in a bundle that polverify checks."""
    if bool(segment) == (challenge is not None):
        raise UsageError("what to open", expected="--segment or --challenge", got="both" if segment else "neither")
    with open_archive(store) as archive:
        name = choose_run(archive.runs(), run)
        found = archive.run(name)
        if challenge is None:
            proof = prove_run(found, segment or [])
        else:
            asked = _read_challenge(challenge)
            root = parse_text(parse_note(found.signed_root(asked.size)).text)
            asked.require(root.origin, root.size, root.root)
            proof = prove_run(found, asked.segments, asked.size)
        proof.write(out)
    terminal.note(f"opened {len(proof.bundle.opened)} of {proof.bundle.size - 1} segments of {name} into {out}")


def _read_challenge(path: Path) -> Challenge:
    data = read_file(path, MAX_CHALLENGE)
    try:
        return Challenge.parse(data)
    except ProofError as error:
        raise type(error)(f"challenge {path}: {error}") from error


def _setting(text: str) -> tuple[str, bool | int | float | str | None]:
    """Parse NAME=VALUE; raises `UsageError`."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError("--config", expected="NAME=VALUE", got=text)
    try:
        parsed = json.loads(value)
    except ValueError:
        return name, value
    if isinstance(parsed, (list, dict)):
        raise UsageError(f"--config {name}", expected="a number, true, false, null or text", got=value)
    return name, parsed
