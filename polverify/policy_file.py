"""Reading a verifier's policy: a TOML file of his own, in which everything has a meaning or is an error.

A misspelt rule that went unnoticed would be no rule, so unknown tables and keys, other types, empty lists, and numbers
out of range are all refused. Implements specs/policy.md, sections "Format" and "Limits". What the rules do is in
`polverify.policy`.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import tomllib
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from polstore.codec.quantise import FIDELITIES
from polstore.errors import CallerError, ProofError
from polstore.files import read_file
from polstore.wire.keys import VerifierKey
from polstore.wire.manifest import INITIAL_KINDS, MAX_EVERY, SAMPLER_KINDS
from polverify.policy import Bounds, VerifierPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["MAX_POLICY_FILE", "SUFFIX", "load_policy", "parse_policy"]

SUFFIX = (
    ".toml"  # what tells a policy from a C2SP tlog-policy, which is no TOML: either is refused under the other name
)
MAX_POLICY_FILE = 2**20  # bytes
MAX_RECIPE = 2**24  # bytes of a recipe file that is named by its path
MAX_LIST = 1024  # entries of one list
MAX_TEXT = 1024  # characters of one entry
MAX_NUMBER = 2**53  # so that every integer is a JSON number
TIME_KINDS = ("witnessed", "timestamped")
NONCES = ("fresh", "witness", "root")
_KEY_LINE = re.compile(r"[^+\s]+\+[0-9a-f]{8}\+[A-Za-z0-9+/=]+")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def load_policy(path: Path) -> VerifierPolicy:
    """Read a policy; what it names by path lies beside it.

    Raises:
        MissingError: no such file, or a recipe that it names is not there.
        CallerError: it is not a policy.
    """
    return parse_policy(_read_own(path, MAX_POLICY_FILE), path)


def parse_policy(data: bytes, path: Path) -> VerifierPolicy:
    """Parse a policy that lies at ``path``; raises as `load_policy`."""
    try:
        tables = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError, TOMLDecodeError; integers of 4301 digits
        raise CallerError(f"policy {path} is not TOML: {error}") from error
    root = _Table(tables, f"policy {path}", path.parent)
    trust, recipe, dataset, run = (root.table(name) for name in ("trust", "recipe", "dataset", "run"))
    environment, hypers, time = (root.table(name) for name in ("environment", "hyperparameters", "time"))
    challenge, power = root.table("challenge"), root.table("power")
    share = power.number("share", 0, 1, above=True)
    policy = VerifierPolicy(
        digest=hashlib.sha256(data).hexdigest(),
        rules=_plain(tables),
        keys=trust.keys("keys"),
        key_name=trust.text("name"),
        tlog_policy=trust.path("tlog_policy"),
        origins=trust.origins("origins"),
        ledger=trust.flag("ledger"),
        recipes=_both(recipe.digests("sha256"), recipe.files("files")),
        datasets=dataset.digests("roots"),
        fidelities=run.texts("fidelities", FIDELITIES),
        optimizers=run.texts("optimizers"),
        initial=run.texts("initial", INITIAL_KINDS),
        samplers=run.texts("samplers", SAMPLER_KINDS),
        max_every=run.integer("max_every", 1, MAX_EVERY),
        min_steps=run.integer("min_steps", 1),
        max_short_segments=run.integer("max_short_segments", 0),
        devices=environment.texts("devices"),
        device_names=environment.texts("device_names"),
        torch=environment.texts("torch"),
        bounds={name: hypers.table(name).bounds() for name in hypers.names()},
        time_kinds=time.texts("require", TIME_KINDS),
        existed_by=time.date("existed_by"),
        max_age=time.integer("max_age_seconds", 0),
        lower_bound=time.flag("lower_bound"),
        nonces=challenge.texts("nonce", NONCES),
        share=None if share is None else Fraction(str(share)),
        detection=power.number("detection", 0, 1, above=True),
        one_bad_segment=power.number("one_bad_segment", 0, 1, above=True),
        concatenation=power.number("concatenation", 0, 1, above=True),
        replayed_share=power.number("replayed_share", 0, 1, above=True),
    )
    root.close()
    if (policy.share is None) != (policy.detection is None):
        raise CallerError(f"policy {path}: [power]", expected="share and detection together", got="one of them")
    return policy


class _Table:
    """One table of the file. What was not asked for is found by `close`."""

    def __init__(self, values: Mapping[str, Any], name: str, folder: Path) -> None:
        self._values = values
        self._name = name
        self._folder = folder
        self._asked: set[str] = set()
        self._tables: list[_Table] = []

    def names(self) -> list[str]:
        return list(self._values)

    def close(self) -> None:
        """Refuse every name that nothing asked for."""
        unknown = sorted(self._values.keys() - self._asked)
        if unknown:
            known = ", ".join(sorted(self._asked)) or "nothing"
            raise CallerError(f"{self._name}: unknown name", expected=known, got=unknown[0])
        for table in self._tables:
            table.close()

    def table(self, name: str) -> _Table:
        """Return a table; an empty one if it is absent."""
        found = self._get(name, dict, "a table")
        table = _Table({} if found is None else found, f"{self._name}: {name}", self._folder)
        self._tables.append(table)
        return table

    def flag(self, name: str) -> bool:
        return bool(self._get(name, bool, "true or false"))

    def text(self, name: str) -> str | None:
        found: str | None = self._get(name, str, "text")
        if found is not None and not 0 < len(found) <= MAX_TEXT:
            raise self._error(name, f"1 to {MAX_TEXT} characters", found)
        return found

    def path(self, name: str) -> Path | None:
        found = self.text(name)
        return None if found is None else self._folder / found

    def integer(self, name: str, least: int, most: int = MAX_NUMBER) -> int | None:
        found: int | None = self._get(name, int, "an integer")
        if found is not None and not least <= found <= most:
            raise self._error(name, f"{least} to {most}", found)
        return found

    def number(self, name: str, least: float, most: float, *, above: bool = False) -> float | None:
        """Return a number from ``least`` to ``most``, or strictly ``above`` the least."""
        found: float | None = self._get(name, (int, float), "a number")
        if isinstance(found, int) and abs(found) > MAX_NUMBER:
            raise self._error(name, f"a number, integers of at most {MAX_NUMBER}", found)
        if found is not None and not (least <= found <= most and not (above and found == least)):  # nor NaN
            raise self._error(name, f"{'above ' if above else ''}{least:g} to {most:g}", found)
        return found

    def date(self, name: str) -> int | None:
        found: datetime.datetime | None = self._get(name, datetime.datetime, "a date and time")
        if found is not None and found.tzinfo is None:
            raise self._error(name, "a date and time with its offset from UTC", found.isoformat())
        if found is not None and found.timestamp() < 0:
            raise self._error(name, "a date and time from 1970 on", found.isoformat())
        return None if found is None else int(found.timestamp())

    def texts(self, name: str, allowed: Sequence[str] = ()) -> tuple[str, ...] | None:
        """Return a list of texts, of ``allowed`` ones if there are any."""
        found = self._get(name, list, "a list of texts")
        if found is None:
            return None
        if not 0 < len(found) <= MAX_LIST:
            raise self._error(name, f"1 to {MAX_LIST} entries", len(found))
        for entry in found:
            if not isinstance(entry, str) or not 0 < len(entry) <= MAX_TEXT:
                raise self._error(name, f"texts of 1 to {MAX_TEXT} characters", entry)
            if allowed and entry not in allowed:
                raise self._error(name, " or ".join(allowed), entry)
        return tuple(found)

    def origins(self, name: str) -> tuple[str, ...] | None:
        found = self.texts(name)
        for entry in found or ():
            if "*" in entry.removesuffix("/*") or entry == "/*":
                raise self._error(name, "an origin, or the beginning of one and /*", entry)
        return found

    def digests(self, name: str) -> tuple[bytes, ...] | None:
        found = self.texts(name)
        for entry in found or ():
            if not _DIGEST.fullmatch(entry):
                raise self._error(name, "64 hex digits in lower case", entry)
        return None if found is None else tuple(map(bytes.fromhex, found))

    def files(self, name: str) -> tuple[bytes, ...] | None:
        """Return the SHA-256 of files that are named by their paths."""
        found = self.texts(name)
        if found is None:
            return None
        return tuple(hashlib.sha256(_read_own(self._folder / each, MAX_RECIPE)).digest() for each in found)

    def keys(self, name: str) -> tuple[VerifierKey | Path, ...]:
        """Return keys: lines as specs/signed-root.md has them, and paths of key files."""
        keys: list[VerifierKey | Path] = []
        for entry in self.texts(name) or ():
            try:
                keys.append(VerifierKey.parse(entry) if _KEY_LINE.fullmatch(entry) else self._folder / entry)
            except ProofError as error:
                raise CallerError(f"{self._name}: {name}: {error}") from error
        return tuple(keys)

    def bounds(self) -> Bounds:
        """Return this table as the bounds of one hyperparameter."""
        most = float("inf")
        found = Bounds(
            self.number("min", -most, most), self.number("max", -most, most), self.integer("from_step", 0) or 0
        )
        if found.minimum is None and found.maximum is None:
            raise CallerError(f"{self._name}", expected="min or max", got="neither")
        if found.minimum is not None and found.maximum is not None and found.minimum > found.maximum:
            raise CallerError(f"{self._name}: max", expected=f"at least {found.minimum:g}", got=found.maximum)
        return found

    def _get(self, name: str, kind: type | tuple[type, ...], what: str) -> Any:
        self._asked.add(name)
        found = self._values.get(name)
        if found is None:
            return None
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise self._error(name, what, found)
        return found

    def _error(self, name: str, expected: str, got: object) -> CallerError:
        return CallerError(f"{self._name}: {name}", expected=expected, got=got)


def _read_own(path: Path, limit: int) -> bytes:
    """Read a file of the verifier's own: one that is too long is a fault of his side."""
    try:
        return read_file(path, limit)
    except ProofError as error:
        raise CallerError(f"{path}: {error}") from error


def _both(one: tuple[bytes, ...] | None, other: tuple[bytes, ...] | None) -> tuple[bytes, ...] | None:
    return None if one is None and other is None else (one or ()) + (other or ())


def _plain(value: Any) -> Any:
    """Return the file's content as JSON can hold it."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    return value
