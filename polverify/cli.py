"""The command `polverify`: challenge, plan, check, calibrate, report, chain, log, show.

Exit codes: 0 ACCEPT or fine, 1 REJECT, 2 wrong usage, 3 INCONCLUSIVE, 4 the caller's side at fault, 130 interrupted.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from polstore import terminal
from polstore.errors import CallerError, UsageError
from polstore.files import read_file, write_atomic
from polstore.wire.ledger import MAX_CONSISTENCY_BYTES
from polstore.wire.lineage import MAX_LINEAGE
from polstore.wire.note import MAX_NOTE
from polstore.wire.policy import log_keys
from polverify.asking import challenge, plan
from polverify.chain import OwnVerdict, check_chain
from polverify.checking import calibrate, check
from polverify.log import check_log
from polverify.options import AsJson
from polverify.printing import page_of, print_verdict
from polverify.show import claims
from polverify.trust import KeyName, Keys, PolicyFile, trusted_keys, verifier_policy
from polverify.verdict import MAX_VERDICT

__all__ = ["app", "main"]

app = typer.Typer(
    name="polverify",
    help="Check a proof-of-learning against a signed root.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: boxes cut option names, and show switches as if they took a value
    add_completion=False,
)

app.command()(challenge)
app.command()(plan)
app.command()(check)
app.command()(calibrate)


@app.command()
def report(
    verdict: Annotated[Path, typer.Argument(metavar="VERDICT", help="Verdict, as polverify check --json printed it.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="HTML file to write.")],
) -> None:
    """Write a saved verdict as a page for people.

    One HTML file that needs nothing else. Nothing is checked again: the page is worth what the verdict file is.
    """
    from polverify.report import parse_verdict

    write_atomic(out, page_of(parse_verdict(read_file(verdict, MAX_VERDICT))))


@app.command()
def log(
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="Signed head of a ledger, from polstore log head.")],
    state: Annotated[Path, typer.Option(metavar="FILE", help="File of your own that keeps the last head seen.")],
    consistency: Annotated[
        Path | None,
        typer.Option(metavar="PROOF", help="Proof from the kept head to this one, from polstore log consistency."),
    ] = None,
    max_age: Annotated[
        int | None, typer.Option(metavar="S", help="Reject a head that was signed more than S seconds ago.")
    ] = None,
    key: Keys = None,
    name: KeyName = None,
    policy: PolicyFile = None,
    as_json: AsJson = False,
) -> None:
    """Check a ledger's head against the last one seen, and keep it.

    Rollback and split view are rejected, and both notes kept in FILE.evidence. Exit codes as for check; 3 where a
    larger head comes without a proof.
    """
    if max_age is not None and max_age < 0:
        raise UsageError("--max-age", expected="0 or more", got=max_age)
    keys, trusted = trusted_keys(key, name, policy)
    verdict = check_log(
        read_file(head, MAX_NOTE),
        keys,
        state,
        any_of=log_keys(trusted),
        consistency=None if consistency is None else read_file(consistency, MAX_CONSISTENCY_BYTES),
        not_before=None if max_age is None else int(time.time()) - max_age,
    )
    if as_json:
        terminal.emit_json(verdict.as_json())
    else:
        print_verdict(verdict)
    raise typer.Exit(verdict.exit_code)


@app.command()
def chain(
    lineages: Annotated[list[Path], typer.Argument(metavar="LINEAGE...", help="Evidence for each link, in any order.")],
    verdict: Annotated[
        list[Path] | None,
        typer.Option(metavar="VERDICT", help="Your own verdict on a run, from check --json; repeatable."),
    ] = None,
    confidence: Annotated[float, typer.Option(metavar="P", help="Probability that the whole chain is to keep.")] = 0.99,
    key: Keys = None,
    name: KeyName = None,
    policy: PolicyFile = None,
    as_json: AsJson = False,
) -> None:
    """Join runs to their parents, and say what the chain is worth.

    A run's parents are followed to the root of its lineage. Links are verified here, each signed root with the keys
    that have its signer's name; verdicts are believed, so give none but your own. Exit code: 0 ACCEPT, 1 REJECT,
    3 INCONCLUSIVE; 2 and 4 mean that there is no verdict.
    """
    keys, trusted = trusted_keys(key, name, policy)
    own = verifier_policy(policy)
    found = check_chain(
        [read_file(path, MAX_LINEAGE) for path in lineages],
        keys,
        [_own_verdict(path) for path in verdict or []],
        any_of=log_keys(trusted),
        confidence=confidence,
        policy=None if own is None else own.digest,
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
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Signed root, bundle, challenge, lineage or inclusion proof.")
    ],
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


def _own_verdict(path: Path) -> OwnVerdict:
    """Read a verdict of the caller's own; raises `CallerError`."""
    try:
        value = json.loads(read_file(path, MAX_VERDICT))
    except (ValueError, RecursionError) as error:
        raise CallerError(f"{path} is no verdict of polverify check --json: {error}") from error
    return OwnVerdict.from_json(value, str(path))
