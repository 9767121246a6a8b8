"""The commands before there is a proof: `polverify challenge` and `polverify plan`."""

from __future__ import annotations

import re
import secrets
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from polstore import keyfile, terminal
from polstore.errors import UsageError
from polstore.files import read_file, write_atomic
from polstore.wire.challenge import FRESH, NONCE_SIZE, ROOT, WITNESS, Challenge, Rules
from polstore.wire.challenge import nonce_from_root as nonce_from_root_of
from polstore.wire.checkpoint import OpenedRoot, open_root, parse_text
from polstore.wire.note import MAX_NOTE
from polstore.wire.note import parse as parse_note
from polstore.wire.policy import log_keys
from polverify.bundle_file import BundleFile
from polverify.challenge import choose, odd_states, random_of, read_records, witness_nonce
from polverify.options import AsJson, SignedRoot
from polverify.power import plan as plan_power
from polverify.show import claims
from polverify.trust import KeyName, Keys, PolicyFile, trusted_keys

__all__ = ["challenge", "plan"]


def challenge(
    signed_root: SignedRoot,
    out: Annotated[Path, typer.Option(metavar="CHALLENGE", help="Challenge file to write.")],
    segments: Annotated[
        int | None, typer.Option(metavar="N", help="Segments to open in all; at least one of them is random.")
    ] = None,
    random: Annotated[
        int | None, typer.Option(metavar="R", help="Segments for the nonce to draw, besides all others.")
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="All segment records, from polstore prove --records or --audit."),
    ] = None,
    top: Annotated[
        int, typer.Option(metavar="Q", min=0, help="Open the Q largest updates of every epoch under each distance.")
    ] = 0,
    epoch_steps: Annotated[
        int, typer.Option(metavar="K", min=0, help="Steps of an epoch; the whole run is one if left out.")
    ] = 0,
    odd: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Open up to N segments with odd norms, and N with odd states if there are any."
        ),
    ] = 0,
    segment: Annotated[
        list[int] | None, typer.Option(metavar="I", min=0, help="A segment of your own choice; repeatable.")
    ] = None,
    nonce: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="64 hex digits that the prover could not know; fresh if left out."),
    ] = None,
    nonce_from_cosignature: Annotated[
        Path | None,
        typer.Option(metavar="KEY.pub", help="Take the nonce from this witness's cosignature of the signed root."),
    ] = None,
    nonce_from_root: Annotated[
        bool, typer.Option("--nonce-from-root", help="Take it from the root: weak, since a prover can try roots.")
    ] = False,
    key: Keys = None,
    name: KeyName = None,
    policy: PolicyFile = None,
    as_json: AsJson = False,
) -> None:
    """Choose the segments that the prover has to open.

    Always the first and the last; those that the records, your own choice and a nonce add. Do it after the root was
    signed, never before.
    """
    if (segments is None) == (random is None):
        raise UsageError("how many", expected="--segments or --random", got="neither" if random is None else "both")
    if (top or odd) and records is None:
        raise UsageError("--top and --odd", expected="--records with them", got="no records")
    if epoch_steps and not top:
        raise UsageError("--epoch-steps", expected="--top with it", got="no --top")
    keys, trusted = trusted_keys(key, name, policy)
    opened = open_root(read_file(signed_root, MAX_NOTE), keys, any_of=log_keys(trusted))
    source, value = _nonce(opened, nonce, nonce_from_cosignature, weak=nonce_from_root)
    head, rules = opened.checkpoint, Rules(top, epoch_steps, odd)
    if head.size < 2:
        raise UsageError("the signed root covers no segment yet", expected="at least 2 leaves", got=head.size)
    named, picked = {0, head.size - 2}, set(segment or [])
    if records is not None:
        with BundleFile(records) as file, terminal.progress() as progress:
            _, found = read_records(file.bundle, head)
            named |= set(choose(found, rules))
            if odd:
                picked |= set(odd_states(file, found, odd, lambda done, total: progress("auditing", done, total)))
    drawn = Challenge.draw(
        *(head.origin, head.size, head.root),
        random=random if random is not None else random_of(segments or 0, len(named | picked)),
        nonce=value,
        source=source,
        rules=rules,
        named=named,
        picked=picked,
    )
    write_atomic(out, drawn.encode())
    if as_json:
        terminal.emit_json(claims(out))
    terminal.note(
        f"challenged {len(drawn.segments)} of {head.size - 1} segments, {drawn.random} of them at random, in {out}"
    )


