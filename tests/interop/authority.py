"""A local time-stamping authority: certificates made here, tokens by `openssl ts`."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

MISSING = "openssl is not installed"
STAMPING = (ExtendedKeyUsageOID.TIME_STAMPING,)
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)
POLICY = "1.2.3.4.1"
CONFIG = """
[tsa]
serial = {folder}/serial
signer_digest = sha256
default_policy = {policy}
digests = {digests}
accuracy = secs:1, millisecs:500
ess_cert_id_alg = sha256
"""


def is_there() -> bool:
    return shutil.which("openssl") is not None


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Signer:
    """A certificate with its key."""

    def __init__(
        self,
        subject: str,
        issuer: Signer | None = None,
        *,
        ca: bool = False,
        usage: tuple[x509.ObjectIdentifier, ...] | None = STAMPING,
        critical: bool = True,
        begins: datetime.datetime = NOW - DAY,
        ends: datetime.datetime = NOW + DAY,
        serial: int | None = None,
        signed_by: Signer | None = None,
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        parent = issuer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(subject) if issuer is None else issuer.certificate.subject)
            .public_key(self.key.public_key())
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
        )
        others = (
            "content_commitment key_encipherment data_encipherment key_agreement encipher_only decipher_only crl_sign"
        )
        key_usage = x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, **dict.fromkeys(others.split(), False))
        builder = builder.add_extension(key_usage, critical=True)
        if usage is not None and not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=critical)
        self.certificate = builder.sign((signed_by or parent).key, hashes.SHA256())

    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


def private_pem(signer: Signer) -> bytes:
    return signer.key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def reply(folder: Path, request: bytes, signer: Signer, *, digests: str = "sha256, sha512") -> bytes:
    """Answer a request as the authority would."""
    (folder / "serial").write_text("01\n")
    (folder / "tsa.cnf").write_text(CONFIG.format(folder=folder, policy=POLICY, digests=digests))
    (folder / "request.tsq").write_bytes(request)
    (folder / "tsa.pem").write_bytes(signer.pem())
    (folder / "tsa.key").write_bytes(private_pem(signer))
    command = ["openssl", "ts", "-reply", "-config", "tsa.cnf", "-section", "tsa", "-queryfile", "request.tsq"]
    command += ["-signer", "tsa.pem", "-inkey", "tsa.key", "-out", "response.tsr"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (folder / "response.tsr").read_bytes()
