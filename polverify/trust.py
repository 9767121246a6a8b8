"""What a verifier trusts, as the command line says it: keys, a policy file, time authorities, measured noise.

`--policy` takes either kind of policy: a file whose name ends in ``.toml`` is the verifier's policy (specs/policy.md),
which may name a tlog-policy of its own; any other is a C2SP tlog-policy (specs/time.md). Everything here is the
verifier's own, so a broken file is a fault of the caller's side and never of the proof.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from polstore import keyfile
from polstore.errors import CallerError, ProofError, UsageError
from polstore.files import read_file
from polstore.wire.policy import MAX_POLICY, Policy
from polverify.calibration import MAX_BYTES as MAX_CALIBRATION
from polverify.calibration import Calibration
from polverify.distance import METRICS, check_d_ref
from polverify.policy_file import SUFFIX, load_policy
from polverify.time import Sources

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polstore.wire.keys import VerifierKey
    from polverify.policy import VerifierPolicy

__all__ = [
    "KeyName",
    "Keys",
    "ParentKeyName",
    "ParentKeys",
    "PolicyFile",
    "Timestamps",
    "TsaCertificates",
    "TsaRoots",
    "load_keys",
    "own_calibration",
    "reference_distances",
    "time_sources",
    "trusted_keys",
    "verifier_policy",
]

MAX_PEM = 2**20  # bytes of a certificate file
MAX_TOKEN = 2**16  # bytes of a time-stamping response, as polstore.wire.timestamp has it
_Value = TypeVar("_Value")

Keys = Annotated[
    list[Path] | None,
    typer.Option(
        "--key", metavar="KEY.pub", help="Keys of the signer; every one of them has to have signed. Repeatable."
    ),
]
KeyName = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of the signer, where a key file does not state one.")
]
ParentKeys = Annotated[
    list[Path] | None,
    typer.Option(
        "--parent-key",
        metavar="KEY.pub",
        help="Keys of the parent's signer, as --key; --key and --policy if left out. Repeatable.",
    ),
]
ParentKeyName = Annotated[
    str | None,
    typer.Option("--parent-name", metavar="NAME", help="Name of that signer, where a key file does not state one."),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        help="FILE.toml: your policy, what you allow and require. Any other name: a C2SP tlog-policy, log keys of "
        "which one has to have signed, witnesses, and their quorum.",
    ),
]
Timestamps = Annotated[
    list[Path] | None,
    typer.Option("--timestamp", metavar="FILE.tsr", help="Time-stamping response over the signed root. Repeatable."),
]
TsaRoots = Annotated[
    list[Path] | None,
    typer.Option("--tsa-root", metavar="CERT.pem", help="Root certificates of time authorities you trust. Repeatable."),
]
TsaCertificates = Annotated[
    list[Path] | None,
    typer.Option(
        "--tsa-cert", metavar="CERT.pem", help="Further certificates, if the response lacks them. Repeatable."
    ),
]


def trusted_keys(
    paths: Sequence[Path] | None, name: str | None, policy_file: Path | None
) -> tuple[tuple[VerifierKey, ...], Policy | None]:
    """Return the keys that all have to have signed, and the tlog-policy.

    Raises:
        UsageError: neither a key nor a policy with a log.
        MissingError, KeyFileError: as `polstore.keyfile.load_verifier_keys`.
        CallerError: not a policy.
    """
    own = verifier_policy(policy_file)
    if own is not None:
        name, policy_file = own.key_name if name is None else name, own.tlog_policy
    listed = () if own is None else own.keys
    files = [*(paths or ()), *(given for given in listed if isinstance(given, Path))]
    lines = (given for given in listed if not isinstance(given, Path))
    keys = tuple(dict.fromkeys((*load_keys(files, name), *lines)))
    policy = None if policy_file is None else _own(policy_file, MAX_POLICY, Policy.parse)
    if not keys and (policy is None or not policy.logs):
        raise UsageError("whose signature?", expected="--key, or --policy with a log line", got="neither")
    return keys, policy


def load_keys(paths: Sequence[Path] | None, name: str | None) -> tuple[VerifierKey, ...]:
    """Return the keys of all these files, each once; raises as `polstore.keyfile.load_verifier_keys`."""
    return tuple(dict.fromkeys(key for path in paths or () for key in keyfile.load_verifier_keys(path, name=name)))


def verifier_policy(policy_file: Path | None) -> VerifierPolicy | None:
    """Return the verifier's policy; None where there is no such file, or it is a C2SP tlog-policy.

    Raises:
        MissingError: no such file, or a recipe that it names is not there.
        CallerError: not a policy.
    """
    return load_policy(policy_file) if policy_file is not None and policy_file.suffix == SUFFIX else None


def time_sources(
    policy: Policy | None,
    tokens: Sequence[Path] | None,
    roots: Sequence[Path] | None,
    certificates: Sequence[Path] | None,
) -> Sources:
    """Read time-stamping responses, and the certificates to judge them by.

    Raises:
        UsageError: a response without a root certificate, or the other way round.
        MissingError, CallerError: a file that cannot be read, or holds no certificates.
    """
    if bool(tokens) != bool(roots):
        given, lacking = ("--timestamp", "--tsa-root") if tokens else ("--tsa-root", "--timestamp")
        raise UsageError(given, expected=f"{lacking} with it", got="it alone")
    if not tokens:
        return Sources(policy)
    from polstore.wire.timestamp import load_certificates

    return Sources(
        policy,
        tuple(_own(path, MAX_TOKEN, bytes) for path in tokens),
        tuple(found for path in roots or () for found in _own(path, MAX_PEM, load_certificates)),
        tuple(found for path in certificates or () for found in _own(path, MAX_PEM, load_certificates)),
    )


def own_calibration(path: Path) -> Calibration:
    """Read a calibration; raises `MissingError` or `CallerError`."""
    return Calibration.parse(read_file(path, MAX_CALIBRATION))


def reference_distances(given: str | None, metric: str, noise: Calibration | None) -> dict[str, float]:
    """Return the paper's d_ref by metric: a number for ``metric``, or those of a calibration, or none.

    Raises:
        UsageError: a number that cannot be divided by, or an unknown metric.
        MissingError, CallerError: as `own_calibration`; a calibration without d_ref.
    """
    if metric not in METRICS:
        raise UsageError("metric", expected=" or ".join(METRICS), got=metric)
    if given is None:
        return {} if noise is None or noise.d_ref is None else dict(noise.d_ref.distances)
    try:
        found = {metric: float(given)}
    except ValueError:
        measured = own_calibration(Path(given)).d_ref
        if measured is None:
            raise CallerError(f"calibration {given}", expected="a measured d_ref", got="none") from None
        found = dict(measured.distances)
    check_d_ref(found)
    return found


def _own(path: Path, limit: int, parse: Callable[[bytes], _Value]) -> _Value:
    """Read and parse a file of the verifier's own."""
    try:
        return parse(read_file(path, limit))
    except ProofError as error:
        raise CallerError(f"{path}: {error}") from error
