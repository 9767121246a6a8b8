"""Honest runs of another environment class: none is rejected, and where noise hides too much the verdict says so.

The same in the class of this machine: a tolerance changes nothing there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from polstore.recording import run_seed
from polverify.distance import Criterion
from polverify.report import render
from polverify.verdict import Decision, Outcome
from tests.attacks import forge
from tests.attacks.elsewhere import RECIPE, Elsewhere
from tests.attacks.forge import edit

if TYPE_CHECKING:
    from polstore.codec.snapshot import Snapshot

SHORT = {"steps": 6, "every": 2}
CONV = {"kind": "conv"}


def tolerance(verdict: Any, index: int) -> dict[str, Any]:
    return verdict.segments[index].measured["tolerance"]


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    return dict(trainer.training.model.named_parameters())


@pytest.mark.parametrize(
    ("fidelity", "seed"), [("float16-writeback", 0), ("lossless", 0), ("lossless", 1), ("lossless", 2)]
)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_honest_run_of_another_class_is_not_rejected(tolerant, monkeypatch, optimizer, fidelity, seed):
    monkeypatch.setattr(forge, "SEED", run_seed(40 + seed))
    config = CONV | {"optimizer": optimizer, "lr": 0.05 if optimizer == "sgd" else 1e-3}
    verdict = tolerant(Elsewhere(config=config, fidelity=fidelity, **SHORT).run())
    assert verdict.decision is not Decision.REJECT, verdict.reason
    # The replays really differ, so that it was the tolerance that decided.
    assert all(any(segment.measured["epsilon"]["raw"].values()) for segment in verdict.segments)


def test_honest_run_on_two_threads_is_not_rejected_on_one(tolerant):
    trainer = Elsewhere(config=CONV, fidelity="lossless", steps=2, every=2, threads=2)
    assert tolerant(trainer.run()).decision is not Decision.REJECT


def test_honest_run_of_another_class_is_accepted_within_tolerance(tolerant):
    verdict = tolerant(Elsewhere(config=CONV, fidelity="lossless", **SHORT).run())
    assert verdict.decision is Decision.ACCEPT, verdict.reason
    assert "within tolerance" in verdict.reason
    assert "(0 bit for bit)" in verdict.reason
    assert any("weaker than bit for bit" in warning for warning in verdict.warnings)
    assert {result.detail.partition(":")[0] for result in verdict.segments} == {"within tolerance"}
    assert tolerance(verdict, 0)["settings"] == ["threads", "onednn", "rounding-1", "rounding-2", "rounding-3"]


def test_without_a_tolerance_another_class_is_not_even_replayed(tolerant):
    verdict = tolerant(Elsewhere(config=CONV, fidelity="lossless", **SHORT).run(), tolerant=False)
    assert verdict.decision is Decision.INCONCLUSIVE
    assert all(not result.measured for result in verdict.segments)


@pytest.mark.parametrize("config", [{"optimizer": "sgd"}, {"optimizer": "adam", "lr": 1e-3}])
def test_honest_run_under_bfloat16_autocast_is_not_rejected(tolerant, config):
    config = {"kind": "norm", "autocast": True} | config
    verdict = tolerant(Elsewhere(config=config, fidelity="lossless", threads=2, **SHORT).run())
    assert verdict.decision is not Decision.REJECT, verdict.reason
    assert any(any(segment.measured["epsilon"]["raw"].values()) for segment in verdict.segments)


def test_convolution_biases_in_front_of_batch_norm_are_bounded(tolerant):
    """Their true gradient is zero, and Adam turns their rounding noise into full-sized updates."""
    config = CONV | {"optimizer": "adam", "lr": 1e-3}
    verdict = tolerant(Elsewhere(config=config, fidelity="lossless", **SHORT).run())
    assert verdict.decision is Decision.ACCEPT, verdict.reason
    bounded = tolerance(verdict, 0)["bounded"]
    assert {"parameter/0.bias", "parameter/3.bias", "parameter/6.bias"} <= set(bounded)
    assert "parameter/0.weight" not in bounded


@pytest.mark.parametrize("schedule", ["zero", "off"])
def test_steps_with_learning_rate_zero_are_compared_absolutely(tolerant, schedule):
    """Nothing moves in most of the segments, or in all, and the relative error would divide by zero."""
    verdict = tolerant(Elsewhere(config=CONV | {"schedule": schedule}, fidelity="lossless", **SHORT).run())
    assert verdict.decision is Decision.ACCEPT, verdict.reason


def test_a_hundred_early_steps_are_inconclusive_and_not_a_guess(tolerant):
    config = CONV | {"lr": 0.1, "batch": 8}
    verdict = tolerant(Elsewhere(config=config, fidelity="lossless", steps=100, every=100).run())
    assert verdict.decision is Decision.INCONCLUSIVE
    assert "noise hides too much" in verdict.reason


def test_other_random_numbers_are_no_forgery(tolerant):
    """A machine of another kind may draw dropout otherwise: the error is gross, and still nobody's fault."""

    class OtherDropout(Elsewhere):
        def train(self, batches: Any, number: int) -> Any:
            torch.manual_seed(number)
            return super().train(batches, number)

    trainer = OtherDropout(config={"kind": "norm", "dropout": 0.5}, fidelity="lossless", **SHORT)
    same_processor = trainer.run()
    assert tolerant(same_processor).decision is Decision.REJECT
    trainer = OtherDropout(config={"kind": "norm", "dropout": 0.5}, fidelity="lossless", **SHORT)
    trainer.environment = replace(trainer.environment, device_name="Elsewhere 9000")
    assert tolerant(trainer.run()).decision is Decision.INCONCLUSIVE


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_honest_float16_run_within_tolerance_of_its_own_rounding(tolerant, optimizer):
    config = {"kind": "norm", "optimizer": optimizer, "lr": 0.05 if optimizer == "sgd" else 1e-3}
    trainer = Elsewhere(config=config, fidelity="float16", **SHORT)
    trainer.environment = None
    verdict = tolerant(trainer.run())
    assert verdict.decision is not Decision.REJECT, verdict.reason
    assert verdict.segments[1].measured["tolerance"]["settings"][:2] == ["start-1", "start-2"]


