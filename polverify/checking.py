"""The commands that replay: `polverify check` and `polverify calibrate`."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from polstore import terminal
from polstore.codec.live.recipe import RecipeFile
from polstore.errors import CallerError, ProofError, UsageError
from polstore.files import read_file, write_atomic
from polstore.wire.challenge import MAX_BYTES as MAX_CHALLENGE
from polstore.wire.challenge import Challenge
from polstore.wire.lineage import MAX_LINEAGE
from polstore.wire.note import MAX_NOTE
from polstore.wire.tlog_proof import MAX_FILE
from polverify.calibrate import SETTINGS
from polverify.calibrate import calibrate as measure_noise
from polverify.distance import Criterion
from polverify.fetch import DEFAULT_MAX_BYTES, is_archive
from polverify.options import AsJson, SignedRoot
from polverify.policy import VerifierPolicy
from polverify.printing import page_of, print_verdict
from polverify.remote import verify_archive
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
from polverify.verify import Request, verify

__all__ = ["calibrate", "check"]

Device = Annotated[str, typer.Option(metavar="D", help="Where to replay: cpu, cuda, cuda:1.")]


class Audit(Enum):
    """Which norms are computed again."""

    OPENED = "opened"
    FULL = "full"


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
    jobs: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Segments to replay at once, each in a process of its own."),
    ] = 1,
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
            jobs=jobs,
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
    if html is not None:  # before the verdict is printed: exit code 4 means that there is none
        write_atomic(html, page_of(verdict.as_json()))
    if as_json:
        terminal.emit_json(verdict.as_json())
    else:
        print_verdict(verdict)
    raise typer.Exit(verdict.exit_code)


def calibrate(
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
        found = measure_noise(request, None if settings is None else settings.split(","), dref)
    write_atomic(out, found.encode())
    if as_json:
        terminal.emit(found.encode().decode().rstrip())
    terminal.note(f"measured the noise of {len(found.segments)} segments in {out}")


def _own_challenge(path: Path) -> Challenge:
    """Read the verifier's own challenge; a broken one is the verifier's fault, not the proof's."""
    try:
        return Challenge.parse(read_file(path, MAX_CHALLENGE))
    except ProofError as error:
        raise CallerError(f"challenge {path}: {error}") from error
