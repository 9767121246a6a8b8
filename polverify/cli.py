"""The command `polverify`: challenge, check, chain, show.

Exit codes: 0 ACCEPT or fine, 1 REJECT, 2 wrong usage, 3 INCONCLUSIVE, 4 the caller's side at fault, 130 interrupted.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polstore import keyfile, terminal
from polstore.codec.live.recipe import RecipeFile
from polstore.errors import CallerError, ProofError, UsageError
from polstore.files import read_file, write_atomic
from polstore.wire.challenge import MAX_BYTES as MAX_CHALLENGE
from polstore.wire.challenge import NONCE_SIZE, Challenge
from polstore.wire.checkpoint import open_root
from polstore.wire.lineage import MAX_LINEAGE
from polstore.wire.note import MAX_NOTE
from polstore.wire.tlog_proof import MAX_FILE
from polverify.chain import OwnVerdict, check_chain
from polverify.show import claims
from polverify.verdict import Outcome, Verdict
from polverify.verify import Request, verify

__all__ = ["app", "main"]

app = typer.Typer(
    name="polverify",
    help="Check a proof-of-learning against a signed root.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: boxes cut option names, and show switches as if they took a value
    add_completion=False,
)

SignedRoot = Annotated[Path, typer.Argument(metavar="SIGNED_ROOT", help="Signed root, as polstore commit wrote it.")]
Key = Annotated[Path, typer.Option(metavar="KEY.pub", help="Verifier keys of the signer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]

MAX_VERDICT = 64 * 2**20  # bytes; one line for each opened segment

MARKS = {
    Outcome.PASSED: ("ok", "green"),
    Outcome.FAILED: ("FAILED", "red"),
    Outcome.UNDECIDED: ("undecided", "yellow"),
    Outcome.NOT_MADE: ("-", "dim"),
}


@app.command()
def challenge(
    signed_root: SignedRoot,
    key: Key,
    segments: Annotated[int, typer.Option(metavar="N", help="Segments to open, in all.")],
    out: Annotated[Path, typer.Option(metavar="CHALLENGE", help="Challenge file to write.")],
    random: Annotated[
        int | None,
        typer.Option(metavar="R", help="How many of them the nonce draws; all but the first and the last if left out."),
    ] = None,
    nonce: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="64 hex digits that the prover could not know; fresh if left out."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the segments that the prover has to open.

    Do it after the root was signed, never before.
    """
    opened = open_root(read_file(signed_root, MAX_NOTE), keyfile.load_verifier_keys(key))
    drawn = Challenge.draw(
        opened.checkpoint.origin,
        opened.checkpoint.size,
        opened.checkpoint.root,
        segments=segments,
        random=random,
        nonce=_nonce(nonce),
    )
    write_atomic(out, drawn.encode())
    if as_json:
        terminal.emit_json(claims(out))
    terminal.note(f"challenged {len(drawn.segments)} of {opened.checkpoint.size - 1} segments in {out}")


