"""Runs of another environment class: honest ones must not be rejected, forged ones not accepted, and where noise hides
the difference the verdict has to say so."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from polstore.recording import run_seed
from polverify.distance import Criterion
from polverify.verdict import Decision, Outcome
from tests.attacks import forge
from tests.attacks.elsewhere import RECIPE, Elsewhere
from tests.attacks.forge import edit, map_weights

if TYPE_CHECKING:
    from polstore.codec.snapshot import Snapshot

SHORT = {"steps": 6, "every": 2}
CONV = {"kind": "conv"}


@pytest.fixture(autouse=True)
def _left_as_it_was():
    """A verifier enters the recorded class; the next test is to begin in this machine's own."""
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    yield
    torch.set_num_threads(threads)
    torch.backends.mkldnn.set_flags(onednn)


@pytest.fixture
def tolerant(judge):
    def judged(evidence: Any, **wishes: Any) -> Any:
        return judge(evidence, recipe=RECIPE, **({"tolerant": True} | wishes))

    return judged


def tolerance(verdict: Any, index: int) -> dict[str, Any]:
    return verdict.segments[index].measured["tolerance"]


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    return dict(trainer.training.model.named_parameters())


# Honest.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("fidelity", ["float16-writeback", "lossless"])
def test_honest_run_of_another_class_is_not_rejected(tolerant, monkeypatch, optimizer, fidelity, seed):
    monkeypatch.setattr(forge, "SEED", run_seed(40 + seed))
    config = CONV | {"optimizer": optimizer, "lr": 0.05 if optimizer == "sgd" else 1e-3}
    verdict = tolerant(Elsewhere(config=config, fidelity=fidelity, **SHORT).run())
    assert verdict.decision is not Decision.REJECT, verdict.reason
    # The replays really differ, so that it was the tolerance that decided.
    assert all(any(segment.measured["epsilon"]["raw"].values()) for segment in verdict.segments)


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


def test_honest_run_under_bfloat16_autocast_is_not_rejected(tolerant):
    for config in ({"kind": "norm"}, {"kind": "norm", "optimizer": "adam", "lr": 1e-3}):
        verdict = tolerant(Elsewhere(config=config | {"autocast": True}, fidelity="lossless", **SHORT).run())
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


# Forged.


class ForgedState(Elsewhere):
    """Puts the optimizer's state, at the end of segment 0, where a tiny learning rate carries the weights to a goal."""

    goal: Snapshot

    def end(self, index: int) -> None:
        if index != 0:
            return
        optimizer, rate, friction = self.training.optimizer, self.config["lr"], 0.9
        for name, parameter in parameters(self).items():
            goal = torch.from_numpy(self.goal.tensor(f"parameter/{name}").data.copy()).reshape(parameter.shape)
            way, state = (parameter - goal).detach(), optimizer.state[parameter]
            if "momentum_buffer" in state:
                state["momentum_buffer"] = way / (rate * (friction + friction**2))
            else:
                state["exp_avg"] = way / rate
                state["exp_avg_sq"] = torch.ones_like(way)


@pytest.fixture(scope="module")
def victim() -> Snapshot:
    trainer = Elsewhere(config=CONV | {"lr": 0.3}, fidelity="lossless", **SHORT)
    trainer.run()
    return trainer.snapshots[SHORT["steps"]]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_optimizer_state_forgery_in_another_class(tolerant, victim, optimizer):
    """Learning rate 1e-8 and a forged momentum: the paper's distances see nothing of it in segment 0."""
    forged = ForgedState(config=CONV | {"optimizer": optimizer, "lr": 1e-8}, fidelity="lossless", **SHORT)
    forged.goal = victim
    verdict = tolerant(forged.run())
    assert verdict.decision is Decision.REJECT, verdict.reason
    assert "segment 0," in verdict.reason
    assert "optimizer/" in verdict.reason
    start, end = forged.snapshots[2], forged.snapshots[4]
    moved = [np.abs(end.tensor(n).data - start.tensor(n).data).max() for n in start.names if n.startswith("parameter/")]
    assert max(moved) > 0.05  # it works: segment 1 jumps, and replays


def test_buffer_only_edit_in_another_class(tolerant):
    class Edited(Elsewhere):
        def commit(self, index: int, committed: Snapshot) -> Snapshot:
            return edit(committed, "buffer/1.running_mean", lambda data: data + 1) if index == 1 else committed

    verdict = tolerant(Edited(config=CONV, fidelity="lossless", **SHORT).run(opened=(1,)))
    assert verdict.decision is Decision.REJECT
    assert "buffer/1.running_mean" in verdict.reason