def plan(
    signed_root: Annotated[
        Path | None, typer.Argument(metavar="SIGNED_ROOT", help="Signed root to plan for; it is not verified.")
    ] = None,
    segments: Annotated[
        int | None, typer.Option(metavar="N", help="Segments of the run, without a signed root.")
    ] = None,
    share: Annotated[str, typer.Option(metavar="P", help="Forged part of the segments: 0.05, or 1/390.")] = "0.05",
    confidence: Annotated[
        str, typer.Option(metavar="P", help="Wanted probability of catching it; below 1 unless all are opened.")
    ] = "0.99",
    steps_per_segment: Annotated[
        int | None, typer.Option(metavar="K", min=1, help="Steps of a segment, for the cost.")
    ] = None,
    step_seconds: Annotated[
        float | None, typer.Option(metavar="T", min=0, help="Seconds that a step takes, for the cost.")
    ] = None,
    segment_bytes: Annotated[
        int | None, typer.Option(metavar="B", min=0, help="Bytes of an opened segment, for the cost.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how many random segments to open, and what they cost.

    The fewest that catch a forged share with the wanted probability.
    """
    if (signed_root is None) == (segments is None):
        raise UsageError(
            "what to plan for", expected="SIGNED_ROOT or --segments", got="both" if segments else "neither"
        )
    if step_seconds is not None and steps_per_segment is None:
        raise UsageError("--step-seconds", expected="--steps-per-segment with it", got=None)
    count = segments or 0
    if signed_root is not None:
        count = parse_text(parse_note(read_file(signed_root, MAX_NOTE)).text).size - 1
    wanted = plan_power(count, _fraction("--share", share), _fraction("--confidence", confidence))
    result = wanted.as_json(steps_per_segment, step_seconds, segment_bytes)
    if as_json:
        terminal.emit_json(result)
        return
    for line in wanted.lines(result):
        terminal.emit(line)


def _nonce(opened: OpenedRoot, text: str | None, witness: Path | None, *, weak: bool) -> tuple[str, bytes]:
    """Return where the nonce comes from, and the nonce."""
    if (text is not None) + (witness is not None) + weak > 1:
        raise UsageError("nonce", expected="one source of it", got="several")
    head = opened.checkpoint
    if weak:
        return ROOT, nonce_from_root_of(head.origin, head.size, head.root)
    if witness is not None:
        return WITNESS, witness_nonce(opened, keyfile.load_verifier_keys(witness))
    if text is None:
        return FRESH, secrets.token_bytes(NONCE_SIZE)
    try:
        nonce = bytes.fromhex(text)
    except ValueError as error:
        raise UsageError("--nonce", expected="64 hex digits", got=text) from error
    if len(nonce) != NONCE_SIZE:
        raise UsageError("--nonce", expected="64 hex digits", got=text)
    return FRESH, nonce


def _fraction(option: str, text: str) -> Fraction:
    """Parse a share or a probability as it is written, so that 0.99 is not a little less."""
    try:
        if len(text) > 40 or re.search(r"e[+-]?\d{3}", text, re.IGNORECASE):
            raise ValueError("too long")  # or a fraction of a billion digits
        value = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(option, expected="a number like 0.05 or 1/20", got=text) from error
    if not 0 < value <= 1:
        raise UsageError(option, expected="above 0 and at most 1", got=text)
    return value
