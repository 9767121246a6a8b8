"""Challenges and what they draw, from specs/challenge.md."""

from __future__ import annotations

import math
from hashlib import sha256
from typing import Any

from tools.checker import canonical, records
from tools.checker.faults import Case, require, same

__all__ = ["check"]

TAG = "polstore/challenge/v1"
NONCE_TAG = "polstore/challenge-nonce/v1"


def _formed(condition: object, message: str) -> None:
    require(condition, "MalformedError", message)


def _drawn(count: int, root: bytes, nonce: bytes, fixed: list[int], random: int) -> list[int]:
    """Return the fixed segments of a run of ``count``, and as many others as a nonce draws."""
    wanted = len(fixed) + random
    if wanted == count:
        return list(range(count))
    chosen = list(fixed)
    counter = 0
    while len(chosen) < wanted:
        block = sha256(canonical.encode([TAG, nonce, root, counter])).digest()
        number = int.from_bytes(block[:16], "big") % count
        chosen += [number] if number not in chosen else []
        counter += 1
    return sorted(chosen)


def _median(values: list[float]) -> float:
    """Return the lower median; NaN is larger than any number."""
    numbers = sorted(value for value in values if not math.isnan(value))
    place = (len(values) - 1) // 2
    return numbers[place] if place < len(numbers) else math.nan


def _odd(columns: list[list[float]], most: int) -> list[int]:
    """Return the segments whose norms stand out most."""
    best: dict[int, float] = {}
    for column in columns:
        middle = _median(column)
        away = []
        for value in column:
            if value == middle or (math.isnan(value) and math.isnan(middle)):
                away.append(0.0)
            elif math.isnan(value - middle):
                away.append(math.inf)
            else:
                away.append(abs(value - middle))
        spread = _median(away)
        for index, distance in enumerate(away):
            if distance in (0.0, spread):
                continue
            score = math.inf if spread == 0 else distance / spread
            if score > 8:
                best[index] = max(score, best.get(index, 0.0))
    ranked = sorted(best, key=lambda index: (-best[index], index))
    return ranked[:most] if len(columns[0]) >= 5 else []


def _chosen(segments: list[list[Any]], top: int, epoch_steps: int, odd: int) -> list[int]:
    """Return what the rules choose from (start step, l1, l2, linf, cos) of every segment."""
    columns = [[segment[place] for segment in segments] for place in range(1, 5)]
    chosen = {0, len(segments) - 1}
    epochs = [segment[0] // epoch_steps if epoch_steps else 0 for segment in segments]
    for epoch in set(epochs):
        inside = [index for index in range(len(segments)) if epochs[index] == epoch]
        for column in columns:
            nan = [index for index in inside if math.isnan(column[index])]
            numbers = sorted((-column[index], index) for index in inside if index not in nan)
            chosen |= set((nan + [index for _, index in numbers])[:top])
    return sorted(chosen | set(_odd(columns, odd)))


def check(case: Case) -> None:
    """Check one case."""
    value: Any = canonical.decode(bytes.fromhex(case["bytes"]))
    _formed(isinstance(value, list) and len(value) == 13, "not an array of 13")
    tag, origin, size, root, source, nonce, top, epoch_steps, odd, named, picked, random, segments = value
    _formed(isinstance(tag, str) and tag == TAG, "another tag")
    records.text(1024)(origin)
    records.integer(2, 2**48)(size)
    records.digest(root)
    records.text(16)(source)
    _formed(source in ("fresh", "witness", "root"), "another source")
    records.digest(nonce)
    if source == "root":
        _formed(nonce == sha256(canonical.encode([NONCE_TAG, "root", origin, size, root])).digest(), "another nonce")
    records.integer(0, 65_536)(top)
    records.integer(0, 2**48)(epoch_steps)
    records.integer(0, 1_000_000)(odd)
    _formed(top or not epoch_steps, "epochs without largest updates")
    ends = {0, size - 2}
    for indices in (named, picked, segments):
        records.items(records.integer(0, size - 2), 1_000_000)(indices)
        records.ascending(indices)
    _formed(ends <= set(named) and not set(named) & set(picked), "named and picked segments")
    _formed(top or odd or set(named) == ends, "named segments without rules")
    records.integer(0, 1_000_000)(random)
    fixed = named + picked
    _formed(len(fixed) + random == len(segments) <= size - 1, "number of segments")
    _formed(segments == _drawn(size - 1, root, nonce, fixed, random), "other segments than drawn")
    asked = (case["origin"], case["size"], bytes.fromhex(case["root"]))
    require((origin, size, root) == asked, "ChallengeError", "another root")
    if "records" in case:
        rows = [[row[0], *map(float, row[1:])] for row in case["records"]]
        require(named == _chosen(rows, top, epoch_steps, odd), "ChallengeError", "other segments than the rules choose")
    if "cosignature" in case:
        name, key_id, blob = case["cosignature"]
        line = [NONCE_TAG, "witness", origin, size, root, name, bytes.fromhex(key_id), bytes.fromhex(blob)]
        same("nonce", nonce, sha256(canonical.encode(line)).digest())
    same("segments", segments, case["segments"])
    same("random", random, case["random"])
