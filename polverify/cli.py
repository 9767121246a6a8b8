"""The command `polverify`: challenge, plan, check, calibrate, report, chain, log, show.

Exit codes: 0 ACCEPT or fine, 1 REJECT, 2 wrong usage, 3 INCONCLUSIVE, 4 the caller's side at fault, 130 interrupted.
"""

from __future__ import annotations

import json
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polstore import terminal
from polstore.codec.live.recipe import RecipeFile
from polstore.errors import CallerError, ProofError, UsageError
from polstore.files import read_file, write_atomic
from polstore.wire.challenge import MAX_BYTES as MAX_CHALLENGE
from polstore.wire.challenge import Challenge
from polstore.wire.ledger import MAX_CONSISTENCY_BYTES
from polstore.wire.lineage import MAX_LINEAGE
from polstore.wire.note import MAX_NOTE
from polstore.wire.policy import log_keys
from polstore.wire.tlog_proof import MAX_FILE
from polverify.asking import challenge, plan
from polverify.calibrate import SETTINGS, calibrate
from polverify.chain import OwnVerdict, check_chain
from polverify.distance import Criterion
from polverify.fetch import DEFAULT_MAX_BYTES, is_archive
from polverify.log import check_log
from polverify.options import AsJson, SignedRoot
from polverify.policy import VerifierPolicy
from polverify.remote import verify_archive
from polverify.show import claims
from polverify.trust import (
    KeyName,
    Keys,
    ParentKeyName,
    ParentKeys,
    PolicyFile,
    Timestamps,
    TsaCertificates,
    TsaRoots,
    load_keys,
    own_calibration,
    reference_distances,
    time_sources,
    trusted_keys,
    verifier_policy,
)
from polverify.verdict import MAX_VERDICT, Outcome, Verdict
from polverify.verify import Request, verify

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["app", "main"]

app = typer.Typer(
    name="polverify",
    help="Check a proof-of-learning against a signed root.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: boxes cut option names, and show switches as if they took a value
    add_completion=False,
)

Device = Annotated[str, typer.Option(metavar="D", help="Where to replay: cpu, cuda, cuda:1.")]


class Audit(Enum):
    """Which norms are computed again."""

    OPENED = "opened"
    FULL = "full"


MARKS = {
    Outcome.PASSED: ("ok", "green"),
    Outcome.FAILED: ("FAILED", "red"),
    Outcome.UNDECIDED: ("undecided", "yellow"),
    Outcome.NOT_MADE: ("-", "dim"),
}


app.command()(challenge)
app.command()(plan)


