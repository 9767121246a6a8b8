"""Time-stamping tokens over a signed root: RFC 3161, request, response, and judging the authority's certificate.

What is stamped is the text of the note, so further signatures do not touch it. A token counts under root certificates
that the verifier holds, all of them judged at the token's own time; certificates inside the token are candidates, never
anchors. Implements specs/time.md, section "Time-stamping tokens". Does no I/O and reads no clock.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID
from rfc3161_client import (
    HashAlgorithm,
    PKIStatus,
    TimestampRequestBuilder,
    VerifierBuilder,
    decode_timestamp_response,
)
from rfc3161_client._rust import parse_timestamp_request

from polstore.errors import MalformedError, PolstoreError, TimestampError
from polstore.wire import note as notes

if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterator, Sequence

    from rfc3161_client import TimeStampResponse

__all__ = ["MAX_RESPONSE", "Token", "load_certificates", "new_request", "read_response", "verify"]

MAX_RESPONSE = 2**16  # bytes; with a chain of three RSA certificates a response takes some 6 000
MAX_REQUEST = 2**12  # bytes; ours have 70
MAX_CERTIFICATES = 16  # in one response, in one file, and in a chain
_SHA256 = "2.16.840.1.101.3.4.2.1"
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


@dataclass(frozen=True)
class Token:
    """What a token states.

    Attributes:
        time: the authority's time, genTime, in seconds since 1970, rounded up.
        accuracy: what the authority says it may be wrong by, in microseconds; None if it does not say.
        policy: object identifier of the authority's policy, dotted.
        serial: number of the token.
        authority: subject of the authority's certificate (RFC 4514); None as long as no certificate was judged.
    """

    time: int
    accuracy: int | None
    policy: str
    serial: int
    authority: str | None = None


def new_request(note: bytes) -> bytes:
    """Return a request (DER) for a token over a note's text: SHA-256, a fresh nonce, the certificate wanted along.

    Raises:
        MalformedError: not a note.
    """
    builder = TimestampRequestBuilder().data(notes.parse(note).text.encode()).hash_algorithm(HashAlgorithm.SHA256)
    return builder.nonce(nonce=True).cert_request(cert_request=True).build().as_bytes()


def read_response(response: bytes, note: bytes, request: bytes | None = None) -> Token:
    """Check that a response grants a token over a note's text, and for this request; signatures are `verify`'s.

    Raises:
        MalformedError: the note is none.
        TimestampError: not a response, too long, not granted, over something else, or with another nonce than the
            request.
    """
    text = notes.parse(note).text.encode()
    with _foreign("time-stamping response"):
        return _token(_parsed(response, text, request))


def verify(
    response: bytes, text: str, roots: Sequence[x509.Certificate], certificates: Sequence[x509.Certificate] = ()
) -> Token:
    """Judge a response over a note's text.

    Args:
        response: TimeStampResp, DER.
        text: text of the note.
        roots: whom the verifier trusts to certify time-stamping authorities.
        certificates: further ones that the response may lack: the authority's own, or between it and a root.

    Raises:
        TimestampError: not a granted response over this text, a false signature, a certificate that does not lead to
            one of the roots or was not valid at the token's time, or one that is not for time-stamping alone.
    """
    with _foreign("time-stamping token"):
        parsed = _parsed(response, text.encode(), None)
        token = _token(parsed)
        inside = [x509.load_der_x509_certificate(each) for each in parsed.signed_data.certificates]
        if len(inside) > MAX_CERTIFICATES:
            raise TimestampError(
                "certificates of a time-stamping response", expected=f"at most {MAX_CERTIFICATES}", got=len(inside)
            )
        leaf = _signer(parsed, [*inside, *certificates, *roots])
        _check_usage(leaf)
        _check_chain(leaf, [*certificates, *inside], roots, parsed.tst_info.gen_time)
        anchors = dict.fromkeys(roots)
        builder = VerifierBuilder(
            roots=list(anchors),
            intermediates=[each for each in dict.fromkeys(certificates) if each not in anchors and each != leaf],
            tsa_certificate=leaf,
        )
        builder.build().verify_message(parsed, text.encode())  # the signature, and the chain once more, by OpenSSL
        return Token(token.time, token.accuracy, token.policy, token.serial, leaf.subject.rfc4514_string())


def load_certificates(data: bytes) -> tuple[x509.Certificate, ...]:
    """Parse the certificates of a PEM file, 1 to `MAX_CERTIFICATES`; raises `MalformedError`."""
    try:
        found = tuple(x509.load_pem_x509_certificates(data))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MalformedError(f"certificate file: {error}") from error
    if not 1 <= len(found) <= MAX_CERTIFICATES:
        raise MalformedError("certificates in a file", expected=f"1 to {MAX_CERTIFICATES}", got=len(found))
    return found


def _parsed(response: bytes, text: bytes, request: bytes | None) -> TimeStampResponse:
    """Parse a response, which must grant a token over SHA-256 of the text, for the request if one is given."""
    if len(response) > MAX_RESPONSE:
        raise TimestampError("time-stamping response", expected=f"at most {MAX_RESPONSE} bytes", got=len(response))
    parsed = decode_timestamp_response(response)
    if parsed.status != PKIStatus.GRANTED:
        reasons = "; ".join(parsed.status_string)
        raise TimestampError("status of a time-stamping response", expected="granted (0)", got=parsed.status or reasons)
    wanted = hashlib.sha256(text).digest()
    imprints = {"time-stamping token": parsed.tst_info.message_imprint}
    if request is not None:
        if len(request) > MAX_REQUEST:
            raise TimestampError("time-stamping request", expected=f"at most {MAX_REQUEST} bytes", got=len(request))
        asked = parse_timestamp_request(request)
        imprints["time-stamping request"] = asked.message_imprint
        if parsed.tst_info.nonce != asked.nonce:
            raise TimestampError("nonce of a time-stamping token", expected=asked.nonce, got=parsed.tst_info.nonce)
    for what, imprint in imprints.items():
        if imprint.hash_algorithm.dotted_string != _SHA256:
            raise TimestampError(f"hash of a {what}", expected=_SHA256, got=imprint.hash_algorithm.dotted_string)
        if imprint.message != wanted:
            raise TimestampError(f"{what} is over something else", expected=wanted, got=imprint.message)
    return parsed


def _token(parsed: TimeStampResponse) -> Token:
    info = parsed.tst_info
    said = info.accuracy
    accuracy = None
    if said is not None:
        accuracy = (said.seconds or 0) * 1_000_000 + (said.millis or 0) * 1000 + (said.micros or 0)
    return Token(math.ceil(info.gen_time.timestamp()), accuracy, info.policy.dotted_string, info.serial_number)


def _signer(parsed: TimeStampResponse, candidates: Sequence[x509.Certificate]) -> x509.Certificate:
    """Return the one certificate that the token's only signer names.

    With two of one issuer and serial number, one might be judged and the other be used.
    """
    signers = list(parsed.signed_data.signer_infos)
    if len(signers) != 1:
        raise TimestampError("signers of a time-stamping token", expected=1, got=len(signers))
    issuer, serial = signers[0].issuer, signers[0].serial_number
    found = {each for each in candidates if each.issuer == issuer and each.serial_number == serial}
    if len(found) != 1:
        wanted = f"one of {issuer.rfc4514_string()} with number {serial}"
        raise TimestampError("certificate of a time-stamping token", expected=wanted, got=len(found))
    return found.pop()


def _check_usage(leaf: x509.Certificate) -> None:
    """Require the extended key usage of RFC 3161, section 2.3: critical, and time-stamping alone."""
    usage = _extension(leaf, x509.ExtendedKeyUsage)
    purposes = [] if usage is None else [each.dotted_string for each in usage.value]
    if purposes != [ExtendedKeyUsageOID.TIME_STAMPING.dotted_string]:
        raise TimestampError("usage of an authority's certificate", expected="time-stamping alone", got=purposes)
    if usage is not None and not usage.critical:
        raise TimestampError("usage of an authority's certificate", expected="a critical extension", got="not critical")


def _check_chain(
    leaf: x509.Certificate,
    between: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    when: datetime.datetime,
) -> None:
    """Require that certificates valid at ``when`` lead from the leaf to a root."""
    certificate = leaf
    for _ in range(MAX_CERTIFICATES):
        name = certificate.subject.rfc4514_string()
        if not certificate.not_valid_before_utc <= when <= certificate.not_valid_after_utc:
            valid = f"a time from {certificate.not_valid_before_utc} to {certificate.not_valid_after_utc}"
            raise TimestampError(f"time of a token under the certificate of {name}", expected=valid, got=str(when))
        if certificate in roots:
            return
        issuer = next((each for each in (*roots, *between) if each != certificate and _issued(certificate, each)), None)
        if issuer is None:
            raise TimestampError(
                "issuer of a certificate", expected=f"one that leads from {name} to a given root", got="none"
            )
        certificate = issuer
    raise TimestampError("chain of certificates", expected=f"at most {MAX_CERTIFICATES}", got="more")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Say whether ``issuer`` may certify and has signed this certificate."""
    constraints, usage = _extension(issuer, x509.BasicConstraints), _extension(issuer, x509.KeyUsage)
    if constraints is None or not constraints.value.ca or (usage is not None and not usage.value.key_cert_sign):
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> x509.Extension[_Extension] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


@contextmanager
def _foreign(what: str) -> Iterator[None]:
    """Turn whatever the libraries raise over hostile bytes into our own error."""
    try:
        yield
    except (PolstoreError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # hostile bytes make them raise KeyError and more; a Rust panic is no Exception
        raise TimestampError(f"{what}: {type(error).__name__}: {error}") from error
