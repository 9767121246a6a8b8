"""Challenges and what they draw, from specs/challenge.md."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from tools.checker import canonical, records
from tools.checker.faults import Case, require, same

__all__ = ["check"]

TAG = "polstore/challenge/v1"


def _formed(condition: object, message: str) -> None:
    require(condition, "MalformedError", message)


def _drawn(count: int, root: bytes, nonce: bytes, random: int, wanted: int) -> list[int]:
    """Return the segments of a run of ``count`` that a nonce draws."""
    if wanted == count:
        _formed(random == 0, "segments drawn where all are wanted")
        return list(range(count))
    _formed(0 <= wanted - random <= 2, "segments that were not drawn")
    chosen = {0: [], 1: [0], 2: [0, count - 1]}[wanted - random]
    counter = 0
    while len(chosen) < wanted:
        block = sha256(canonical.encode([TAG, nonce, root, counter])).digest()
        number = int.from_bytes(block[:16], "big") % count
        chosen += [number] if number not in chosen else []
        counter += 1
    return sorted(chosen)


def check(case: Case) -> None:
    """Check one case."""
    value: Any = canonical.decode(bytes.fromhex(case["bytes"]))
    _formed(isinstance(value, list) and len(value) == 7, "not an array of 7")
    tag, origin, size, root, nonce, random, segments = value
    _formed(isinstance(tag, str) and tag == TAG, "another tag")
    records.text(1024)(origin)
    records.integer(2, 2**48)(size)
    records.digest(root)
    records.digest(nonce)
    records.integer(0, 1_000_000)(random)
    records.items(records.integer(0, size - 2), 1_000_000)(segments)
    _formed(1 <= len(segments) < size, "number of segments")
    _formed(segments == _drawn(size - 1, root, nonce, random, len(segments)), "other segments than drawn")
    asked = (case["origin"], case["size"], bytes.fromhex(case["root"]))
    require((origin, size, root) == asked, "ChallengeError", "another root")
    same("segments", segments, case["segments"])
    same("random", random, case["random"])