@app.command()
def check(
    signed_root: SignedRoot,
    bundle: Annotated[
        str,
        typer.Option(
            metavar="BUNDLE",
            help="Bundle, as polstore prove wrote it; or a static archive, as polstore publish wrote it: "
            "its directory or its http(s) address, of which only what the segments need is fetched.",
        ),
    ],
    recipe: Annotated[
        Path, typer.Option(metavar="RECIPE", help="Your own copy of the recipe. It is executed: read it first.")
    ],
    challenge: Annotated[
        Path | None, typer.Option(metavar="CHALLENGE", help="The challenge that the bundle answers.")
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="PROOF", help="Proof that the ledger has the root, as polstore log prove wrote it."),
    ] = None,
    segment: Annotated[
        list[int] | None,
        typer.Option(metavar="I", help="Segment of a static archive to open, without a challenge; repeatable."),
    ] = None,
    max_bytes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Bytes to fetch from a static archive at most.")
    ] = DEFAULT_MAX_BYTES,
    audit: Annotated[
        Audit, typer.Option(help="full: compute every norm again; the bundle is from polstore prove --audit.")
    ] = Audit.OPENED,
    lineage: Annotated[
        Path | None, typer.Option(metavar="LINEAGE", help="Evidence for the run's parent, from polstore lineage.")
    ] = None,
    parent_key: ParentKeys = None,
    parent_name: ParentKeyName = None,
    parent_root: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own copy of the parent's signed root.")
    ] = None,
    parent_proof: Annotated[
        Path | None,
        typer.Option(metavar="PROOF", help="Proof that the ledger has that root, as polstore log prove wrote it."),
    ] = None,
    device: Device = "cpu",
    tolerant: Annotated[
        bool,
        typer.Option(
            "--tolerant",
            help="Where a replay cannot be bit-exact (another environment class, fidelity float16): measure the noise "
            "of the segment by some more replays, and compare within it.",
        ),
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Noise measured before, by polverify calibrate; your own file."),
    ] = None,
    delta: Annotated[
        float | None, typer.Option(metavar="X", help="Apply the paper's criterion too: reject a segment with ε > X.")
    ] = None,
    metric: Annotated[str, typer.Option(metavar="M", help="Metric of --delta and --dref: l1, l2, linf or cos.")] = "l2",
    dref: Annotated[
        str | None,
        typer.Option(metavar="X|FILE", help="Normalise ε by this number, or by d_ref of this calibration."),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Run the recipe's own evaluation on the opened snapshots.")
    ] = False,
    key: Keys = None,
    name: KeyName = None,
    policy: PolicyFile = None,
    timestamp: Timestamps = None,
    tsa_root: TsaRoots = None,
    tsa_cert: TsaCertificates = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the verdict as a page for people, too: one HTML file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a bundle against a signed root, and say so.

    Signatures, inclusion, continuity, data, and a replay of each opened segment. Exit code: 0 ACCEPT, 1 REJECT,
    3 INCONCLUSIVE; 2 and 4 mean that there is no verdict.
    """
    if lineage is None and (parent_key or parent_name or parent_root or parent_proof):
        raise UsageError("--parent-…", expected="--lineage with it", got="no --lineage")
    if parent_name is not None and not parent_key:
        raise UsageError("--parent-name", expected="--parent-key with it", got="no --parent-key")
    keys, trusted = trusted_keys(key, name, policy)
    sources = time_sources(trusted, timestamp, tsa_root, tsa_cert)
    remote = is_archive(bundle)
    if segment and not remote:
        raise UsageError("--segment", expected="a static archive as --bundle", got=bundle)
    if audit is Audit.FULL and remote:
        raise UsageError("--audit full", expected="a bundle from polstore prove --audit", got="a static archive")
    noise = None if calibration is None else own_calibration(calibration)
    with terminal.progress() as progress, terminal.recipe_at_work():
        request = Request(
            signed_root=read_file(signed_root, MAX_NOTE),
            keys=keys,
            bundle=bundle,
            recipe=RecipeFile.read(recipe),
            challenge=None if challenge is None else _own_challenge(challenge),
            ledger=None if ledger is None else read_file(ledger, MAX_FILE),
            audit=audit is Audit.FULL,
            device=device,
            time=sources,
            tolerant=tolerant,
            calibration=noise,
            d_ref=reference_distances(dref, metric, noise),
            criterion=None if delta is None else Criterion(delta, metric),
            evaluate=evaluate,
            policy=verifier_policy(policy) or VerifierPolicy(),
            now=int(time.time()),
            lineage=None if lineage is None else read_file(lineage, MAX_LINEAGE),
            parent_keys=load_keys(parent_key, parent_name),
            parent_root=None if parent_root is None else read_file(parent_root, MAX_NOTE),
            parent_proof=None if parent_proof is None else read_file(parent_proof, MAX_FILE),
            progress=progress,
        )
        verdict = verify_archive(request, segment, max_bytes) if remote else verify(request)
    if remote:
        fetched, whole = verdict.claim["bytes_fetched"], verdict.claim["bytes_in_archive"]
        known = "says nothing of its size" if whole is None else f"says that the run takes {whole} bytes"
        terminal.note(f"fetched {fetched} bytes; the archive {known}")
    if html is not None:
        write_atomic(
            html, _page(verdict.as_json())
        )  # before the verdict is printed: exit code 4 means that there is none
    if as_json:
        terminal.emit_json(verdict.as_json())
    else:
        _print(verdict)
    raise typer.Exit(verdict.exit_code)


@app.command("calibrate")
def calibrate_noise(
    signed_root: SignedRoot,
    bundle: Annotated[Path, typer.Option(metavar="BUNDLE", help="Bundle, as polstore prove wrote it.")],
    recipe: Annotated[
        Path, typer.Option(metavar="RECIPE", help="Your own copy of the recipe. It is executed: read it first.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Calibration to write.")],
    settings: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help=f"Settings to try, of {', '.join(SETTINGS)}; all that matter if left out."),
    ] = None,
    dref: Annotated[
        int | None, typer.Option(metavar="STEPS", help="Measure the paper's d_ref too: train twice for so many steps.")
    ] = None,
    device: Device = "cpu",
    key: Keys = None,
    name: KeyName = None,
    policy: PolicyFile = None,
    as_json: AsJson = False,
) -> None:
    """Measure how far rounding alone leads, for check --calibration.

    Replays the opened segments that cannot be bit-exact here under several settings, in processes of its own.
    """
    keys, trusted = trusted_keys(key, name, policy)
    with terminal.progress() as progress:
        request = Request(
            signed_root=read_file(signed_root, MAX_NOTE),
            keys=keys,
            bundle=bundle,
            recipe=RecipeFile.read(recipe),
            device=device,
            time=time_sources(trusted, None, None, None),
            policy=verifier_policy(policy) or VerifierPolicy(),
            now=int(time.time()),
            progress=progress,
        )
        found = calibrate(request, None if settings is None else settings.split(","), dref)
    write_atomic(out, found.encode())
    if as_json:
        terminal.emit(found.encode().decode().rstrip())
    terminal.note(f"measured the noise of {len(found.segments)} segments in {out}")


@app.command()
def report(
    verdict: Annotated[Path, typer.Argument(metavar="VERDICT", help="Verdict, as polverify check --json printed it.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="HTML file to write.")],
) -> None:
    """Write a saved verdict as a page for people.

    One HTML file that needs nothing else. Nothing is checked again: the page is worth what the verdict file is.
    """
    from polverify.report import parse_verdict

    write_atomic(out, _page(parse_verdict(read_file(verdict, MAX_VERDICT))))


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
        _print(verdict)
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
    found = check_chain(
        [read_file(path, MAX_LINEAGE) for path in lineages],
        keys,
        [_own_verdict(path) for path in verdict or []],
        any_of=log_keys(trusted),
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


def _own_challenge(path: Path) -> Challenge:
    """Read the verifier's own challenge; a broken one is the verifier's fault, not the proof's."""
    try:
        return Challenge.parse(read_file(path, MAX_CHALLENGE))
    except ProofError as error:
        raise CallerError(f"challenge {path}: {error}") from error


