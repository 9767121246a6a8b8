"""Vectors of specs/challenge.md: challenge files, and what they draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polstore.errors import ChallengeError, MalformedError, PolstoreError
from polstore.wire import canonical
from polstore.wire.challenge import Challenge
from tools.vectors import tiny_run
from tools.vectors.cases import Case, File, expect, file, invalid, valid
from tools.vectors.run_records import REMOVE, replaced

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = ["EXAMPLE", "run", "vectors"]

NONCE = bytes(range(96, 128))
EXAMPLE = Challenge.draw(tiny_run.ORIGIN, 3, tiny_run.ROOT, segments=1, random=1, nonce=NONCE)
LARGE = Challenge.draw(tiny_run.ORIGIN, 1001, tiny_run.ROOT, segments=8, random=6, nonce=NONCE)


def vectors() -> File:
    """Return the whole file."""
    draws = [
        ("example", "the worked example", EXAMPLE),
        ("first_last", "8 of 1000: the first, the last, and 6 drawn", LARGE),
        ("first", "5 of 1000: the first and 4 drawn", _draw(1001, 5, 4, NONCE)),
        ("random", "20 of 1000, all drawn", _draw(1001, 20, 20, bytes(32))),
        ("repeated", "9 of 10, which takes numbers that come twice", _draw(11, 9, 9, NONCE)),
        ("two", "the first and the last, nothing drawn", _draw(1001, 2, 0, NONCE)),
        ("all", "all of 12: nothing is drawn", _draw(13, 20, None, NONCE)),
        ("one_segment", "a run of one segment", _draw(2, 1, 1, NONCE)),
        ("largest", "the largest tree", _draw(2**48, 4, 4, NONCE)),
    ]
    cases = [
        valid(
            f"draw_{name}",
            comment,
            bytes=drawn.encode().hex(),
            segments=list(drawn.segments),
            random=drawn.random,
            **_root(drawn.size),
        )
        for name, comment, drawn in draws
    ]
    value = canonical.decode(LARGE.encode(), limit=2**16, what="challenge")
    whole = canonical.decode(_draw(13, 12, 0, NONCE).encode(), limit=2**16, what="challenge")
    segments = LARGE.segments
    faults: list[tuple[str, str, Value, tuple[int, ...], object]] = [
        ("short", "a field less", value, (6,), REMOVE),
        ("tag", "another tag", value, (0,), "polstore/challenge/v2"),
        ("origin", "no origin", value, (1,), ""),
        ("origin_control", "a newline in the origin", value, (1,), "example.org\n1001"),
        ("size_one", "a root over the manifest alone", value, (2,), 1),
        ("size_other", "another size than was drawn from", value, (2,), 1000),
        ("root_short", "31 bytes", value, (3,), tiny_run.ROOT[:31]),
        ("root_other", "another root than was drawn from", value, (3,), bytes(32)),
        ("nonce_short", "31 bytes", value, (4,), NONCE[:31]),
        ("nonce_other", "another nonce than was drawn from", value, (4,), bytes(32)),
        ("random_other", "one more than were drawn", value, (5,), 7),
        ("random_too_few", "three that the nonce did not draw", value, (5,), 5),
        ("random_too_many", "more than are listed", value, (5,), 9),
        ("random_boolean", "false for 0, where nothing is drawn", whole, (5,), False),
        ("random_whole", "1 for 0, where nothing is drawn", whole, (5,), 1),
        ("segments_none", "no segment", value, (6,), ()),
        ("segments_chosen", "a segment of somebody's choosing", value, (6, 3), segments[3] + 1),
        ("segments_missing", "a segment less", value, (6, 3), REMOVE),
        ("segments_order", "in another order", value, (6,), (*segments[:2], segments[3], segments[2], *segments[4:])),
        ("segments_boolean", "false for 0", value, (6, 0), False),
        ("segments_whole", "12 of 12, but not each once", whole, (6, 3), 4),
    ]
    cases += [
        invalid(
            f"file_{name}",
            comment,
            MalformedError,
            bytes=canonical.encode(replaced(base, path, new)).hex(),
            **_root(13 if base is whole else 1001),
        )
        for name, comment, base, path, new in faults
    ]
    others: list[tuple[str, str, Case]] = [
        ("origin", "a challenge for another run", {"origin": "example.org/archive/other"}),
        ("size", "a challenge for an earlier root", {"size": 1002}),
        ("root", "a challenge for another root", {"root": "00" * 32}),
    ]
    cases += [
        invalid(f"other_{name}", comment, ChallengeError, bytes=LARGE.encode().hex(), **(_root(1001) | other))
        for name, comment, other in others
    ]
    return file("challenge", "specs/challenge.md", cases)


def run(case: Case) -> None:
    """Put one case through polstore."""
    data = bytes.fromhex(case["bytes"])
    challenge = Challenge.parse(data)
    expect("encoding", challenge.encode(), data)
    challenge.require(case["origin"], case["size"], bytes.fromhex(case["root"]))
    expect("segments", list(challenge.segments), case["segments"])
    expect("random", challenge.random, case["random"])


def _draw(size: int, segments: int, random: int | None, nonce: bytes) -> Challenge:
    try:
        return Challenge.draw(tiny_run.ORIGIN, size, tiny_run.ROOT, segments=segments, random=random, nonce=nonce)
    except PolstoreError as error:
        raise AssertionError("a vector cannot be drawn") from error


def _root(size: int) -> Case:
    return {"origin": tiny_run.ORIGIN, "size": size, "root": tiny_run.ROOT.hex()}
