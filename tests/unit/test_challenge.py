"""Drawing challenges: how often each segment is drawn, the rules for the first and the last, nothing left to choose."""

from __future__ import annotations

import hashlib
from collections import Counter

import msgpack
import pytest

from polstore.errors import ChallengeError, MalformedError, UsageError
from polstore.wire import canonical
from polstore.wire.challenge import Challenge

ORIGIN, ROOT, NONCE = "example.org/archive/run", bytes(range(32)), bytes(range(32, 64))


def draw(count: int, segments: int, random: int | None = None, nonce: bytes = NONCE) -> Challenge:
    return Challenge.draw(ORIGIN, count + 1, ROOT, segments=segments, random=random, nonce=nonce)


def reference(count: int, segments: int, random: int) -> tuple[int, ...]:
    """Draw as the page says, with nothing of polstore."""
    found = [0, count - 1][: segments - random]
    counter = 0
    while len(found) < segments:
        packed = msgpack.packb(["polstore/challenge/v1", NONCE, ROOT, counter], use_bin_type=True)
        number = int(hashlib.sha256(packed).hexdigest()[:32], 16) % count
        if number not in found:
            found.append(number)
        counter += 1
    return tuple(sorted(found))


@pytest.mark.parametrize("count", range(1, 12))
def test_every_small_challenge(count: int) -> None:
    for segments in range(1, count):
        for random in range(max(segments - 2, 0), segments + 1):
            challenge = draw(count, segments, random)
            assert challenge.segments == reference(count, segments, random)
            assert (challenge.random, len(challenge.segments)) == (random, segments)
            assert Challenge.parse(challenge.encode()) == challenge
    for segments in (count, count + 1, 1000):
        everything = draw(count, segments)
        assert (everything.segments, everything.random) == (tuple(range(count)), 0)
        assert Challenge.parse(everything.encode()) == everything


def test_first_and_last_are_fixed_in_this_order() -> None:
    for number in range(50):
        nonce = hashlib.sha256(bytes([number])).digest()
        assert draw(1000, 5, 4, nonce).segments[0] == 0
        both = draw(1000, 5, 3, nonce)
        assert (both.segments[0], both.segments[-1]) == (0, 999)
        assert draw(1000, 5, None, nonce) == both
        assert draw(1000, 2, None, nonce).random == 1
        assert draw(1000, 1, None, nonce).random == 1
    assert draw(1000, 2, 0).segments == (0, 999)
    assert draw(1000, 1, 0).segments == (0,)


def test_the_draw_depends_on_nonce_root_and_size_alone() -> None:
    first = draw(1000, 10, 10)
    assert draw(1000, 10, 10) == first
    assert draw(1000, 10, 10, bytes(32)).segments != first.segments
    assert draw(999, 10, 10).segments != first.segments
    other_root = Challenge.draw(ORIGIN, 1001, bytes(32), segments=10, random=10, nonce=NONCE)
    assert other_root.segments != first.segments


def test_every_segment_is_drawn_about_equally_often() -> None:
    count, rounds, each = 20, 2000, 3
    seen: Counter[int] = Counter()
    for number in range(rounds):
        seen.update(draw(count, each, each, hashlib.sha256(number.to_bytes(4, "big")).digest()).segments)
    expected = rounds * each / count
    assert sum(seen.values()) == rounds * each
    # Chi-squared with 19 degrees of freedom exceeds 43.8 once in a thousand; the nonces are fixed, so this is no flake.
    assert sum((seen[number] - expected) ** 2 / expected for number in range(count)) < 43.8


@pytest.mark.parametrize(
    ("size", "segments", "random", "nonce"),
    [
        (1, 1, None, NONCE),
        (0, 1, None, NONCE),
        (101, 0, None, NONCE),
        (101, -1, None, NONCE),
        (101, 1_000_001, None, NONCE),
        (101, 5, 2, NONCE),
        (101, 5, 6, NONCE),
        (101, 5, -1, NONCE),
        (101, 5, 5, NONCE[:31]),
        (101, 5, 5, NONCE + b"\0"),
    ],
)
def test_numbers_that_do_not_go_together(size: int, segments: int, random: int | None, nonce: bytes) -> None:
    with pytest.raises(UsageError):
        Challenge.draw(ORIGIN, size, ROOT, segments=segments, random=random, nonce=nonce)


def test_a_file_has_one_spelling() -> None:
    for challenge in (draw(1000, 8, 6), draw(3, 3)):
        value = canonical.decode(challenge.encode(), limit=2**16, what="challenge")
        assert isinstance(value, tuple)
        same_to_python = (
            (*value[:5], float(challenge.random), value[6]),
            (*value[:6], (False, *challenge.segments[1:])),
            (*value[:6], tuple(map(float, challenge.segments))),
        )
        for wrong in same_to_python:
            assert wrong == value
            with pytest.raises(MalformedError):
                Challenge.parse(canonical.encode(wrong))
    whole = canonical.decode(draw(3, 3).encode(), limit=2**16, what="challenge")
    assert isinstance(whole, tuple)
    for random in (1, 2, 3, 7):
        with pytest.raises(MalformedError):
            Challenge.parse(canonical.encode((*whole[:5], random, whole[6])))


def test_a_file_above_its_cap_is_not_read() -> None:
    with pytest.raises(MalformedError, match="too long"):
        Challenge.parse(bytes(16 * 2**20 + 1))


def test_a_challenge_is_for_one_root() -> None:
    challenge = draw(1000, 8)
    challenge.require(ORIGIN, 1001, ROOT)
    for origin, size, root in ((ORIGIN + "x", 1001, ROOT), (ORIGIN, 1002, ROOT), (ORIGIN, 1001, bytes(32))):
        with pytest.raises(ChallengeError):
            challenge.require(origin, size, root)
