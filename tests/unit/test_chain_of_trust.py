"""What a chain of verdicts is worth, against plain enumeration of all draws."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from polstore.errors import CallerError, UsageError
from polverify.chain import OwnVerdict, any_caught, drawn_for, every_caught, share_of_each
from polverify.power import caught
from polverify.verdict import Decision

RUNS = [(5, 1, 2), (6, 2, 3), (4, 1, 1)]  # (segments, forged, drawn)


def draws(segments, forged, drawn):
    """Every draw, as whether it finds one of the forged segments, which are the first ones."""
    return [min(chosen) < forged for chosen in combinations(range(segments), drawn)]


def share(outcomes, what):
    return sum(map(what, outcomes)) / len(outcomes)


@pytest.mark.parametrize("runs", [RUNS[:1], RUNS[:2], RUNS])
def test_product_and_union_are_those_of_enumeration(runs):
    outcomes = list(product(*(draws(*run) for run in runs)))
    parts = [caught(*run) for run in runs]
    assert every_caught(parts) == pytest.approx(share(outcomes, all))
    assert any_caught(parts) == pytest.approx(share(outcomes, any))


@pytest.mark.parametrize("place", range(len(RUNS)))
def test_one_forged_run_is_caught_no_worse_in_a_longer_chain(place):
    """Only the run that is forged counts: the honest ones are accepted whatever is drawn."""
    runs = [
        (segments, forged if number == place else 0, drawn) for number, (segments, forged, drawn) in enumerate(RUNS)
    ]
    outcomes = list(product(*(draws(*run) for run in runs)))
    assert share(outcomes, any) == pytest.approx(caught(*RUNS[place]))


@pytest.mark.parametrize("population", [1, 2, 7, 20])
@pytest.mark.parametrize("confidence", [0.2, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_drawn_for_is_the_fewest(population, confidence):
    for forged in range(1, population + 1):
        expected = next(n for n in range(population + 1) if caught(population, forged, n) >= confidence)
        assert drawn_for(population, forged, confidence) == expected


def test_segments_for_a_chain_keep_its_confidence():
    for length in (1, 2, 3, 10):
        each = share_of_each(0.99, length)
        drawn = drawn_for(1000, 50, each)
        assert every_caught([caught(1000, 50, drawn)] * length) >= 0.99
        assert every_caught([caught(1000, 50, drawn - 1)] * length) < 0.99


def test_numbers_that_make_no_sense():
    for arguments in ((5, 0, 0.9), (5, 6, 0.9), (5, 1, 0.0), (5, 1, 1.1)):
        with pytest.raises(UsageError):
            drawn_for(*arguments)


def verdict(**changes):
    return {
        "schema": "polverify/verdict/v2",
        "decision": "ACCEPT",
        "claim": {"origin": "o/r", "size": 11, "root": "00", "segments": 10},
        "power": {"segments": 10, "drawn": 3, "population": 8},
    } | changes


def test_verdict_with_and_without_power():
    own = OwnVerdict.from_json(verdict(), "v")
    assert (own.decision, own.drawn, own.population) == (Decision.ACCEPT, 3, 8)
    assert own.against(1) == pytest.approx(3 / 8)
    assert own.against(9) == 1.0
    assert OwnVerdict.from_json(verdict(power=None), "v").against(1) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": "polverify/chain/v1"},
        {"decision": "MAYBE"},
        {"claim": {}},
        {"claim": None},
        {"power": {"drawn": 9, "population": 8}},
        {"power": {"drawn": -1}},
        {"power": {"drawn": "many"}},
        {"power": {"drawn": float("inf")}},
        {"policy": 1},
    ],
)
def test_what_is_no_verdict(wrong):
    with pytest.raises(CallerError, match="no verdict"):
        OwnVerdict.from_json(verdict(**wrong), "v")
    with pytest.raises(CallerError, match="no verdict"):
        OwnVerdict.from_json([], "v")
