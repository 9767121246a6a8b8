"""Forged runs that claim another environment class, and so a tolerance: none is accepted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from polstore.codec.live.environment import detect
from polverify.verdict import Decision
from tests.attacks.elsewhere import RECIPE, THREADS, Elsewhere
from tests.attacks.forge import Trainer, edit, map_weights

if TYPE_CHECKING:
    from polstore.codec.snapshot import Snapshot

SHORT = {"steps": 6, "every": 2}
CONV = {"kind": "conv"}


def tolerance(verdict: Any, index: int) -> dict[str, Any]:
    return verdict.segments[index].measured["tolerance"]


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    return dict(trainer.training.model.named_parameters())


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


class HugeMoment(ForgedState):
    """Hides, from the end of segment 0 on, all moments of a tensor behind one that decays, and so forges those of 1."""

    def end(self, index: int) -> None:
        for name, parameter in parameters(self).items():
            state = self.training.optimizer.state[parameter]
            first, second = state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
            if index == 0:
                first[0], second[0] = 1e6, 1e18  # moves its weight by a thousandth of the learning rate
            elif index == 1:
                goal = torch.from_numpy(self.goal.tensor(f"parameter/{name}").data.copy())
                first[1:] = ((parameter.detach().view(-1) - goal) / self.config["lr"] / 5)[1:]
                second[1:] = 1e-2


def test_one_huge_moment_hides_the_others_of_its_tensor(tolerant):
    """A limit, not a feat: distances are those of whole tensors. The verdict says so; drawing 0 ends it."""
    options: dict[str, Any] = {"config": {"optimizer": "adam", "lr": 1e-3}, "fidelity": "lossless"} | SHORT
    aim = Elsewhere(**options)
    aim.run()
    goal = map_weights(aim.snapshots[6], lambda _name, data: -data)

    def forged(*opened: int) -> Any:
        trainer = HugeMoment(**options)
        trainer.goal = goal
        verdict = tolerant(trainer.run(opened))
        start, end = (trainer.snapshots[step].tensor("parameter/0.weight").data for step in (4, 6))
        assert np.abs(end - start).max() > 50 * options["config"]["lr"]  # it works: two steps of Adam move 2e-3
        return verdict

    verdict = forged(1, 2)
    assert verdict.decision is Decision.ACCEPT, verdict.reason
    assert any("one huge value in a tensor makes that large" in warning for warning in verdict.warnings)
    assert forged(0, 1, 2).decision is Decision.REJECT


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


@pytest.mark.parametrize(
    ("part", "wanted"), [(1.0, Decision.ACCEPT), (0.9, Decision.INCONCLUSIVE), (0.1, Decision.REJECT)]
)
def test_false_losses_beside_the_very_same_states(tolerant, part, wanted):
    """A class that differs in name only leads to equal digests. Those say nothing of the losses."""

    class Boastful(Trainer):
        def train(self, batches: Any, number: int) -> Any:
            return super().train(batches, number) * part

    environment = replace(detect("cpu"), threads=THREADS)
    verdict = tolerant(Boastful(recipe_file=RECIPE, environment=environment, fidelity="lossless", **SHORT).run())
    assert verdict.decision is wanted, verdict.reason
    if wanted is Decision.ACCEPT:
        assert {segment.detail for segment in verdict.segments} == {"state digests are equal"}
    else:
        assert "loss" in verdict.reason