@app.command()
def check(
    signed_root: SignedRoot,
    key: Key,
    bundle: Annotated[Path, typer.Option(metavar="BUNDLE", help="Bundle, as polstore prove wrote it.")],
    recipe: Annotated[
        Path, typer.Option(metavar="RECIPE", help="Your own copy of the recipe. It is executed: read it first.")
    ],
    challenge: Annotated[
        Path | None, typer.Option(metavar="CHALLENGE", help="The challenge that the bundle answers.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="D", help="Where to replay: cpu, cuda, cuda:1.")] = "cpu",
    lineage: Annotated[
        Path | None, typer.Option(metavar="LINEAGE", help="Evidence for the run's parent, from polstore lineage.")
    ] = None,
    parent_key: Annotated[
        Path | None, typer.Option(metavar="KEY.pub", help="Verifier keys of the parent's signer; --key if left out.")
    ] = None,
    parent_root: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own copy of the parent's signed root.")
    ] = None,
    parent_proof: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Inclusion proof (.tlog-proof) of that root in a ledger.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a bundle against a signed root, and say so.

    Signatures, inclusion, continuity, data, and a replay of each opened segment. Exit code: 0 ACCEPT, 1 REJECT,
    3 INCONCLUSIVE; 2 and 4 mean that there is no verdict.
    """
    if lineage is None and (parent_key or parent_root or parent_proof):
        raise UsageError("--parent-key, --parent-root, --parent-proof", expected="--lineage beside them", got=None)
    with terminal.progress() as progress, terminal.recipe_at_work():
        verdict = verify(
            Request(
                signed_root=read_file(signed_root, MAX_NOTE),
                keys=keyfile.load_verifier_keys(key),
                bundle=bundle,
                recipe=RecipeFile.read(recipe),
                challenge=None if challenge is None else _own_challenge(challenge),
                device=device,
                lineage=None if lineage is None else read_file(lineage, MAX_LINEAGE),
                parent_keys=() if parent_key is None else keyfile.load_verifier_keys(parent_key),
                parent_root=None if parent_root is None else read_file(parent_root, MAX_NOTE),
                parent_proof=None if parent_proof is None else read_file(parent_proof, MAX_FILE),
                progress=progress,
            )
        )
    if as_json:
        terminal.emit_json(verdict.as_json())
    else:
        _print(verdict)
    raise typer.Exit(verdict.exit_code)


@app.command()
def chain(
    lineages: Annotated[list[Path], typer.Argument(metavar="LINEAGE...", help="Evidence for each link, in any order.")],
    key: Annotated[list[Path], typer.Option(metavar="KEY.pub", help="Verifier keys of a signer; repeatable.")],
    verdict: Annotated[
        list[Path] | None,
        typer.Option(metavar="VERDICT", help="Your own verdict on a run, from check --json; repeatable."),
    ] = None,
    confidence: Annotated[float, typer.Option(metavar="P", help="Probability that the whole chain is to keep.")] = 0.99,
    as_json: AsJson = False,
) -> None:
    """Follow a run's parents to the root of its lineage, and say what the whole chain is worth.

    Links are verified here; verdicts are believed, so give none but your own. Exit code: 0 ACCEPT, 1 REJECT,
    3 INCONCLUSIVE; 2 and 4 mean that there is no verdict.
    """
    found = check_chain(
        [read_file(path, MAX_LINEAGE) for path in lineages],
        [item for path in key for item in keyfile.load_verifier_keys(path)],
        [_own_verdict(path) for path in verdict or []],
        confidence=confidence,
    )
    if as_json:
        terminal.emit_json(found.as_json())
    else:
        terminal.emit(f"{found.decision.name}: {terminal.text(found.reason)}")
        for line in found.lines():
            terminal.emit(terminal.text(line))
        for warning in found.warnings:
            terminal.emit(f"note: {terminal.text(warning)}")
    raise typer.Exit(found.decision.value)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Signed root, bundle or challenge.")],
    as_json: AsJson = False,
) -> None:
    """Show what a file claims; nothing is verified or executed."""
    found = claims(file)
    if as_json:
        terminal.emit_json(found)
        return
    for name, value in found.items():
        terminal.emit(f"{name}: {terminal.text(value)}")


def main() -> None:
    """Run the command line."""
    terminal.run(app)


def _own_challenge(path: Path) -> Challenge:
    """Read the verifier's own challenge; a broken one is the verifier's fault, not the proof's."""
    try:
        return Challenge.parse(read_file(path, MAX_CHALLENGE))
    except ProofError as error:
        raise CallerError(f"challenge {path}: {error}") from error


def _own_verdict(path: Path) -> OwnVerdict:
    """Read a verdict of the caller's own; raises `CallerError`."""
    try:
        value = json.loads(read_file(path, MAX_VERDICT))
    except (ValueError, RecursionError) as error:
        raise CallerError(f"{path} is no verdict of polverify check --json: {error}") from error
    return OwnVerdict.from_json(value, str(path))


def _nonce(text: str | None) -> bytes:
    if text is None:
        return secrets.token_bytes(NONCE_SIZE)
    try:
        nonce = bytes.fromhex(text)
    except ValueError as error:
        raise UsageError("--nonce", expected="64 hex digits", got=text) from error
    if len(nonce) != NONCE_SIZE:
        raise UsageError("--nonce", expected="64 hex digits", got=text)
    return nonce


def _print(verdict: Verdict) -> None:
    """Print the verdict: its one line first, then how it came about."""
    console = Console()
    if not console.is_terminal:
        terminal.emit(f"{verdict.decision.name}: {terminal.text(verdict.reason)}")
        for item in verdict.checks:
            terminal.emit(f"{item.number:2} {item.name}: {MARKS[item.outcome][0]}: {terminal.text(item.detail)}")
        for warning in verdict.warnings:
            terminal.emit(f"note: {terminal.text(warning)}")
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # never cut a digest
    for item in verdict.checks:
        mark, style = MARKS[item.outcome]
        table.add_row(str(item.number), item.name, Text(mark, style), Text(terminal.text(item.detail)))
    color = {"ACCEPT": "bold green", "REJECT": "bold red"}.get(verdict.decision.name, "bold yellow")
    console.print(Text.assemble((verdict.decision.name, color), " ", terminal.text(verdict.reason)))
    console.print(table)
    for warning in verdict.warnings:
        console.print(Text(f"note: {terminal.text(warning)}", "dim"))
