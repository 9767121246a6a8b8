"""The power statement against enumeration and exact fractions, and plans against the smallest number that does."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import pytest

from polstore.errors import UsageError
from polverify import power
from polverify.power import Power, caught, forged_segments, percent, plan

STATEMENT = Power(
    segments=390,
    fixed=2,
    drawn=39,
    population=388,
    top=0,
    audited=False,
    nonce_from="fresh",
    steps_replayed=41,
    steps_trained=390,
    bytes_moved=12_345,
)


@pytest.mark.parametrize("population", range(9))
def test_against_every_draw_of_small_runs(population: int) -> None:
    for drawn in range(population + 1):
        draws = [set(draw) for draw in combinations(range(population), drawn)]
        for forged in range(population + 1):
            hits = sum(not draw.isdisjoint(range(forged)) for draw in draws)
            assert caught(population, forged, drawn) == hits / len(draws)


def test_against_fractions() -> None:
    """One minus the product of (good ones left) / (all left), draw by draw."""
    for population, forged, drawn in ((388, 4, 39), (388, 39, 4), (100_000, 5000, 90), (1000, 1, 999), (50, 50, 1)):
        missed = Fraction(1)
        for before in range(drawn):
            missed *= Fraction(max(population - forged - before, 0), population - before)
        assert caught(population, forged, drawn) == float(1 - missed)


def test_huge_numbers_give_a_lower_bound_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert caught(2**24, 2**20, 10**6) == 1.0
    assert caught(2**24, 1, 10**6) == 10**6 / 2**24
    exact = caught(3000, 40, 30)
    monkeypatch.setattr(power, "EXACT", 10)
    assert exact - 0.01 < caught(3000, 40, 30) < exact
    assert caught(40, 40, 40) == 1.0


@pytest.mark.parametrize(("forged", "drawn"), [(-1, 1), (1, -1), (11, 1), (1, 11)])
def test_numbers_that_do_not_go_together(forged: int, drawn: int) -> None:
    with pytest.raises(UsageError):
        caught(10, forged, drawn)


def test_a_share_is_rounded_up() -> None:
    shares = [forged_segments(390, share) for share in power.SHARES]
    assert shares == [4, 20, 39]
    assert [forged_segments(5, share) for share in power.SHARES] == [1, 1, 1]
    assert forged_segments(100, Fraction(5, 100)) == 5  # not 6, as in floating point


def test_what_a_verdict_says() -> None:
    said = STATEMENT.as_json()
    assert said["one_bad_segment"] == 39 / 388
    assert [each["segments"] for each in said["detection"]] == [4, 20, 39]
    for each in said["detection"]:
        missed = Fraction(math.comb(388 - each["segments"], 39), math.comb(388, 39))
        assert each["p"] == float(1 - missed)
    text = "\n".join(STATEMENT.lines())
    for part in (
        "34.7 % with 1 % forged",
        "10.1 % with one bad segment",
        "39 of 388 drawn",
        "41 of 390 steps",
        "12345",
    ):
        assert part in text


def test_largest_updates_count_only_as_facts() -> None:
    """Without a full audit they add nothing against a forger who writes a small norm for his jump."""
    claimed, audited = replace(STATEMENT, top=1), replace(STATEMENT, top=1, audited=True)
    assert claimed.as_json()["concatenation"] == {
        "top": 1,
        "norms": "claims",
        "by_drawing": 39 / 388,
        "with_top": 39 / 388,
    }
    assert "add nothing" in "\n".join(claimed.lines())
    assert audited.as_json()["concatenation"]["with_top"] == 1.0
    assert audited.as_json()["concatenation"]["norms"] == "facts"
    assert audited.as_json()["detection"] == claimed.as_json()["detection"]  # for nothing but a concatenation
    assert replace(audited, top=0).against_concatenation() == 39 / 388


def test_where_nothing_was_drawn() -> None:
    """Segments that the prover could foresee catch a forger only if he has more forged segments than others."""
    chosen = replace(STATEMENT, drawn=0, fixed=41, population=349)
    assert [each["p"] for each in chosen.as_json()["detection"]] == [0.0, 0.0, 0.0]
    everything = replace(STATEMENT, drawn=0, fixed=390, population=0)
    assert [each["p"] for each in everything.as_json()["detection"]] == [1.0, 1.0, 1.0]
    assert everything.against(1) == 1.0
    assert replace(STATEMENT, drawn=388).against(1) == 1.0
    assert replace(STATEMENT, segments=10, fixed=9, drawn=0, population=1).against(2) == 1.0


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 10, 57, 390])
@pytest.mark.parametrize("share", [Fraction(1, 1000), Fraction(1, 20), Fraction(1, 2), Fraction(1)])
@pytest.mark.parametrize("confidence", [Fraction(1, 2), Fraction(99, 100), Fraction(1)])
def test_a_plan_is_the_smallest_that_does(segments: int, share: Fraction, confidence: Fraction) -> None:
    found = plan(segments, share, confidence)
    population, forged = max(segments - 2, 0), forged_segments(segments, share)
    enough = [
        drawn
        for drawn in range(population + 1)
        if forged > population
        or Fraction(math.comb(population - forged, drawn), math.comb(population, drawn)) <= 1 - confidence
    ]
    assert found.drawn == enough[0]
    assert found.opened == found.drawn + min(segments, 2)
    assert found.p >= float(confidence)


def test_certainty_takes_one_more_than_the_sound_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """No binomial is needed for that; of millions of segments it would take minutes."""
    monkeypatch.setattr(math, "comb", None)
    found = plan(2**24, Fraction(3, 10), Fraction(1))
    assert (found.drawn, found.p) == (2**24 - 2 - found.forged + 1, 1.0)
    assert caught(2**24, 2**20, 2**24 - 2**20 + 1) == 1.0


def test_plans_of_long_runs_are_quick_and_cost_something() -> None:
    found = plan(2**24, Fraction(1, 20), Fraction(99, 100))
    assert found.drawn == 90
    assert plan(10**6, Fraction(1, 10**6), Fraction(99, 100)).drawn == math.ceil(0.99 * (10**6 - 2))
    cost = plan(390, Fraction(1, 20), Fraction(99, 100)).as_json(100, 0.5, 1000)
    assert cost["cost"] == {
        "share_of_training": cost["opened"] / 390,
        "steps": 100 * cost["opened"],
        "seconds": 50.0 * cost["opened"],
        "bytes": 1000 * cost["opened"],
    }
    assert plan(390, Fraction(1, 20), Fraction(99, 100)).as_json(None, None, None)["cost"].keys() == {
        "share_of_training"
    }


@pytest.mark.parametrize(
    ("segments", "share", "confidence"),
    [(0, 0.1, 0.9), (9, 0, 0.9), (9, 1.1, 0.9), (9, 0.1, 0), (9, 0.1, 1.1), (9, -1, 1)],
)
def test_plans_that_make_no_sense(segments: int, share: float, confidence: float) -> None:
    with pytest.raises(UsageError):
        plan(segments, Fraction(share), Fraction(confidence))


def test_no_percentage_is_rounded_to_certainty() -> None:
    wanted = {0.0: "0 %", 1.0: "100 %", 0.265: "26.5 %", 0.99999999: "99.99 %", 1e-9: "0.01 %", 0.9951: "99.5 %"}
    assert {part: percent(part) for part in wanted} == wanted
