"""Reading the fields of a decoded record one by one, each with its type and its cap.

The reader is used by every record parser in `polstore.wire`; a message names the record and the field. Does no I/O.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from polstore.errors import MalformedError

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = ["DIGEST_SIZE", "MAX_INDEX", "Fields"]

DIGEST_SIZE = 32  # bytes of a SHA-256 digest
# Controls, line separators and marks that reorder what a terminal shows. A fixed list: what is "printable" depends on
# the Unicode version, so two verifiers would disagree on the same bytes.
_REFUSED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
MAX_INDEX = 2**48  # cap on steps, sample indices and tree sizes: far above any run, far below float64's 2**53


class Fields:
    """A cursor over one record: an array whose length and field order are fixed."""

    def __init__(self, value: Value, what: str, count: int) -> None:
        if not isinstance(value, tuple):
            raise MalformedError(f"{what} is not an array", expected=f"an array of {count}", got=type(value).__name__)
        if len(value) != count:
            raise MalformedError(f"{what} has the wrong number of fields", expected=count, got=len(value))
        self._items = iter(value)
        self.what = what

    def value(self) -> Value:
        """Return the next field as it is."""
        return next(self._items)

    def tag(self, expected: str) -> None:
        """Require the next field to be the text ``expected``."""
        got = self.value()
        if got != expected or not isinstance(got, str):
            raise MalformedError(f"{self.what} has the wrong format tag", expected=expected, got=got)

    def integer(self, name: str, minimum: int = 0, maximum: int = MAX_INDEX) -> int:
        """Return the next field, an integer within ``[minimum, maximum]``."""
        got = next(self._items)
        if type(got) is not int or not minimum <= got <= maximum:
            raise self._wrong(name, f"an integer from {minimum} to {maximum}", got)
        return got

    def number(self, name: str) -> float:
        """Return the next field, a float64 (NaN and infinities included)."""
        got = self.value()
        if not isinstance(got, float):
            raise self._wrong(name, "a float64", got)
        return got

    def boolean(self, name: str) -> bool:
        """Return the next field, true or false."""
        got = self.value()
        if not isinstance(got, bool):
            raise self._wrong(name, "true or false", got)
        return got

    def text(self, name: str, maximum: int, pattern: str | None = None) -> str:
        """Return the next field, text of 1 to ``maximum`` characters, no controls, that matches ``pattern`` whole."""
        got = next(self._items)
        if not isinstance(got, str) or not 1 <= len(got) <= maximum or _REFUSED.search(got):
            raise self._wrong(name, f"1 to {maximum} characters without controls", got)
        if pattern is not None and re.fullmatch(pattern, got, re.ASCII) is None:
            raise self._wrong(name, f"text that matches {pattern}", got)
        return got

    def binary(self, name: str, maximum: int) -> bytes:
        """Return the next field, at most ``maximum`` bytes."""
        got = self.value()
        if not isinstance(got, bytes) or len(got) > maximum:
            raise self._wrong(name, f"at most {maximum} bytes", got)
        return got

    def digest(self, name: str) -> bytes:
        """Return the next field, a SHA-256 digest of 32 bytes."""
        got = next(self._items)
        if not isinstance(got, bytes) or len(got) != DIGEST_SIZE:
            raise self._wrong(name, f"{DIGEST_SIZE} bytes", got)
        return got

    def array(self, name: str, maximum: int) -> tuple[Value, ...]:
        """Return the next field, an array of at most ``maximum`` items."""
        got = self.value()
        if not isinstance(got, tuple):
            raise self._wrong(name, "an array", got)
        if len(got) > maximum:
            raise self._wrong(name, f"at most {maximum} items", f"{len(got)} items")
        return got

    def _wrong(self, name: str, expected: str, got: object) -> MalformedError:
        return MalformedError(f"{self.what}, field {name}", expected=expected, got=got)
