"""Drawing challenges: how often each segment is drawn, what is always there, nonces, nothing left to choose."""

from __future__ import annotations

import hashlib
from collections import Counter

import msgpack
import pytest

from polstore.errors import ChallengeError, MalformedError, UsageError
from polstore.wire import canonical
from polstore.wire.challenge import ROOT as FROM_ROOT
from polstore.wire.challenge import WITNESS, Challenge, Rules, nonce_from_cosignature, nonce_from_root
from polstore.wire.note import Signature

ORIGIN, ROOT, NONCE = "example.org/archive/run", bytes(range(32)), bytes(range(32, 64))


def draw(count: int, random: int, nonce: bytes = NONCE, **others: object) -> Challenge:
    return Challenge.draw(ORIGIN, count + 1, ROOT, random=random, nonce=nonce, **others)  # type: ignore[arg-type]


def reference(count: int, random: int, fixed: set[int]) -> tuple[int, ...]:
    """Draw as the page says, with nothing of polstore."""
    found = [0, count - 1, *fixed]
    found = sorted(set(found))
    wanted = min(len(found) + random, count)
    counter = 0
    while len(found) < wanted:
        packed = msgpack.packb(["polstore/challenge/v1", NONCE, ROOT, counter], use_bin_type=True)
        number = int(hashlib.sha256(packed).hexdigest()[:32], 16) % count
        if number not in found:
            found.append(number)
        counter += 1
    return tuple(sorted(found))


@pytest.mark.parametrize("count", range(1, 12))
def test_every_small_challenge(count: int) -> None:
    for random in range(count + 2):
        for fixed in ({0}, {count // 2}, {count // 3, 2 * count // 3}):
            for where in ("named", "picked"):
                challenge = draw(count, random, rules=Rules(top=1), **{where: fixed})
                assert challenge.segments == reference(count, random, fixed)
                ends = {0, count - 1}
                assert set(challenge.named) == (ends | fixed if where == "named" else ends)
                assert set(challenge.picked) == (fixed - ends if where == "picked" else set())
                assert challenge.random == len(challenge.segments) - len(ends | fixed)
                assert challenge.population == count - len(ends | fixed)
                assert Challenge.parse(challenge.encode()) == challenge


def test_first_and_last_are_always_there() -> None:
    for number in range(50):
        drawn = draw(1000, 3, hashlib.sha256(bytes([number])).digest())
        assert (drawn.segments[0], drawn.segments[-1], len(drawn.segments)) == (0, 999, 5)
    assert draw(1000, 0).segments == (0, 999)
    assert draw(1, 0).segments == draw(1, 5).segments == (0,)
    assert draw(7, 99).segments == tuple(range(7))


def test_the_draw_depends_on_nonce_root_and_size_alone() -> None:
    first = draw(1000, 10)
    assert draw(1000, 10) == first
    assert draw(1000, 10, bytes(32)).segments != first.segments
    assert draw(999, 10).segments != first.segments
    other_root = Challenge.draw(ORIGIN, 1001, bytes(32), random=10, nonce=NONCE)
    assert other_root.segments != first.segments


def test_every_other_segment_is_drawn_about_equally_often() -> None:
    count, rounds, each, named = 22, 2000, 3, {0, 21, 7, 13}
    seen: Counter[int] = Counter()
    for number in range(rounds):
        nonce = hashlib.sha256(number.to_bytes(4, "big")).digest()
        seen.update(set(draw(count, each, nonce, named={7}, picked={13}, rules=Rules(1)).segments) - named)
    expected = rounds * each / (count - len(named))
    assert sum(seen.values()) == rounds * each
    # Chi-squared with 17 degrees of freedom exceeds 40.8 once in a thousand; the nonces are fixed, so this is no flake.
    assert sum((seen[i] - expected) ** 2 / expected for i in set(range(count)) - named) < 40.8


@pytest.mark.parametrize(
    ("size", "random", "nonce", "others"),
    [
        (1, 1, NONCE, {}),
        (0, 1, NONCE, {}),
        (101, -1, NONCE, {}),
        (2_000_002, 1_000_000, NONCE, {}),
        (101, 5, NONCE[:31], {}),
        (101, 5, NONCE + b"\0", {}),
        (101, 5, NONCE, {"named": {100}}),
        (101, 5, NONCE, {"picked": {-1}}),
        (101, 5, NONCE, {"source": "dice"}),
        (101, 5, NONCE, {"source": "root"}),
    ],
)
def test_numbers_that_do_not_go_together(size: int, random: int, nonce: bytes, others: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Challenge.draw(ORIGIN, size, ROOT, random=random, nonce=nonce, **others)  # type: ignore[arg-type]


def test_nonces_that_nobody_draws() -> None:
    """Each part of what is hashed counts, and each has its place."""
    line = Signature("example.net/w", b"1234", bytes(72))
    heads = [(ORIGIN, 9, ROOT), (ORIGIN + "x", 9, ROOT), (ORIGIN, 10, ROOT), (ORIGIN, 9, bytes(32))]
    lines = [line, Signature("example.net/v", b"1234", bytes(72)), Signature("example.net/w", b"1235", bytes(72))]
    lines.append(Signature("example.net/w", b"1234", bytes(71) + b"1"))
    nonces = [nonce_from_root(*head) for head in heads]
    nonces += [nonce_from_cosignature(*head, line) for head in heads]
    nonces += [nonce_from_cosignature(*heads[0], other) for other in lines[1:]]
    assert len(set(nonces)) == len(nonces) == 11
    packed = msgpack.packb(["polstore/challenge-nonce/v1", "root", ORIGIN, 9, ROOT], use_bin_type=True)
    assert nonces[0] == hashlib.sha256(packed).digest()
    weak = Challenge.draw(*heads[0], random=2, nonce=nonces[0], source=FROM_ROOT)
    assert Challenge.parse(weak.encode()) == weak
    witnessed = Challenge.draw(*heads[0], random=2, nonce=nonces[4], source=WITNESS)
    assert Challenge.parse(witnessed.encode()).source == "witness"


def test_a_file_has_one_spelling() -> None:
    for challenge in (draw(1000, 6), draw(3, 3), draw(90, 3, named={4}, picked={8}, rules=Rules(1, 2, 3))):
        value = canonical.decode(challenge.encode(), limit=2**16, what="challenge")
        assert isinstance(value, tuple)
        for place, name in ((9, "named"), (10, "picked"), (12, "segments")):
            listed = getattr(challenge, name)
            if not listed:
                continue
            wrong = (*value[:place], tuple(map(float, listed)), *value[place + 1 :])
            assert wrong == value  # to Python
            with pytest.raises(MalformedError):
                Challenge.parse(canonical.encode(wrong))
        for place in (2, 6, 7, 8, 11):
            wrong = (*value[:place], float(value[place]), *value[place + 1 :])  # type: ignore[arg-type]
            assert wrong == value
            with pytest.raises(MalformedError):
                Challenge.parse(canonical.encode(wrong))


def test_a_file_above_its_cap_is_not_read() -> None:
    with pytest.raises(MalformedError, match="too long"):
        Challenge.parse(bytes(16 * 2**20 + 1))


def test_a_challenge_is_for_one_root() -> None:
    challenge = draw(1000, 8)
    challenge.require(ORIGIN, 1001, ROOT)
    for origin, size, root in ((ORIGIN + "x", 1001, ROOT), (ORIGIN, 1002, ROOT), (ORIGIN, 1001, bytes(32))):
        with pytest.raises(ChallengeError):
            challenge.require(origin, size, root)
