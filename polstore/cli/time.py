"""Commands about time: timestamp, and what `log witness` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polstore import keyfile, terminal
from polstore.cli.options import AsJson
from polstore.errors import CallerError, ProofError, UsageError
from polstore.files import read_file, write_atomic
from polstore.wire.keys import KeyKind
from polstore.wire.note import MAX_NOTE
from polstore.wire.policy import MAX_POLICY, Policy

if TYPE_CHECKING:
    from polstore.wire.keys import VerifierKey
    from polstore.witness import Ledger

__all__ = ["PolicyFile", "WitnessKeys", "cosign", "timestamp"]

MAX_PEM = 2**20  # bytes of a certificate file

WitnessKeys = Annotated[
    list[Path] | None,
    typer.Option("--witness-key", metavar="KEY.pub", help="Cosignature key of the witness. Repeatable."),
]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", metavar="FILE", help="C2SP tlog-policy that lists the witness.")
]


def timestamp(
    signed_root: Annotated[Path, typer.Argument(metavar="SIGNED_ROOT", help="Signed root, as commit wrote it.")],
    tsa: Annotated[str | None, typer.Option(metavar="URL", help="Time authority (RFC 3161) to ask over HTTP.")] = None,
    request: Annotated[
        Path | None,
        typer.Option(metavar="FILE.tsq", help="Request to write; with --response, the request that was answered."),
    ] = None,
    response: Annotated[Path | None, typer.Option(metavar="FILE.tsr", help="Response of a time authority.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.tsr", help="Where to keep the response; SIGNED_ROOT.tsr if left out.")
    ] = None,
    tsa_root: Annotated[
        list[Path] | None,
        typer.Option(metavar="CERT.pem", help="Root certificates to judge it by, as a verifier will. Repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Have a time authority vouch for the time of a signed root.

    With --tsa over HTTP. Without: --request FILE writes what to send, and --request FILE --response FILE takes in the
    answer.
    """
    if (tsa is None) == (request is None and response is None):
        raise UsageError("how to ask", expected="--tsa, or --request and --response", got="both" if tsa else "neither")
    from polstore import timestamp as client  # leads to the parsers of ASN.1
    from polstore.wire import timestamp as wire

    note = read_file(signed_root, MAX_NOTE)
    if tsa is None and response is None:
        if request is None or out is not None or tsa_root:
            raise UsageError("--out and --tsa-root", expected="--response or --tsa with them", got="--request alone")
        write_atomic(request, wire.new_request(note), overwrite=False)
        terminal.note(f"wrote a request over {signed_root} to {request}")
        return
    roots = [each for path in tsa_root or () for each in wire.load_certificates(_own(path, MAX_PEM))]
    if tsa is not None:
        data, token = client.ask(tsa, note, roots)
    else:
        assert response is not None  # noqa: S101 # for the type checker; seen above
        asked = None if request is None else _own(request, wire.MAX_REQUEST)
        data = _own(response, wire.MAX_RESPONSE)
        token = client.take_in(response, data, note, asked, roots)
    kept = signed_root.with_name(signed_root.name + ".tsr") if out is None else out
    write_atomic(kept, data, overwrite=False)
    if as_json:
        terminal.emit_json(
            {
                "signed_root": str(signed_root),
                "timestamp": str(kept),
                "time": token.time,
                "accuracy_microseconds": token.accuracy,
                "policy": token.policy,
                "serial": token.serial,
                "authority": token.authority,
            }
        )
    judged = "not judged here" if token.authority is None else token.authority
    terminal.note(f"kept the token in {kept}; authority: {terminal.text(judged)}")
    if tsa is None and request is None:
        terminal.note("the nonce was not checked: that takes the request that was sent, with --request")


def cosign(ledger: Ledger, url: str, policy: Path | None, keys: list[Path] | None, *, as_json: bool = False) -> None:
    """Have a witness cosign a ledger's head, keep its cosignature, and say so.

    Args:
        ledger: an open store's ledger.
        url: submission prefix of the witness.
        policy: policy file; its witnesses' keys count.
        keys: files of verifier keys; those of type 04 count.
        as_json: print JSON to stdout.

    Raises:
        UsageError: no cosignature key of any witness.
        CallerError: a file that is none, and whatever `polstore.witness.witness_head` raises.
    """
    from polstore.witness import witness_head  # leads to HTTP

    done = witness_head(ledger, url, _witness_keys(policy, keys or []))
    found = [{"witness": each.key.name, "time": each.timestamp} for each in done.found]
    if as_json:
        terminal.emit_json({"url": url, "cosigned": found, "head": done.head.decode()})
    names = ", ".join(f"{each.key.name} at {each.timestamp}" for each in done.found)
    terminal.note(f"witnessed by {terminal.text(names)}")


def _witness_keys(policy: Path | None, files: list[Path]) -> list[VerifierKey]:
    """Return the cosignature keys that a policy and key files hold."""
    keys = [key for file in files for key in keyfile.load_verifier_keys(file)]
    if policy is not None:
        data = _own(policy, MAX_POLICY)
        try:
            keys += [each.key for each in Policy.parse(data).witnesses]
        except ProofError as error:
            raise CallerError(f"{policy}: {error}") from error
    found = list(dict.fromkeys(key for key in keys if key.kind is KeyKind.COSIGNATURE))
    if not found:
        raise UsageError("whose cosignature?", expected="--policy or --witness-key with a cosignature key", got="none")
    return found


def _own(path: Path, limit: int) -> bytes:
    try:
        return read_file(path, limit)
    except ProofError as error:
        raise CallerError(str(error)) from error
