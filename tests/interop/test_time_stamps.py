"""Time-stamping tokens of `openssl ts`: what is accepted, and every fault seen refused."""

from __future__ import annotations

import hashlib
import random
import subprocess
import time
from typing import TYPE_CHECKING

import authority
import pytest
from authority import DAY, NOW, STAMPING, Signer
from cryptography.x509.oid import ExtendedKeyUsageOID

from polstore.errors import MalformedError, ServiceError, TimestampError
from polstore.timestamp import take_in
from polstore.wire import note as notes
from polstore.wire import timestamp
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.keys import SigningKey

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not authority.is_there(), reason=authority.MISSING)

KEY = SigningKey("example.org/archive", bytes(range(32)))
ROOT = sign_root(Checkpoint("example.org/archive/run", 5, bytes(range(32))), KEY, 1_700_000_000)
OTHER = sign_root(Checkpoint("example.org/archive/run", 6, bytes(range(32))), KEY, 1_700_000_000)
TEXT = notes.parse(ROOT).text


@pytest.fixture(scope="module")
def trusted() -> Signer:
    return Signer("Root of Time", ca=True)


@pytest.fixture(scope="module")
def tsa(trusted: Signer) -> Signer:
    return Signer("Clock of Example", trusted)


def stamped(folder: Path, signer: Signer, note: bytes = ROOT, **options: object) -> bytes:
    return authority.reply(folder, timestamp.new_request(note), signer, **options)


def verify(response: bytes, *roots: Signer, text: str = TEXT, given: tuple[Signer, ...] = ()) -> timestamp.Token:
    return timestamp.verify(response, text, [each.certificate for each in roots], [each.certificate for each in given])


def der(tag: int, *parts: bytes) -> bytes:
    """Encode one DER value."""
    body = b"".join(parts)
    length = len(body).to_bytes(2, "big").lstrip(b"\0")
    return bytes([tag]) + (bytes([len(body)]) if len(body) < 128 else bytes([0x80 | len(length)]) + length) + body


def forged(folder: Path, response: bytes, signer: Signer, *embedded: Signer) -> bytes:
    """Sign the statement of a response under any certificate, however unfit, as `openssl ts` refuses to do."""
    (folder / "response.tsr").write_bytes(response)
    (folder / "signer.pem").write_bytes(signer.pem())
    (folder / "signer.key").write_bytes(authority.private_pem(signer))
    token = ["openssl", "ts", "-reply", "-in", "response.tsr", "-token_out", "-out", "token.der"]
    subprocess.run(token, cwd=folder, check=True, capture_output=True)
    out = ["openssl", "cms", "-verify", "-noverify", "-inform", "DER", "-in", "token.der", "-out", "info.der"]
    subprocess.run([*out, "-binary"], cwd=folder, check=True, capture_output=True)
    command = ["openssl", "cms", "-sign", "-in", "info.der", "-binary", "-nodetach", "-outform", "DER", "-md", "sha256"]
    command += ["-econtent_type", "1.2.840.113549.1.9.16.1.4", "-signer", "signer.pem", "-inkey", "signer.key"]
    for number, each in enumerate(embedded):
        (folder / f"more{number}.pem").write_bytes(each.pem())
        command += ["-certfile", f"more{number}.pem"]
    subprocess.run([*command, "-out", "forged.der"], cwd=folder, check=True, capture_output=True)
    return der(0x30, der(0x30, der(0x02, b"\0")), (folder / "forged.der").read_bytes())


def test_a_token_is_accepted(tmp_path: Path, trusted: Signer, tsa: Signer) -> None:
    request = timestamp.new_request(ROOT)
    began = int(time.time())
    response = authority.reply(tmp_path, request, tsa)
    ended = time.time()
    read = timestamp.read_response(response, ROOT, request)
    token = verify(response, trusted)
    assert (token.authority, read.authority) == ("CN=Clock of Example", None)
    assert (token.policy, token.accuracy, token.serial) == (authority.POLICY, 1_500_000, 2)
    assert began <= token.time <= ended
    assert (read.time, read.accuracy, read.policy, read.serial) == (
        token.time, token.accuracy, token.policy, token.serial,
    )  # fmt: skip


def test_further_signatures_do_not_touch_it(tmp_path: Path, trusted: Signer, tsa: Signer) -> None:
    request = timestamp.new_request(ROOT)
    response = authority.reply(tmp_path, request, tsa)
    cosigned = ROOT + notes.cosign(TEXT, SigningKey("witness.example", bytes(32)), 5).line().encode()
    assert timestamp.read_response(response, cosigned, request)
    assert verify(response, trusted, text=notes.parse(cosigned).text)


