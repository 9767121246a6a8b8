"""Every error that polstore and polverify raise on purpose.

    PolstoreError
    ├── ProofError            exit 1   the proof is at fault
    │   ├── MalformedError             bytes that are not what the format says
    │   ├── SignatureError             a note without the signatures that were asked for
    │   ├── MerkleError                an inclusion or consistency proof that does not fit its root
    │   ├── LedgerError                a log that was rolled back, or shows two views
    │   ├── TimestampError             a time-stamping token that does not hold, or times that cannot both be true
    │   ├── ContinuityError            records that do not join up into one run
    │   ├── ChallengeError             not the segments that were asked for
    │   ├── DataError                  training samples other than the committed ones
    │   ├── RecipeError                a recipe other than the committed one
    │   ├── PolicyError                something declared or done that the verifier's policy does not allow
    │   └── ReplayError                a replay that does not match what was committed
    ├── UsageError            exit 2   the call makes no sense as it stands
    └── CallerError           exit 4   the caller's side is at fault
        ├── MissingError               no such file, store, run, snapshot or segment
        ├── ExistsError                it is there already and would be overwritten
        ├── LockedError                somebody else is writing
        ├── FullError                  no room left on the device
        ├── DamagedError               a store whose own bytes do not hash to what they should
        ├── KeyFileError               a key file that cannot be used
        ├── ServiceError               a witness or time authority that does not answer, or not as it should
        │   └── StaleError             a witness that has cosigned another size before
        └── TrainingError              a training loop or state that cannot be recorded

Exit code 3 (INCONCLUSIVE) is a verdict and never an error. Foreign exceptions are wrapped where bytes are parsed or
files are touched, with ``from``.
"""

from __future__ import annotations

__all__ = [
    "CallerError",
    "ChallengeError",
    "ContinuityError",
    "DamagedError",
    "DataError",
    "ExistsError",
    "FullError",
    "KeyFileError",
    "LedgerError",
    "LockedError",
    "MalformedError",
    "MerkleError",
    "MissingError",
    "PolicyError",
    "PolstoreError",
    "ProofError",
    "RecipeError",
    "ReplayError",
    "ServiceError",
    "SignatureError",
    "StaleError",
    "TimestampError",
    "TrainingError",
    "UsageError",
]


class PolstoreError(Exception):
    """Base of everything below; ``expected`` and ``got``, where given, end the message."""

    exit_code = 4

    def __init__(self, message: str, *, expected: object = None, got: object = None) -> None:
        self.expected = expected
        self.got = got
        if expected is not None:
            message = f"{message}: expected {_show(expected)}, got {_show(got)}"
        elif got is not None:
            message = f"{message}: got {_show(got)}"
        super().__init__(message)


def _show(value: object) -> str:
    """One short line for any value: bytes in hex, long text cut, control characters escaped."""
    if isinstance(value, bytes):
        text = value.hex() or "nothing"
    elif isinstance(value, str):
        text = value if value.isprintable() else ascii(value)
    else:
        text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"


class ProofError(PolstoreError):
    """The proof is forged, malformed, or does not match."""

    exit_code = 1


class MalformedError(ProofError):
    """Bytes that are not what their format says."""


class SignatureError(ProofError):
    """A note that lacks a signature that was asked for, or carries a false one."""


class MerkleError(ProofError):
    """An inclusion or consistency proof that does not lead to the root."""


class LedgerError(ProofError):
    """A log that was rolled back, shows two views of itself, or lies about its time."""


class TimestampError(ProofError):
    """A time-stamping token that does not hold, or times that cannot both be true."""


class ContinuityError(ProofError):
    """Segment records that do not join up into one run."""


class ChallengeError(ProofError):
    """A bundle that does not answer the challenge."""


class DataError(ProofError):
    """Training samples other than those committed to."""


class RecipeError(ProofError):
    """A recipe file other than the one committed to."""


class PolicyError(ProofError):
    """Something declared or done that the verifier's policy does not allow."""


class ReplayError(ProofError):
    """A replay that does not match what was committed."""


class UsageError(PolstoreError):
    """A call that makes no sense as it stands."""

    exit_code = 2


class CallerError(PolstoreError):
    """Something on the caller's side stands in the way."""


class MissingError(CallerError):
    """No such file, store, run, snapshot or segment."""


class ExistsError(CallerError):
    """It is there already and would be overwritten."""


class LockedError(CallerError):
    """Somebody else is writing."""


class FullError(CallerError):
    """No room left on the device."""


class DamagedError(CallerError):
    """A store whose own bytes do not hash to what they should."""


class KeyFileError(CallerError):
    """A key file that cannot be used."""


class ServiceError(CallerError):
    """A witness or time authority that does not answer, or not as it should."""


class StaleError(ServiceError):
    """A witness that has cosigned a head of another size before.

    Attributes:
        size: that size.
    """

    def __init__(self, message: str, *, size: int, got: int) -> None:
        super().__init__(message, expected=size, got=got)
        self.size = size


class TrainingError(CallerError):
    """A training loop or state that cannot be recorded."""
