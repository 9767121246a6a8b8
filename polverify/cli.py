"""The command `polverify`: challenge, check, calibrate, log, show.

Exit codes: 0 ACCEPT or fine, 1 REJECT, 2 wrong usage, 3 INCONCLUSIVE, 4 the caller's side at fault, 130 interrupted.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polstore import terminal
from polstore.codec.live.recipe import RecipeFile
from polstore.errors import CallerError, ProofError, UsageError
from polstore.files import read_file, write_atomic
from polstore.wire.challenge import MAX_BYTES as MAX_CHALLENGE
from polstore.wire.challenge import NONCE_SIZE, Challenge
from polstore.wire.checkpoint import open_root
from polstore.wire.ledger import MAX_CONSISTENCY_BYTES
from polstore.wire.note import MAX_NOTE
from polstore.wire.tlog_proof import MAX_FILE
from polverify.calibrate import SETTINGS, calibrate
from polverify.distance import Criterion
from polverify.fetch import DEFAULT_MAX_BYTES, is_archive
from polverify.log import check_log
from polverify.remote import verify_archive
from polverify.show import claims
from polverify.trust import (
    KeyName,
    Keys,
    PolicyFile,
    Timestamps,
    TsaCertificates,
    TsaRoots,
    own_calibration,
    reference_distances,
    time_sources,
    trusted_keys,
)
from polverify.verdict import Outcome, Verdict
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

SignedRoot = Annotated[Path, typer.Argument(metavar="SIGNED_ROOT", help="Signed root, as polstore commit wrote it.")]
Device = Annotated[str, typer.Option(metavar="D", help="Where to replay: cpu, cuda, cuda:1.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]

MARKS = {
    Outcome.PASSED: ("ok", "green"),
    Outcome.FAILED: ("FAILED", "red"),
    Outcome.UNDECIDED: ("undecided", "yellow"),
    Outcome.NOT_MADE: ("-", "dim"),
}


@app.command()
def challenge(
    signed_root: SignedRoot,
    segments: Annotated[int, typer.Option(metavar="N", help="Segments to open, in all.")],
    out: Annotated[Path, typer.Option(metavar="CHALLENGE", help="Challenge file to write.")],
    key: Keys = None,
    name: KeyName = None,
    policy: PolicyFile = None,
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
    keys, trusted = trusted_keys(key, name, policy)
    logs = () if trusted is None else [log.key for log in trusted.logs]
    opened = open_root(read_file(signed_root, MAX_NOTE), keys, any_of=logs)
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
    as_json: AsJson = False,
) -> None:
    """Check a bundle against a signed root, and say so.

    Signatures, inclusion, continuity, data, and a replay of each opened segment. Exit code: 0 ACCEPT, 1 REJECT,
    3 INCONCLUSIVE; 2 and 4 mean that there is no verdict.
    """
    keys, trusted = trusted_keys(key, name, policy)
    sources = time_sources(trusted, timestamp, tsa_root, tsa_cert)
    remote = is_archive(bundle)
    if segment and not remote:
        raise UsageError("--segment", expected="a static archive as --bundle", got=bundle)
    noise = None if calibration is None else own_calibration(calibration)
    with terminal.progress() as progress, terminal.recipe_at_work():
        request = Request(
            signed_root=read_file(signed_root, MAX_NOTE),
            keys=keys,
            bundle=bundle,
            recipe=RecipeFile.read(recipe),
            challenge=None if challenge is None else _own_challenge(challenge),
            ledger=None if ledger is None else read_file(ledger, MAX_FILE),
            device=device,
            time=sources,
            tolerant=tolerant,
            calibration=noise,
            d_ref=reference_distances(dref, metric, noise),
            criterion=None if delta is None else Criterion(delta, metric),
            evaluate=evaluate,
            progress=progress,
        )
        verdict = verify_archive(request, segment, max_bytes) if remote else verify(request)
    if remote:
        fetched, whole = verdict.claim["bytes_fetched"], verdict.claim["bytes_in_archive"]
        known = "says nothing of its size" if whole is None else f"says that the run takes {whole} bytes"
        terminal.note(f"fetched {fetched} bytes; the archive {known}")
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
            progress=progress,
        )
        found = calibrate(request, None if settings is None else settings.split(","), dref)
    write_atomic(out, found.encode())
    if as_json:
        terminal.emit(found.encode().decode().rstrip())
    terminal.note(f"measured the noise of {len(found.segments)} segments in {out}")


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
        any_of=() if trusted is None else [log.key for log in trusted.logs],
        consistency=None if consistency is None else read_file(consistency, MAX_CONSISTENCY_BYTES),
        not_before=None if max_age is None else int(time.time()) - max_age,
    )
    if as_json:
        terminal.emit_json(verdict.as_json())
    else:
        _print(verdict)
    raise typer.Exit(verdict.exit_code)


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
        for line in _figures(verdict):
            terminal.emit(line)
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
    for line in _figures(verdict):
        console.print(Text(line))
    for warning in verdict.warnings:
        console.print(Text(f"note: {terminal.text(warning)}", "dim"))


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
