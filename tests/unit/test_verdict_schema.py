"""The schema of verdicts: it describes what is written, and refuses what is not."""

from __future__ import annotations

import copy

import pytest

from tests.schema import check_verdict
from tests.unit import sample_verdicts


@pytest.mark.parametrize("name", ["accepted", "other-class", "rejected"])
def test_samples_are_described(name):
    check_verdict(sample_verdicts.ALL[name]())


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema",), "polverify/verdict/v1"),
        (("decision",), "MAYBE"),
        (("reason",), None),
        (("more",), 1),
        (("claim", "root"), "5D" * 32),
        (("claim", "every"), 0),
        (("claim", "unknown"), 1),
        (("claim", "time", 0, "kind"), "sworn"),
        (("claim", "config", "lr"), [1]),
        (("checks", 0, "outcome"), "ok"),
        (("checks", 0, "number"), True),
        (("segments", 0, "index"), -1),
        (("segments", 0, "tolerance"), {"tensors": [{"name": "a", "epsilon": 1.0}]}),
        (("segments", 0, "epsilon"), {"raw": {"l3": 1.0}, "normalised": {}}),
        (("segments", 0, "evaluation"), {"start": {"accuracy": 1.0}}),
        (("coverage", 0, "opened"), "somebody"),
        (("coverage", 0, "l2"), "many"),
        (("losses", 0), [1]),
        (("power", "one_bad_segment"), 1.5),
        (("power", "detection", 0, "p"), "0.5"),
        (("policy", "sha256"), None),
    ],
    ids=str,
)
def test_what_is_not_described_is_found(place, value):
    verdict = copy.deepcopy(sample_verdicts.accepted())
    at = verdict
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    with pytest.raises(AssertionError):
        check_verdict(verdict)


@pytest.mark.parametrize("name", sorted(sample_verdicts.accepted()))
def test_every_field_is_required(name):
    verdict = sample_verdicts.accepted()
    del verdict[name]
    with pytest.raises(AssertionError, match=name):
        check_verdict(verdict)