def test_openssl_agrees_on_what_is_stamped(tmp_path: Path, trusted: Signer, tsa: Signer) -> None:
    (tmp_path / "root.tsr").write_bytes(stamped(tmp_path, tsa))
    (tmp_path / "root.pem").write_bytes(trusted.pem())
    (tmp_path / "text").write_text(TEXT)
    command = ["openssl", "ts", "-verify", "-data", "text", "-in", "root.tsr", "-CAfile", "root.pem"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert hashlib.sha256(TEXT.encode()).digest() in timestamp.new_request(ROOT)


def test_another_imprint(tmp_path: Path, trusted: Signer, tsa: Signer) -> None:
    request = timestamp.new_request(OTHER)
    response = authority.reply(tmp_path, request, tsa)
    with pytest.raises(TimestampError, match="over something else"):
        verify(response, trusted)
    for asked in (request, None):
        with pytest.raises(TimestampError, match="over something else"):
            timestamp.read_response(response, ROOT, asked)


def test_another_hash(tmp_path: Path, trusted: Signer, tsa: Signer) -> None:
    (tmp_path / "text").write_text(TEXT)
    command = ["openssl", "ts", "-query", "-data", "text", "-sha512", "-cert", "-out", "query.tsq"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    with pytest.raises(TimestampError, match="hash of a time-stamping token"):
        verify(authority.reply(tmp_path, (tmp_path / "query.tsq").read_bytes(), tsa), trusted)


def test_another_nonce(tmp_path: Path, tsa: Signer) -> None:
    response = stamped(tmp_path, tsa)
    assert timestamp.read_response(response, ROOT)
    with pytest.raises(TimestampError, match="nonce"):
        timestamp.read_response(response, ROOT, timestamp.new_request(ROOT))


def test_a_refusal(tmp_path: Path, trusted: Signer, tsa: Signer) -> None:
    response = stamped(tmp_path, tsa, digests="sha512")
    for check in (lambda: timestamp.read_response(response, ROOT), lambda: verify(response, trusted)):
        with pytest.raises(TimestampError, match="status"):
            check()


def test_another_authority(tmp_path: Path, trusted: Signer, tsa: Signer) -> None:
    response = stamped(tmp_path, tsa)
    with pytest.raises(TimestampError, match="leads from"):
        verify(response, Signer("Root of Time", ca=True))
    with pytest.raises(TimestampError, match="leads from"):
        verify(response, Signer("Another Root", ca=True), given=(trusted, tsa))
    with pytest.raises(TimestampError, match="leads from"):
        verify(response, given=(trusted,))


def test_the_certificate_may_come_from_elsewhere(tmp_path: Path, trusted: Signer, tsa: Signer) -> None:
    (tmp_path / "text").write_text(TEXT)
    command = ["openssl", "ts", "-query", "-data", "text", "-sha256", "-out", "query.tsq"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    response = authority.reply(tmp_path, (tmp_path / "query.tsq").read_bytes(), tsa)
    assert verify(response, trusted, given=(tsa,)).authority == "CN=Clock of Example"
    with pytest.raises(TimestampError, match="got 0"):
        verify(response, trusted)


def test_a_chain(tmp_path: Path, trusted: Signer) -> None:
    between = Signer("Between", trusted, ca=True)
    response = stamped(tmp_path, Signer("Clock", between))
    assert verify(response, trusted, given=(between,))
    with pytest.raises(TimestampError, match="leads from"):
        verify(response, trusted)
    with pytest.raises(TimestampError, match="leads from"):
        verify(response, Signer("Root of Time", ca=True), given=(between,))


def test_only_a_certificate_authority_certifies(tmp_path: Path, trusted: Signer) -> None:
    subscriber = Signer("Somebody", trusted, usage=(ExtendedKeyUsageOID.SERVER_AUTH,))
    response = stamped(tmp_path, Signer("Clock", subscriber))
    with pytest.raises(TimestampError, match="leads from"):
        verify(response, trusted, given=(subscriber,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begins": NOW + DAY / 2}, "time of a token"),  # dated before its certificate
        ({"ends": NOW - DAY / 2}, "time of a token"),
    ],
)
def test_the_certificate_is_judged_at_the_tokens_time(
    tmp_path: Path, trusted: Signer, options: dict[str, object], message: str
) -> None:
    response = stamped(tmp_path, Signer("Clock", trusted, **options))
    with pytest.raises(TimestampError, match=message):
        verify(response, trusted)


@pytest.mark.parametrize("options", [{"begins": NOW + DAY / 2}, {"ends": NOW - DAY / 2}])
def test_and_so_are_those_above_it(tmp_path: Path, options: dict[str, object]) -> None:
    root = Signer("Root", ca=True, **options)
    with pytest.raises(TimestampError, match="time of a token under the certificate of CN=Root"):
        verify(stamped(tmp_path, Signer("Clock", root)), root)


def test_an_old_token_outlives_its_certificate(tmp_path: Path, trusted: Signer, tsa: Signer) -> None:
    """Judged at its own time, a token of last year is as good as it was: only the statement's time matters."""
    soon = Signer("Clock", trusted, begins=NOW - DAY, ends=NOW + DAY / 24)
    assert verify(stamped(tmp_path, soon), trusted)


@pytest.mark.parametrize(
    "options",
    [
        {"usage": None},
        {"usage": (ExtendedKeyUsageOID.SERVER_AUTH,)},
        {"usage": (*STAMPING, ExtendedKeyUsageOID.CODE_SIGNING)},
        {"critical": False},
    ],
)
def test_wrong_usage(tmp_path: Path, trusted: Signer, tsa: Signer, options: dict[str, object]) -> None:
    response = stamped(tmp_path, tsa)
    assert verify(forged(tmp_path, response, Signer("Good", trusted)), trusted), "the forger itself works"
    with pytest.raises(TimestampError, match="usage of an authority's certificate"):
        verify(forged(tmp_path, response, Signer("Bad", trusted, **options)), trusted)


def test_two_certificates_of_one_number_cannot_stand_in_for_each_other(
    tmp_path: Path, trusted: Signer, tsa: Signer
) -> None:
    """A server certificate signs; a home-made twin with the right usage and the same number is embedded beside it."""
    server = Signer("Server", trusted, usage=(ExtendedKeyUsageOID.SERVER_AUTH,))
    number, forger = server.certificate.serial_number, Signer("Root of Time", ca=True)
    statement = stamped(tmp_path, tsa)
    for _ in range(40):  # strict DER wants certificates in order, and openssl writes the signer's first
        twin = Signer("Server", trusted, signed_by=forger, serial=number)
        response = forged(tmp_path, statement, server, twin)
        with pytest.raises(TimestampError) as caught:
            verify(response, trusted)
        if "InvalidSetOrdering" not in str(caught.value):
            break
    assert "got 2" in str(caught.value)
    with pytest.raises(TimestampError, match="got 2"):
        verify(forged(tmp_path, statement, server), trusted, given=(twin,))


def test_damaged_responses_give_one_kind_of_error(tmp_path: Path, trusted: Signer, tsa: Signer) -> None:
    response = stamped(tmp_path, tsa)
    rng = random.Random(1)
    text_seen = 0
    for _ in range(400):
        damaged = bytearray(response)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        for check in (verify, lambda data, _root: timestamp.read_response(data, ROOT)):
            try:
                token = check(bytes(damaged), trusted)
            except TimestampError:
                continue
            if token.authority is not None:  # what is signed is untouched, then: the damage is in the wrapping
                assert token.authority == "CN=Clock of Example"
                text_seen += 1
    assert text_seen < 40
    for cut in (b"", b"\0", response[:-1], response + b"\0", b"\x30\x80" * 1000, bytes(timestamp.MAX_RESPONSE + 1)):
        for check in (lambda data: verify(data, trusted), lambda data: timestamp.read_response(data, ROOT)):
            with pytest.raises(TimestampError):
                check(cut)
    for request in (b"", b"\x30\x03\x02\x01\x01", bytes(5000)):
        with pytest.raises(TimestampError):
            timestamp.read_response(response, ROOT, request)


def test_what_is_no_note_is_not_stamped() -> None:
    with pytest.raises(MalformedError):
        timestamp.new_request(b"just a text\n")


def test_taking_in_names_the_source(tmp_path: Path, trusted: Signer, tsa: Signer) -> None:
    request = timestamp.new_request(ROOT)
    response = authority.reply(tmp_path, request, tsa)
    assert take_in("file", response, ROOT, request).authority is None
    assert take_in("file", response, ROOT, request, [trusted.certificate]).authority == "CN=Clock of Example"
    for wrong, roots in ((response[:-1], ()), (response, [Signer("R", ca=True).certificate])):
        with pytest.raises(ServiceError, match=r"time authority response\.tsr"):
            take_in("response.tsr", wrong, ROOT, request, roots)


def test_certificate_files(trusted: Signer, tsa: Signer) -> None:
    assert timestamp.load_certificates(trusted.pem() + tsa.pem()) == (trusted.certificate, tsa.certificate)
    for wrong in (b"", b"nothing", trusted.pem()[:-40], trusted.pem() * 17):
        with pytest.raises(MalformedError):
            timestamp.load_certificates(wrong)