def test_edited_counter_in_another_class_is_not_accepted(tolerant):
    class Edited(Elsewhere):
        def commit(self, index: int, committed: Snapshot) -> Snapshot:
            return edit(committed, "buffer/1.num_batches_tracked", lambda data: data + 1) if index == 1 else committed

    verdict = tolerant(Edited(config=CONV, fidelity="lossless", **SHORT).run(opened=(1,)))
    assert verdict.decision is Decision.INCONCLUSIVE
    assert "num_batches_tracked" in verdict.reason


class Infinitesimal(Elsewhere):
    """Walks to the victim's weights in equal parts, with a learning rate at which real steps hide under any δ."""

    goal: Snapshot

    def end(self, index: int) -> None:
        left = len(range(0, self.steps, self.every)) - index
        with torch.no_grad():
            for name, parameter in parameters(self).items():
                goal = torch.from_numpy(self.goal.tensor(f"parameter/{name}").data.copy()).reshape(parameter.shape)
                parameter.add_((goal - parameter) / left)


@pytest.mark.parametrize("rate", [1e-5, 1e-8, 1e-12])
def test_infinitesimal_update_in_another_class(tolerant, victim, rate):
    forged = Infinitesimal(config=CONV | {"lr": rate}, fidelity="lossless", **SHORT)
    forged.goal = victim
    verdict = tolerant(forged.run())
    assert verdict.decision is Decision.REJECT, verdict.reason
    assert "parameter/" in verdict.reason


def test_infinitesimal_update_of_a_float16_run(tolerant, victim):
    forged = Infinitesimal(config=CONV | {"lr": 1e-8}, fidelity="float16", **SHORT)
    forged.goal, forged.environment = victim, None
    assert tolerant(forged.run()).decision is Decision.REJECT


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_no_match(tolerant, value):
    class Broken(Elsewhere):
        def commit(self, index: int, committed: Snapshot) -> Snapshot:
            return map_weights(committed, lambda _, data: np.full_like(data, value)) if index == 1 else committed

    verdict = tolerant(Broken(config=CONV, fidelity="lossless", **SHORT).run(opened=(1,)))
    assert verdict.decision is Decision.REJECT


def test_small_edit_is_too_much_to_be_accepted(tolerant):
    """A quarter of the update: far outside the noise, yet not so much that nothing else could explain it."""

    class Edited(Elsewhere):
        def commit(self, index: int, committed: Snapshot) -> Snapshot:
            start = self.snapshots_so_far
            name = "parameter/3.weight"
            way = committed.tensor(name).data - start.tensor(name).data
            return edit(committed, name, lambda data: data + np.float32(0.25) * way)

        def begin(self) -> None:
            self.snapshots_so_far = self.live.capture(0)

    verdict = tolerant(Edited(config=CONV, fidelity="lossless", steps=2, every=2).run())
    assert verdict.decision is Decision.INCONCLUSIVE
    assert "parameter/3.weight is off by 0.25 of its update" in verdict.reason


def test_learning_rate_must_be_equal_in_another_class(tolerant):
    class Slower(Elsewhere):
        def end(self, index: int) -> None:
            if index == 1:
                self.training.optimizer.param_groups[0]["lr"] *= 0.999

    verdict = tolerant(Slower(config=CONV, fidelity="lossless", **SHORT).run())
    assert verdict.decision is Decision.REJECT
    assert "scalars" in verdict.reason


def test_hyperparameters_of_a_step_must_be_equal_in_another_class(tolerant):
    class Faster(Elsewhere):
        def train(self, batches: Any, number: int) -> Any:
            if number == 1:
                self.training.optimizer.param_groups[0]["lr"] = 0.7
            return super().train(batches, number)

    verdict = tolerant(Faster(config=CONV, fidelity="lossless", **SHORT).run())
    assert verdict.decision is Decision.REJECT
    assert "step 1: hyperparameters" in verdict.reason


def test_false_losses_are_not_accepted_in_another_class(tolerant):
    class Boastful(Elsewhere):
        part = 0.9

        def train(self, batches: Any, number: int) -> Any:
            return super().train(batches, number) * self.part

    trainer = Boastful(config=CONV, fidelity="lossless", **SHORT)
    verdict = tolerant(trainer.run())
    assert verdict.decision is Decision.INCONCLUSIVE
    assert "loss" in verdict.reason
    trainer = Boastful(config=CONV, fidelity="lossless", **SHORT)
    trainer.part = 0.1
    assert tolerant(trainer.run()).decision is Decision.REJECT


# What never changes.


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
