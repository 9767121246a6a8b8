"""The decision on one segment, at the edges of its constants."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from polstore.codec.quantise import FIDELITIES
from polstore.codec.snapshot import Snapshot, Tensor
from polstore.errors import ReplayError
from polverify.noise import Floor, Replayed, Segment
from polverify.tolerance import CAP, FACTOR, GROSS, JUMP, MARGIN, judge
from polverify.verdict import Outcome


def state(value, name="parameter/w", scalars=b"s"):
    return Snapshot((Tensor(name, "float64", (4,), np.array([value, 0, 0, 0], "<f8")),), scalars)


def decide(error, noise, *, update=1.0, comparable=True, unstable=False, loss=None, loss_noise=0.0, scalars=b"s"):
    """Judge one tensor that should have moved by ``update`` and is off by ``error``."""
    record = SimpleNamespace(index=3, start_step=6, end_step=7)
    recorded = None if loss is None else loss
    segment = Segment(record, SimpleNamespace(steps=[SimpleNamespace(loss=recorded)]), state(0.0), None)
    replayed = Replayed(state(update), (1.0,), b"")
    floor = Floor(("a",), {"parameter/w": noise}, (loss_noise,), unstable)
    return judge(segment, state(update + error, scalars=scalars), replayed, floor, comparable=comparable)


def outcome(*arguments, **options):
    try:
        return decide(*arguments, **options).outcome
    except ReplayError:
        return Outcome.FAILED


SMALL = 1e-4  # noise over update: far below the cap, and 8 floors below JUMP


@pytest.mark.parametrize(
    ("error", "noise", "wanted"),
    [
        (0.0, SMALL, Outcome.PASSED),
        (0.99 * JUMP, SMALL, Outcome.PASSED),  # a gate that flips
        (1.01 * JUMP, SMALL, Outcome.UNDECIDED),
        (0.99 * GROSS, SMALL, Outcome.UNDECIDED),
        (1.01 * GROSS, SMALL, Outcome.FAILED),
        (-2.0, SMALL, Outcome.FAILED),
        (math.inf, SMALL, Outcome.FAILED),
        (math.nan, SMALL, Outcome.FAILED),
        (0.99 * CAP, 0.99 * CAP / FACTOR, Outcome.PASSED),
        (1.01 * CAP, 0.99 * CAP / FACTOR, Outcome.UNDECIDED),
        (0.0, 1.01 * CAP / FACTOR, Outcome.UNDECIDED),  # noise hides too much, whatever the error
        (0.99 * MARGIN * 0.1, 0.1, Outcome.UNDECIDED),
        (1.01 * MARGIN * 0.1, 0.1, Outcome.FAILED),  # nor is noise a licence
        (1e9, math.inf, Outcome.UNDECIDED),
    ],
)
def test_the_edges(error, noise, wanted):
    assert outcome(error, noise) is wanted


@pytest.mark.parametrize(("units", "wanted"), [(7, Outcome.PASSED), (9, Outcome.UNDECIDED), (65, Outcome.FAILED)])
def test_a_tensor_that_does_not_move_is_compared_absolutely(units, wanted):
    segment = Segment(SimpleNamespace(index=0, start_step=0, end_step=1), SimpleNamespace(steps=[]), state(1.0), None)
    replayed, floor = Replayed(state(1.0), (), b""), Floor(("a",), {"parameter/w": 0.0}, (), unstable=False)
    try:
        found = judge(segment, state(1.0 + units * 2.0**-52), replayed, floor, comparable=True).outcome
    except ReplayError:
        found = Outcome.FAILED
    assert found is wanted


MOMENTS = (("optimizer/w/exp_avg", 7, 3), ("optimizer/w/exp_avg_sq", 7, 5))


@pytest.mark.parametrize(("name", "bits", "compact"), MOMENTS)
@pytest.mark.parametrize("fidelity", FIDELITIES)
@pytest.mark.parametrize(("steps", "wanted"), [(7, Outcome.PASSED), (9, Outcome.UNDECIDED)])
def test_a_moment_may_be_rounded_the_other_way_in_a_keyframe_too(name, bits, compact, fidelity, steps, wanted):
    """Eight floors are tolerated, and one is a step of the largest moment; without rounding, one unit of float32."""

    def moment(value):
        return Snapshot((Tensor(name, "float32", (4,), np.array([value, 0, 0, 0], "<f4")),), b"s")

    step = 2.0**-23 if fidelity == "lossless" else 2.0 ** -(compact if fidelity == "compact-writeback" else bits)
    record = SimpleNamespace(index=0, start_step=0, end_step=1)
    segment = Segment(record, SimpleNamespace(steps=[]), moment(1.0), None, fidelity=fidelity)
    replayed, floor = Replayed(moment(1.0), (), b""), Floor(("a",), {name: 0.0}, (), unstable=False)
    assert judge(segment, moment(1.0 + steps * step), replayed, floor, comparable=True).outcome is wanted


def test_what_centred_rmsprop_keeps_exactly_has_no_step():
    """Beside ``grad_avg`` the codec rounds no ``square_avg``: what is off by a step of bfloat16 was not rounded so."""
    names = ("optimizer/w/grad_avg", "optimizer/w/square_avg")

    def moments(value):
        tensors = (Tensor(name, "float32", (4,), np.array([value, 0, 0, 0], "<f4")) for name in names)
        return Snapshot(tuple(tensors), b"s")

    record = SimpleNamespace(index=0, start_step=0, end_step=1)
    segment = Segment(record, SimpleNamespace(steps=[]), moments(1.0), None, fidelity="float16-writeback")
    replayed, floor = Replayed(moments(1.0), (), b""), Floor(("a",), dict.fromkeys(names, 0.0), (), unstable=False)
    forged = Snapshot((replayed.end.tensors[0], moments(1.0 + 2.0**-7).tensors[1]), b"s")
    with pytest.raises(ReplayError, match=r"1 tensors differ .* optimizer/w/square_avg"):
        judge(segment, forged, replayed, floor, comparable=True)


@pytest.mark.parametrize(("far", "wanted"), [(0.0, Outcome.FAILED), (1.0, Outcome.UNDECIDED), (1e4, Outcome.UNDECIDED)])
def test_a_base_far_off_makes_no_tolerance(far, wanted):
    """A step of float16 against it may be all that a weight moves; then the weight is bounded, and not compared."""

    def weights(*values):
        return Snapshot((Tensor("parameter/w", "float32", (4,), np.array(values, "<f4")),), b"s")

    record = SimpleNamespace(index=0, start_step=0, end_step=1)
    segment = Segment(record, SimpleNamespace(steps=[]), weights(0, 0, 0, 0), weights(far, 0, 0, 0))
    replayed = Replayed(weights(0, 1e-3, 0, 0), (), b"")
    floor = Floor(("a",), {"parameter/w": 0.0}, (), unstable=False)
    try:
        found = judge(segment, weights(0, 0, 0, 1e-3), replayed, floor, comparable=True).outcome
    except ReplayError:
        found = Outcome.FAILED
    assert found is wanted


def test_where_random_numbers_may_differ_no_error_rejects():
    assert outcome(9.0, SMALL, comparable=False) is Outcome.UNDECIDED
    assert outcome(0.0, SMALL, comparable=False) is Outcome.PASSED


def test_scalars_reject_unless_the_verifiers_own_replays_disagree_on_them():
    assert outcome(0.0, SMALL, scalars=b"t", comparable=False) is Outcome.FAILED
    assert outcome(0.0, SMALL, scalars=b"t", unstable=True) is Outcome.UNDECIDED
    assert outcome(9.0, SMALL, unstable=True) is Outcome.UNDECIDED


@pytest.mark.parametrize(
    ("loss", "noise", "wanted"),
    [
        (None, 0.0, Outcome.PASSED),
        (1.0, 0.0, Outcome.PASSED),
        (1.0 + 7 * 2.0**-23, 0.0, Outcome.PASSED),
        (1.0 + 7e-3, 1e-3, Outcome.PASSED),
        (1.0 + 9e-2, 1e-3, Outcome.UNDECIDED),
        (2.0, 1e-3, Outcome.FAILED),
        (math.nan, 1e-3, Outcome.FAILED),
        (math.nan, math.inf, Outcome.PASSED),
    ],
)
def test_losses(loss, noise, wanted):
    assert outcome(0.0, SMALL, loss=loss, loss_noise=noise) is wanted
