"""Vectors of specs/challenge.md: challenge files, and what they draw."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from polstore.errors import ChallengeError, MalformedError, PolstoreError
from polstore.wire import canonical
from polstore.wire.challenge import ROOT, WITNESS, Challenge, Rules, nonce_from_cosignature, nonce_from_root
from polstore.wire.note import Signature
from polstore.wire.segment import Norms, SegmentRecord
from polverify.challenge import choose, require_chosen
from tools.vectors import tiny_run
from tools.vectors.cases import Case, File, expect, file, invalid, valid
from tools.vectors.run_records import REMOVE, replaced

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = ["EXAMPLE", "run", "vectors"]

NONCE = bytes(range(96, 128))
WITNESS_LINE = Signature("example.net/witness", bytes.fromhex("a1b2c3d4"), bytes(range(72)))


def _draw(size: int, random: int, nonce: bytes, **others: Any) -> Challenge:
    try:
        return Challenge.draw(tiny_run.ORIGIN, size, tiny_run.ROOT, random=random, nonce=nonce, **others)
    except PolstoreError as error:
        raise AssertionError("a vector cannot be drawn") from error


EXAMPLE = _draw(6, 1, NONCE)
LARGE = _draw(1001, 6, NONCE, rules=Rules(2, 100, 3), named=(17, 500), picked=(20, 30))

# (start step, l1, l2, linf, cos) of each segment of a run: a jump in segment 5, a NaN in 9, a dwarf in 7.
ROWS: list[tuple[int, float, float, float, float]] = [
    (10 * index, 8.0 + index % 3, 2.0 + 0.25 * (index % 4), 0.5 + 0.125 * (index % 2), 0.0625 * (1 + index % 5))
    for index in range(12)
]
ROWS[5] = (50, 80.0, 31.0, 3.0, 0.9)
ROWS[7] = (70, 8.0, 2.25, 1e-9, 0.0625)
ROWS[9] = (90, math.nan, math.nan, math.inf, math.nan)
EQUAL = [(10 * index, 1.0, 1.0, 1.0, 0.25) for index in range(8)]


def _segments(rows: list[tuple[int, float, float, float, float]]) -> list[SegmentRecord]:
    """Return records with these norms; nothing else of them plays a part."""
    return [
        replace(tiny_run.RECORDS[0], index=index, start_step=start, end_step=start + 1, norms=Norms(*norms))
        for index, (start, *norms) in enumerate(rows)
    ]


def _chosen(rows: list[tuple[int, float, float, float, float]], rules: Rules) -> Challenge:
    return _draw(len(rows) + 1, 1, NONCE, rules=rules, named=choose(_segments(rows), rules))


def vectors() -> File:
    """Return the whole file."""
    head = (tiny_run.ORIGIN, 1001, tiny_run.ROOT)
    weak, witnessed = nonce_from_root(*head), nonce_from_cosignature(*head, WITNESS_LINE)
    line = [WITNESS_LINE.name, WITNESS_LINE.key_id.hex(), WITNESS_LINE.blob.hex()]
    draws: list[tuple[str, str, Challenge, Case]] = [
        ("example", "the worked example", EXAMPLE, {}),
        ("first_last", "8 of 1000: the first, the last, and 6 drawn", _draw(1001, 6, NONCE), {}),
        ("all_reasons", "by rules, picked, and drawn", LARGE, {}),
        ("other_nonce", "20 of 1000 drawn from another nonce", _draw(1001, 20, bytes(32)), {}),
        ("repeated", "7 of the 8 between, which takes numbers that come twice", _draw(11, 7, NONCE), {}),
        ("two", "the first and the last, nothing drawn", _draw(1001, 0, NONCE), {}),
        ("all", "all of 12", _draw(13, 20, NONCE), {}),
        ("one_segment", "a run of one segment, which is the first and the last", _draw(2, 1, NONCE), {}),
        ("two_segments", "a run of two segments", _draw(3, 1, NONCE), {}),
        ("largest", "the largest tree", _draw(2**48, 4, NONCE), {}),
        ("witness", "the nonce from a cosignature", _draw(1001, 3, witnessed, source=WITNESS), {"cosignature": line}),
        ("root", "the nonce from the root", _draw(1001, 3, weak, source=ROOT), {}),
    ]
    for name, comment, rows, rules in (
        ("top", "the largest update of the run under each distance", ROWS, Rules(top=1)),
        ("top_epochs", "the two largest of every 40 steps", ROWS, Rules(top=2, epoch_steps=40)),
        ("top_equal", "of equal ones the earlier come first", EQUAL, Rules(top=3)),
        ("odd", "all norms that stand out", ROWS, Rules(odd=9)),
        ("odd_two", "the two that stand out most", ROWS, Rules(odd=2)),
        ("odd_equal", "nothing stands out", EQUAL, Rules(odd=9)),
        ("odd_flat", "all equal but one", [*EQUAL[:3], (30, 1.0, 1.5, 1.0, 0.25), *EQUAL[4:]], Rules(odd=9)),
        ("odd_few", "too few segments for anything to stand out", ROWS[4:8], Rules(odd=9)),
        ("both", "largest and odd", ROWS, Rules(1, 60, 2)),
    ):
        draws.append((f"rules_{name}", comment, _chosen(rows, rules), {"records": _shown(rows)}))
    cases = [
        valid(
            f"draw_{name}",
            comment,
            bytes=drawn.encode().hex(),
            segments=list(drawn.segments),
            random=drawn.random,
            **_root(drawn.size),
            **more,
        )
        for name, comment, drawn, more in draws
    ]
    cases += _faults()
    others: list[tuple[str, str, Case]] = [
        ("origin", "a challenge for another run", {"origin": "example.org/archive/other"}),
        ("size", "a challenge for an earlier root", {"size": 1002}),
        ("root", "a challenge for another root", {"root": "00" * 32}),
    ]
    cases += [
        invalid(f"other_{name}", comment, ChallengeError, bytes=LARGE.encode().hex(), **(_root(1001) | other))
        for name, comment, other in others
    ]
    left_out = _draw(13, 1, NONCE, rules=Rules(top=1))
    too_many = _draw(13, 1, NONCE, rules=Rules(top=1), named=(*choose(_segments(ROWS), Rules(top=1)), 3))
    for name, comment, drawn in (
        ("missing", "the largest updates are not named", left_out),
        ("surplus", "a segment that no rule chooses", too_many),
    ):
        shown = {"bytes": drawn.encode().hex(), "records": _shown(ROWS)}
        cases.append(invalid(f"rules_{name}", comment, ChallengeError, **_root(13), **shown))
    return file("challenge", "specs/challenge.md", cases)


def _faults() -> list[Case]:
    value, plain = _decoded(LARGE), _decoded(_draw(1001, 6, NONCE))
    whole, short = _decoded(_draw(13, 12, NONCE)), _decoded(_draw(3, 0, NONCE))
    weak = _decoded(_draw(1001, 3, nonce_from_root(tiny_run.ORIGIN, 1001, tiny_run.ROOT), source=ROOT))
    s = LARGE.segments
    faults: list[tuple[str, str, Value, tuple[int, ...], object]] = [
        ("short", "a field less", value, (12,), REMOVE),
        ("tag", "another tag", value, (0,), "polstore/challenge/v2"),
        ("origin", "no origin", value, (1,), ""),
        ("origin_control", "a newline in the origin", value, (1,), "example.org\n1001"),
        ("size_one", "a root over the manifest alone", value, (2,), 1),
        ("size_other", "another size than was drawn from", value, (2,), 1000),
        ("root_short", "31 bytes", value, (3,), tiny_run.ROOT[:31]),
        ("root_other", "another root than was drawn from", value, (3,), bytes(32)),
        ("source_unknown", "a source that is none", value, (4,), "dice"),
        ("source_root", "a fresh nonce that is said to follow from the root", value, (4,), "root"),
        ("nonce_short", "31 bytes", value, (5,), NONCE[:31]),
        ("nonce_other", "another nonce than was drawn from", value, (5,), bytes(32)),
        ("nonce_root", "another nonce than the root gives", weak, (5,), NONCE),
        ("top_negative", "-1", value, (6,), -1),
        ("top_large", "more than 65536", value, (6,), 65537),
        ("top_boolean", "true for 1", plain, (6,), True),
        ("epochs_alone", "epochs, but no largest updates", plain, (7,), 100),
        ("odd_large", "more than a million", value, (8,), 1_000_001),
        ("named_without_rules", "a segment named that nothing chose", plain, (9,), (0, 500, 999)),
        ("named_first_missing", "the first segment is not named", value, (9, 0), REMOVE),
        ("named_last_missing", "the last segment is not named", value, (9, 3), REMOVE),
        ("named_order", "in another order", value, (9,), (0, 500, 17, 999)),
        ("named_outside", "a segment that the run does not have", value, (9, 3), 1000),
        ("named_boolean", "false for 0", value, (9, 0), False),
        ("picked_named", "a segment picked and named", value, (10, 0), 17),
        ("picked_twice", "a segment picked twice", value, (10, 1), 20),
        ("picked_first", "the first segment picked, too", value, (10, 0), 0),
        ("random_other", "one more than were drawn", value, (11,), 7),
        ("random_too_few", "one less", value, (11,), 5),
        ("random_boolean", "false for 0", short, (11,), False),
        ("segments_none", "no segment", value, (12,), ()),
        ("segments_chosen", "a segment of somebody's choosing", value, (12, 2), s[2] + 1),
        ("segments_missing", "a segment less", value, (12, 3), REMOVE),
        ("segments_order", "in another order", value, (12,), (*s[:2], s[3], s[2], *s[4:])),
        ("segments_boolean", "false for 0", value, (12, 0), False),
        ("segments_whole", "12 of 12, but not each once", whole, (12, 3), 4),
    ]
    sizes = {id(whole): 13, id(short): 3}
    return [
        invalid(
            f"file_{name}",
            comment,
            MalformedError,
            bytes=canonical.encode(replaced(base, path, new)).hex(),
            **_root(sizes.get(id(base), 1001)),
        )
        for name, comment, base, path, new in faults
    ]


def run(case: Case) -> None:
    """Put one case through polstore and polverify."""
    data = bytes.fromhex(case["bytes"])
    challenge = Challenge.parse(data)
    expect("encoding", challenge.encode(), data)
    challenge.require(case["origin"], case["size"], bytes.fromhex(case["root"]))
    if "records" in case:
        require_chosen(challenge, _segments([(row[0], *map(float, row[1:])) for row in case["records"]]))
    if "cosignature" in case:
        name, key_id, blob = case["cosignature"]
        line = Signature(name, bytes.fromhex(key_id), bytes.fromhex(blob))
        head = (challenge.origin, challenge.size, challenge.root)
        expect("nonce", nonce_from_cosignature(*head, line), challenge.nonce)
    expect("segments", list(challenge.segments), case["segments"])
    expect("random", challenge.random, case["random"])


def _decoded(challenge: Challenge) -> Value:
    return canonical.decode(challenge.encode(), limit=2**16, what="challenge")


def _shown(rows: list[tuple[int, float, float, float, float]]) -> list[list[object]]:
    """Return rows for JSON, which knows neither NaN nor infinities."""
    return [[row[0], *map(repr, row[1:])] for row in rows]


def _root(size: int) -> Case:
    return {"origin": tiny_run.ORIGIN, "size": size, "root": tiny_run.ROOT.hex()}
