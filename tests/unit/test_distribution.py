"""The distribution test: how often it wrongs the honest, and what it sees."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from polstore.codec.live.arrays import to_host
from polstore.codec.snapshot import Tensor
from polverify import distribution
from polverify.distribution import FAMILY_LEVEL, MIN_ELEMENTS, Family, Kind, Member, Report, TensorTest, pool, run_tests
from tests.unit.initial_models import honest_model

MODELS = 200


def report(parameters):
    tensors = [to_host(f"parameter/{name}", parameter) for name, parameter in parameters]
    return run_tests(tensors, {tensor.name: tensor.shape for tensor in tensors})


def one(values, shape=None, dtype="float32"):
    data = np.ascontiguousarray(values).ravel()
    (test,) = run_tests([Tensor("parameter/w", dtype, shape or data.shape, data)], {}).tests
    return test


def test_of_200_honest_initial_states_at_most_2_are_rejected():
    failed, uncorrected, p_values = [], 0, []
    for number in range(MODELS):
        model, what = honest_model(number)
        found = report(model.named_parameters())
        own = [test.p_value for test in found.of(Kind.TESTED)]
        assert own, what
        p_values += own
        uncorrected += min(own) < FAMILY_LEVEL
        if found.fails:
            failed.append((number, what, found.smallest))
    assert len(failed) <= 2, failed
    assert uncorrected > 10  # so that the correction is what does it; the paper's uncorrected test rejects 19 %
    assert np.mean(np.array(p_values) < 0.1) < 0.12  # single p-values are what they say


def reference_distance(values, cdf):
    """The definition: the largest gap between two distribution functions, on either side of every element."""
    gaps = []
    for x in values:
        gaps += [abs(np.mean(values <= x) - cdf(x)), abs(np.mean(values < x) - cdf(x))]
    return max(gaps)


@pytest.mark.parametrize("seed", range(3))
def test_distance_is_that_of_the_definition(seed):
    values = np.random.default_rng(seed).normal(size=50)
    member = Member(Family.NORMAL, 1.0)
    expected = reference_distance(values, lambda x: float(member.cdf(np.array([x]))[0]))
    assert distribution._distance(member.cdf(np.sort(values))) == pytest.approx(expected)


@pytest.mark.parametrize(
    "member",
    [
        Member(Family.UNIFORM, 0.3),
        Member(Family.NORMAL, 0.02, 1.0),
        Member(Family.TRUNCATED_2, 0.1),
        Member(Family.TRUNCATED_3, 0.1),
    ],
    ids=str,
)
def test_member_is_the_distribution_that_it_names(member):
    torch.manual_seed(3)
    drawn = torch.empty(200_000, dtype=torch.float64)
    if member.family is Family.UNIFORM:
        drawn.uniform_(-member.scale, member.scale)
    else:
        reach = member.reach if math.isfinite(member.reach) else 9
        nn.init.trunc_normal_(drawn, member.mean, member.scale, member.mean - reach, member.mean + reach)
    assert drawn.std().item() == pytest.approx(member.deviation, rel=0.01)
    assert distribution._distance(member.cdf(np.sort(drawn.numpy()))) < 2 / math.sqrt(200_000)


def test_pool_has_pytorchs_formulas():
    shape = (24, 6, 3, 3)
    weight = torch.empty(shape)
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    gain = nn.init.calculate_gain("relu")
    scales = {(member.family, round(member.scale, 9)) for member in pool(shape)}
    for family, scale in (
        (Family.UNIFORM, 1 / math.sqrt(fan_in)),
        (Family.UNIFORM, gain * math.sqrt(3 / fan_out)),
        (Family.UNIFORM, math.sqrt(6 / (fan_in + fan_out))),
        (Family.NORMAL, gain / math.sqrt(fan_in)),
        (Family.NORMAL, gain * math.sqrt(2 / (fan_in + fan_out))),
        (Family.NORMAL, 0.02),
        (Family.TRUNCATED_2, 0.02),
    ):
        assert (family, round(scale, 9)) in scales


def test_bias_follows_the_weight_beside_it():
    torch.manual_seed(0)
    parameters = dict(nn.Linear(7, 400).named_parameters())
    (bias,) = [test for test in report(parameters.items()).tests if test.name == "parameter/bias"]
    assert bias.member == Member(Family.UNIFORM, 1 / math.sqrt(7))
    (alone,) = report([("bias", parameters["bias"])]).tests
    assert alone.p_value < 1e-6


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.zeros(100, "<f4"), Kind.CONSTANT),
        (np.full(100, 0.1, "<f4"), Kind.CONSTANT),
        (np.repeat(np.array([0, 1, 0, 0], "<f4"), 25), Kind.CONSTANT),
        (np.ones(1, "<f4"), Kind.SMALL),
        (np.zeros(0, "<f4"), Kind.SMALL),
        (np.linspace(-1, 1, MIN_ELEMENTS - 1, dtype="<f4"), Kind.SMALL),
        (np.linspace(-1, 1, MIN_ELEMENTS, dtype="<f4"), Kind.TESTED),
        (np.array([0.5, np.nan], "<f4"), Kind.NOT_FINITE),
        (np.array([np.inf] * 50, "<f4"), Kind.NOT_FINITE),
    ],
)
def test_kinds(values, kind):
    assert one(values).kind is kind


def test_complex_numbers_are_not_tested():
    assert one(np.zeros(40, "<u8"), dtype="complex64").kind is Kind.UNTESTABLE


def test_not_finite_fails_whatever_else_there_is():
    assert Report((TensorTest("w", Kind.NOT_FINITE),)).fails
    assert not Report(()).fails


def test_level_is_divided_by_the_tests_made():
    tests = [TensorTest("w", Kind.TESTED, 0.004)] * 2
    assert Report(tuple(tests)).fails
    assert not Report((*tests, TensorTest("v", Kind.TESTED, 0.5))).fails


def test_one_padding_row_is_left_out_and_two_are_not():
    torch.manual_seed(1)
    table = torch.randn(20, 300)
    table[0] = 0
    assert one(table.numpy(), (20, 300)).p_value > 0.01
    table[1] = 0
    assert one(table.numpy(), (20, 300)).p_value < 0.001


def test_long_tensors_are_tested_in_parts(monkeypatch):
    monkeypatch.setattr(distribution, "MAX_ELEMENTS", 1000)
    torch.manual_seed(2)
    values = torch.randn(50, 50).numpy()
    values[20:] = 3 * np.sign(values[20:])  # what is wrong lies at the end only
    tests = run_tests([Tensor("w", "float32", (50, 50), values.ravel())], {}).tests
    assert len(tests) == 3
    assert tests[0].p_value > 0.001
    assert tests[2].p_value == 0


def test_value_beyond_the_range_of_a_uniform_member():
    torch.manual_seed(7)
    values = torch.empty(400, 25).uniform_(-0.2, 0.2)  # 1/sqrt(25)
    assert one(values.numpy(), (400, 25)).p_value > 0.01
    values[3, 4] = 0.21
    found = one(values.numpy(), (400, 25))
    assert found.p_value < 1e-6