def test_a_tolerance_changes_nothing_in_the_same_class(tolerant):
    class OneUnit(Elsewhere):
        def commit(self, index: int, committed: Snapshot) -> Snapshot:
            def change(data: Any) -> Any:
                data[0] = np.nextafter(data[0], np.float32(9))
                return data

            return edit(committed, "parameter/0.weight", change) if index == 1 else committed

    def run(kind: type[Elsewhere]) -> Any:
        trainer = kind(config=CONV, fidelity="lossless", **SHORT)
        trainer.environment = None
        return super(Elsewhere, trainer).run(opened=(1,))

    assert tolerant(run(Elsewhere)).decision is Decision.ACCEPT
    verdict = tolerant(run(OneUnit))
    assert verdict.decision is Decision.REJECT
    assert "1 tensors differ, the first is parameter/0.weight" in verdict.reason


def test_the_papers_criterion_only_makes_it_stricter(tolerant):
    honest = Elsewhere(config=CONV, fidelity="lossless", **SHORT).run()
    assert tolerant(honest, criterion=Criterion(1.0)).decision is Decision.ACCEPT
    verdict = tolerant(honest, criterion=Criterion(1e-12))
    assert verdict.decision is Decision.REJECT
    assert "the paper's criterion, raw l2" in verdict.reason
    verdict = tolerant(honest, criterion=Criterion(1e-12, "cos"), d_ref={"cos": 1e-9})
    assert "the paper's criterion, normalised cos" in verdict.reason

    class Forged(Elsewhere):
        def commit(self, index: int, committed: Snapshot) -> Snapshot:
            return (
                edit(committed, "optimizer/0.weight/momentum_buffer", lambda data: data * 9)
                if index == 1
                else committed
            )

    forged = Forged(config=CONV, fidelity="lossless", **SHORT).run(opened=(1,))
    assert tolerant(forged, criterion=Criterion(1e9)).decision is Decision.REJECT


def test_evaluation_of_the_opened_snapshots(tolerant, judge):
    trainer = Elsewhere(config=CONV, fidelity="lossless", **SHORT)
    trainer.environment = None
    evidence = super(Elsewhere, trainer).run()
    verdict = judge(evidence, recipe=RECIPE, evaluate=True)
    assert verdict.decision is Decision.ACCEPT
    values = [result.measured["evaluation"] for result in verdict.segments]
    assert values[0]["end"] == values[1]["start"]
    assert values[0]["start"] != values[0]["end"]
    trainer.live.restore(trainer.snapshots[6])
    assert values[2]["end"] == trainer.recipe.evaluate(trainer.training)
    assert {result.outcome for result in verdict.segments} == {Outcome.PASSED}


def test_power_says_how_many_segments_are_within_tolerance_only(tolerant):
    evidence = Elsewhere(config=CONV, fidelity="lossless", **SHORT).run()
    verdict = tolerant(evidence)
    tolerated = sum(result.tolerated for result in verdict.segments)
    assert verdict.decision is Decision.ACCEPT, verdict.reason
    assert tolerated > 0
    assert verdict.power.tolerated == tolerated
    assert (verdict.power.fixed, verdict.power.steps_replayed) == (3, 6)
    assert any(line.startswith(f"{tolerated} of the replayed segments catch only") for line in verdict.power.lines())
    undecided = tolerant(evidence, tolerant=False)
    assert undecided.decision is Decision.INCONCLUSIVE
    assert (undecided.power.fixed, undecided.power.tolerated, undecided.power.steps_replayed) == (0, 0, 0)


def test_the_report_shows_the_tensors_that_are_nearest_to_their_tolerance(tolerant):
    verdict = tolerant(Elsewhere(config=CONV, fidelity="lossless", **SHORT).run())
    listed = tolerance(verdict, 1)["tensors"]
    assert 0 < len(listed) <= 20
    assert listed[0]["epsilon"] <= listed[0]["bound"]
    parts = [each["epsilon"] / each["bound"] for each in listed if each["epsilon"]]
    assert parts == sorted(parts, reverse=True)
    assert listed[0]["name"] in render(verdict.as_json())
