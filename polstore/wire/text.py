"""Strict base64 and decimal numbers, as signed notes, checkpoints and key files write them.

Python's own parsers are lenient (``int("1_000")`` is 1000, ``b64decode("YW!!Jj")`` is ``b"abc"``); here every value has
exactly one spelling. Used by specs/signed-root.md. Does no I/O.
"""

from __future__ import annotations

import base64
import re

from polstore.errors import MalformedError

__all__ = ["from_base64", "from_decimal", "to_base64"]

_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", re.ASCII)
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)  # 19 digits hold everything below 2**63


def to_base64(data: bytes) -> str:
    """Return standard base64 with padding (RFC 4648, section 4)."""
    return base64.b64encode(data).decode("ascii")


def from_base64(text: str, what: str) -> bytes:
    """Parse standard base64 with padding, in the one spelling that encoding gives.

    Raises:
        MalformedError: another alphabet, missing padding, or stray bits in the last character.
    """
    if _BASE64.fullmatch(text) is None:
        raise MalformedError(f"{what} is not base64", expected="RFC 4648 base64 with padding", got=text)
    data = base64.b64decode(text, validate=True)
    if to_base64(data) != text:
        raise MalformedError(f"{what} is not canonical base64", expected=to_base64(data), got=text)
    return data


def from_decimal(text: str, what: str, maximum: int) -> int:
    """Parse a decimal number from 0 to ``maximum``: ASCII digits, no sign, no leading zero.

    Raises:
        MalformedError: another spelling, or above ``maximum`` (itself below 2**63).
    """
    if _DECIMAL.fullmatch(text) is None or int(text) > maximum:
        raise MalformedError(f"{what} is not a decimal number", expected=f"0 to {maximum}", got=text)
    return int(text)