def _page(verdict: Mapping[str, Any]) -> bytes:
    from polverify.report import render  # loads jinja2, which nothing else needs

    return render(verdict).encode()


def _own_verdict(path: Path) -> OwnVerdict:
    """Read a verdict of the caller's own; raises `CallerError`."""
    try:
        value = json.loads(read_file(path, MAX_VERDICT))
    except (ValueError, RecursionError) as error:
        raise CallerError(f"{path} is no verdict of polverify check --json: {error}") from error
    return OwnVerdict.from_json(value, str(path))


def _print(verdict: Verdict) -> None:
    """Print the verdict: its one line first, then how it came about."""
    console = Console()
    if not console.is_terminal:
        terminal.emit(f"{verdict.decision.name}: {terminal.text(verdict.reason)}")
        for item in verdict.checks:
            terminal.emit(f"{item.number:2} {item.name}: {MARKS[item.outcome][0]}: {terminal.text(item.detail)}")
        for line in _figures(verdict):
            terminal.emit(line)
        for warning in verdict.warnings:
            terminal.emit(f"note: {terminal.text(warning)}")
        for line in verdict.power.lines() if verdict.power is not None else ():
            terminal.emit(f"power: {line}")
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
    for line in _figures(verdict):
        console.print(Text(line))
    for warning in verdict.warnings:
        console.print(Text(f"note: {terminal.text(warning)}", "dim"))
    for line in verdict.power.lines() if verdict.power is not None else ():
        console.print(Text(f"power: {line}"))


def _figures(verdict: Verdict) -> list[str]:
    """Return a line for each segment that was measured: ε in the paper's terms, and the recipe's own evaluation."""
    lines = []
    for segment in verdict.segments:
        epsilon = segment.measured.get("epsilon")
        if epsilon is not None and any(epsilon["raw"].values()):
            kinds = [f"{kind} {_numbers(epsilon[kind])}" for kind in ("raw", "normalised") if epsilon[kind]]
            lines.append(f"segment {segment.index}: ε {'; '.join(kinds)}")
        for end, values in segment.measured.get("evaluation", {}).items():
            step = segment.start_step if end == "start" else segment.end_step
            lines.append(f"segment {segment.index}: evaluation after step {step}: {_numbers(values)}")
    return lines


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{terminal.text(name)} {value:.4g}" for name, value in values.items())
