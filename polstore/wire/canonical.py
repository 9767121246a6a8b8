"""Canonical msgpack: the one encoding of every structured value that is hashed or signed.

A subset of msgpack in which every value has exactly one encoding: nil, booleans, integers in their shortest form,
float64 as its 8 bytes, UTF-8 text, bytes, and arrays in a fixed order. No maps, no extension types, no float32. The one
NaN is the quiet NaN ``7ff8000000000000``. Decoding is strict: encoding the result again must give the input back.
Implements specs/canonical.md. Does no I/O.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import msgpack

from polstore.errors import MalformedError

__all__ = ["MAX_DEPTH", "Value", "decode", "encode"]

Value: TypeAlias = "bool | int | float | str | bytes | tuple[Value, ...] | None"

MAX_DEPTH = 32  # arrays inside arrays; a nested state_dict needs 6 to 8, and msgpack itself stops at 511
_PLAIN = frozenset({type(None), bool, int, str, bytes})  # encoded as they are; looked up before a call for each is made


def encode(value: Value) -> bytes:
    """Return the one canonical encoding of ``value``.

    Raises:
        MalformedError: ``value`` holds something outside the subset, or nests deeper than `MAX_DEPTH`.
    """
    try:
        packed: bytes = msgpack.packb(_checked(value, MAX_DEPTH), use_bin_type=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise MalformedError(f"value has no canonical encoding: {error}") from error
    return packed


def decode(data: bytes, *, limit: int, what: str) -> Value:
    """Parse canonical bytes into nested tuples and scalars.

    Args:
        data: the bytes; all of them must belong to the value.
        limit: cap on ``len(data)`` in bytes, checked first.
        what: the thing being parsed, for the message.

    Raises:
        MalformedError: too long, not msgpack, outside the subset, or not in canonical form.
    """
    if len(data) > limit:
        raise MalformedError(f"{what} is too long", expected=f"at most {limit} bytes", got=f"{len(data)} bytes")
    try:
        # Every element takes at least one byte, so `limit` also caps all counts and lengths inside.
        value: Value = msgpack.unpackb(
            data, raw=False, use_list=False, strict_map_key=True, max_map_len=0, max_ext_len=0, max_array_len=len(data)
        )
        again = encode(value)
    except MalformedError as error:
        raise MalformedError(f"{what} is not canonical msgpack: {error}") from error
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise MalformedError(f"{what} is not canonical msgpack: {str(error) or type(error).__name__}") from error
    if again != data:
        raise MalformedError(f"{what} is not in canonical form", expected=again[:64], got=data[:64])
    return value


def _checked(value: Value, depth: int) -> Value:
    """Refuse what lies outside the subset and replace every NaN by the one NaN."""
    if isinstance(value, tuple):
        if depth == 0:
            raise MalformedError(f"value nests deeper than {MAX_DEPTH} arrays")
        return tuple([item if type(item) in _PLAIN else _checked(item, depth - 1) for item in value])
    if isinstance(value, float):
        return math.nan if math.isnan(value) else value
    if value is None or isinstance(value, (bool, int, str, bytes)):
        return value
    raise MalformedError(f"a {type(value).__name__} has no canonical encoding")
