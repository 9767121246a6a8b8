"""Runs forged by a trainer who controls everything but the verifier, each signed with his own valid key.

Only one thing is false in each of them; `test_a_trainer_who_does_not_lie_is_accepted` shows that nothing else is.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from polstore.codec.norms import distances
from polstore.codec.snapshot import Snapshot
from polverify.verdict import Decision, Outcome
from tests.attacks import forge
from tests.attacks.forge import Evidence, Trainer, between, edit, map_weights, tampered

INITIAL, CONTINUITY, DATA, REPLAY, PLAUSIBILITY = 5, 6, 9, 10, 11  # numbers of checks


def parameters(trainer: Trainer) -> list[torch.Tensor]:
    return list(trainer.training.model.parameters())


def weights(snapshot: Snapshot) -> dict[str, Any]:
    return {t.name: t.data for t in snapshot.tensors if t.name.startswith("parameter/")}


def set_weights(trainer: Trainer, target: Snapshot, part: float = 1.0) -> None:
    """Move the live weights a part of the way to those of ``target``."""
    with torch.no_grad():
        for name, parameter in trainer.training.model.named_parameters():
            goal = torch.from_numpy(target.tensor(f"parameter/{name}").data.copy()).reshape(parameter.shape)
            parameter.add_(goal - parameter, alpha=part)


def last(trainer: Trainer) -> Snapshot:
    return trainer.snapshots[trainer.steps]


@pytest.mark.parametrize("fidelity", ["float16-writeback", "lossless"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_trainer_who_does_not_lie_is_accepted(judge, fidelity, optimizer):
    verdict = judge(Trainer(fidelity=fidelity, config={"optimizer": optimizer}).run())
    assert verdict.decision is Decision.ACCEPT
    assert len(verdict.segments) == forge.SEGMENTS


def test_an_honest_recording_is_accepted(judge, honest_of_each_fidelity):
    assert judge(honest_of_each_fidelity).decision is Decision.ACCEPT


# Concatenation: a cheap run from a valid initial state, then a jump to somebody else's weights.


class Jump(Trainer):
    """Jumps to the victim's weights inside a step's time: at the end of segment ``at``, or before step ``step_at``."""

    def aim(self, victim: Trainer, *, at: int | None = None, step_at: int | None = None) -> Jump:
        self.victim, self.at, self.step_at = last(victim), at, step_at
        return self

    def end(self, index: int) -> None:
        if index == self.at:
            set_weights(self, self.victim)

    def train(self, batches: Any, number: int) -> Any:
        if number == self.step_at:
            set_weights(self, self.victim)
        return super().train(batches, number)


@pytest.mark.parametrize("segment", range(forge.SEGMENTS))  # the last one is uneven
def test_concatenation_with_the_jump_at_the_end_of_a_segment(rejects, judge, trained, segment):
    forged = Jump().aim(trained, at=segment).run()
    assert rejects(forged) == REPLAY
    assert f"segment {segment}," in judge(forged).reason


@pytest.mark.parametrize("step", [1, 4, 8, 13])  # 13 is the last step of the last, uneven segment
def test_concatenation_with_the_jump_inside_a_segment(rejects, trained, step):
    assert rejects(Jump().aim(trained, step_at=step).run()) == REPLAY


@pytest.mark.parametrize("segment", range(1, forge.SEGMENTS))
def test_concatenation_with_the_jump_between_two_records(rejects, honest, trained, segment):
    """Each segment is honest in itself, but one starts from other weights than the one before ended with."""
    other = between(trained.snapshots[3], last(trained), 0.5).digest()
    assert rejects(honest.recording(segment, start_state=other)) == CONTINUITY


def test_concatenation_is_seen_in_the_records_alone_when_nothing_near_it_is_opened(rejects, trained):
    forged = Trainer().run(opened=(0,))
    assert rejects(forged.recording(3, start_state=last(trained).digest())) == CONTINUITY


def test_a_jump_cannot_hide_its_size_in_the_record(rejects, trained):
    """With the segment's norms replaced by those of an innocent one, the replay still fails, and before it counts."""
    forged = Jump().aim(trained, at=2).run()
    assert rejects(forged.recording(2, norms=forged.records()[1].norms)) == REPLAY


# Inverse gradient: from the victim's weights backwards.


def walked_back(victim: Trainer, steps: int) -> list[Snapshot]:
    """States whose gradient steps lead to the victim's weights, found backwards by fixed-point iteration."""
    trainer = Trainer(config={"momentum": 0.0}, steps=steps)
    trainer.live.restore(trainer.live.capture(0))
    template = trainer.live.capture(0)
    states = [map_weights(template, lambda name, _: last(victim).tensor(name).data.copy())]
    for number in reversed(range(steps)):
        goal, guess = states[0], states[0]
        for _ in range(6):  # W = goal - (step(W) - W)
            trainer.live.restore(Snapshot(guess.tensors, template.scalars))
            trainer.step(number)
            reached, now = weights(trainer.live.capture(0)), weights(guess)
            guess = map_weights(
                guess, lambda name, _, r=reached, n=now, g=goal: g.tensor(name).data - (r[name] - n[name])
            )
        states.insert(0, guess)
    return states


@pytest.mark.parametrize(("kind", "check"), [("seed", INITIAL), ("distribution", REPLAY)])
def test_inverse_gradient(rejects, trained, kind, check):
    states = walked_back(trained, 6)

    class Backwards(Trainer):
        def begin(self) -> None:
            set_weights(self, states[0])

        def commit(self, index: int, committed: Snapshot) -> Snapshot:
            return map_weights(committed, lambda name, _: states[3 * (index + 1)].tensor(name).data.copy())

    forged = Backwards(config={"momentum": 0.0}, steps=6, initial_kind=kind).run()
    assert rejects(forged) == check


def test_directed_retraining(rejects, trained):
    target = weights(last(trained))

    class Directed(Trainer):
        """The recipe's step with one more loss term, which pulls the weights towards the victim's."""

        def train(self, batches: Any, number: int) -> Any:
            inputs, labels = next(batches)
            loss = torch.nn.functional.cross_entropy(self.training.model(inputs), labels)
            for name, parameter in self.training.model.named_parameters():
                goal = torch.from_numpy(target[f"parameter/{name}"].copy()).reshape(parameter.shape)
                loss = loss + 0.1 * (parameter - goal).square().sum()
            self.training.optimizer.zero_grad()
            loss.backward()
            self.training.optimizer.step()
            self.training.extras["scheduler"].step()
            return loss

    assert rejects(Directed().run()) == REPLAY


# Initial states made from the victim's weights.


def pruned(_fresh: Any, data: Any) -> Any:
    data[np.abs(data) < np.median(np.abs(data))] = 0
    return data


def sparsified(_fresh: Any, data: Any) -> Any:
    data[np.random.default_rng(1).random(data.size) < 0.5] = 0
    return data


def shuffled(_fresh: Any, data: Any) -> Any:
    return np.random.default_rng(1).permutation(data)


def rank_matched(fresh: Any, data: Any) -> Any:
    """The fresh values in the victim's order: distributed as an honest initial state is, value for value."""
    data[np.argsort(data, kind="stable")] = np.sort(fresh)
    return data


@pytest.mark.parametrize("make", [pruned, sparsified, shuffled, rank_matched])
def test_initial_state_made_from_the_victims_weights(rejects, trained, make):
    class Inherited(Trainer):
        def begin(self) -> None:
            fresh = self.live.capture(0)
            made = map_weights(last(trained), lambda name, data: make(fresh.tensor(name).data, data))
            set_weights(self, made)

    assert rejects(Inherited().run()) == INITIAL


# Weights that were interpolated.


class Interpolated(Trainer):
    """Walks from its own initial state to the victim's weights in a straight line, in the segments ``false``."""

    def aim(self, victim: Trainer, false: tuple[int, ...]) -> Interpolated:
        self.victim, self.false = last(victim), false
        return self

    def end(self, index: int) -> None:
        if index in self.false:
            set_weights(self, self.victim, 1 / (forge.SEGMENTS - index))


def test_infinitesimal_update(rejects, trained):
    """The learning rate is so small that no step can be told from none."""
    forged = Interpolated(config={"lr": 1e-12}).aim(trained, tuple(range(forge.SEGMENTS))).run()
    assert rejects(forged) == REPLAY


def test_infinitesimal_movement_under_an_infinitesimal_learning_rate(rejects, trained):
    """The smallest movement that a stored state can hold at all."""

    class Creeping(Trainer):
        def commit(self, index: int, committed: Snapshot) -> Snapshot:
            goal = weights(last(trained))
            return map_weights(committed, lambda name, data: np.nextafter(data, goal[name]))

    assert rejects(Creeping(config={"lr": 1e-12}, fidelity="lossless").run()) == REPLAY


@pytest.mark.parametrize("fidelity", ["float16-writeback", "lossless"])
def test_blindfold(rejects, judge, trained, fidelity):
    """Real training in some segments, straight lines in the others: rejected where, and only where, one looks."""
    for segment in range(forge.SEGMENTS):
        forged = Interpolated(fidelity=fidelity).aim(trained, (1, 3)).run(opened=(segment,))
        if segment in (1, 3):
            assert rejects(forged) == REPLAY
        else:
            assert judge(forged).decision is Decision.ACCEPT
    assert rejects(Interpolated(fidelity=fidelity).aim(trained, (1, 3)).run()) == REPLAY


# Optimizer state.


class ForgedMoments(Trainer):
    """Lets a forged momentum buffer, under a learning rate near 0, carry the weights to the victim's in segment 2."""

    def aim(self, victim: Trainer) -> ForgedMoments:
        self.victim = last(victim)
        return self

    def end(self, index: int) -> None:
        if index != 1:
            return
        optimizer, rate, friction = self.training.optimizer, 1e-8, 0.9
        group = optimizer.param_groups[0]
        group["lr"] = rate
        for name, parameter in self.training.model.named_parameters():
            goal = torch.from_numpy(self.victim.tensor(f"parameter/{name}").data.copy()).reshape(parameter.shape)
            way, state = (parameter - goal).detach(), optimizer.state[parameter]
            if "momentum_buffer" in state:
                state["momentum_buffer"] = way / (rate * (friction + friction**2 + friction**3))
            else:
                state["exp_avg"] = way / rate
                state["exp_avg_sq"] = torch.ones_like(way)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_forged_optimizer_state(rejects, judge, trained, optimizer):
    """All weights up to segment 1 are honest, and segment 2 replays; the state between them was never reached."""
    forged = ForgedMoments(config={"optimizer": optimizer}, fidelity="lossless").aim(trained)
    evidence = forged.run()
    moved = distances(forged.snapshots[6], forged.snapshots[9])
    assert moved.l2 > 0.3 * distances(forged.snapshots[6], last(trained)).l2  # it works: this is a jump
    assert rejects(evidence) == REPLAY
    reason = judge(evidence).reason
    assert "segment 1," in reason
    assert "optimizer/" in reason


def test_forged_momentum_with_every_weight_honest(rejects, judge):
    class OneBuffer(Trainer):
        def end(self, index: int) -> None:
            if index == 2:
                state = self.training.optimizer.state[parameters(self)[0]]
                state["momentum_buffer"] = state["momentum_buffer"] * 2

    evidence = OneBuffer().run(opened=(2,))
    assert rejects(evidence) == REPLAY
    assert "1 tensors differ, the first is optimizer/0.weight/momentum_buffer" in judge(evidence).reason


def test_learning_rate_changed_between_two_segments(rejects, judge):
    class Slower(Trainer):
        def end(self, index: int) -> None:
            if index == 1:
                self.training.optimizer.param_groups[0]["lr"] *= 0.5

    evidence = Slower().run()
    assert rejects(evidence) == REPLAY
    assert "scalars differ" in judge(evidence).reason


def test_step_counter_of_the_scheduler_set_back(rejects):
    class Again(Trainer):
        def end(self, index: int) -> None:
            if index == 1:
                self.training.extras["scheduler"].last_epoch -= 1

    assert rejects(Again().run()) == REPLAY


# Small edits.


@pytest.mark.parametrize("name", ["running_mean", "running_var", "num_batches_tracked"])
def test_buffer_only_edit(rejects, judge, name):
    class Edited(Trainer):
        def end(self, index: int) -> None:
            if index == 1:
                getattr(self.training.model[1], name).add_(1)

    evidence = Edited().run(opened=(1,))
    assert rejects(evidence) == REPLAY
    assert f"1 tensors differ, the first is buffer/1.{name}" in judge(evidence).reason


@pytest.mark.parametrize("fidelity", ["float16-writeback", "lossless"])
@pytest.mark.parametrize("tensor", ["parameter/0.weight", "optimizer/0.weight/momentum_buffer", "buffer/1.running_var"])
@pytest.mark.parametrize("segment", [0, 4])
def test_one_ulp_edit(rejects, judge, fidelity, tensor, segment):
    class Edited(Trainer):
        def commit(self, index: int, committed: Snapshot) -> Snapshot:
            def change(data: Any) -> Any:
                data[0] = np.nextafter(data[0], np.float32(9))
                return data

            return edit(committed, tensor, change) if index == segment else committed

    evidence = Edited(fidelity=fidelity).run(opened=(segment,))
    assert rejects(evidence) == REPLAY
    assert f"1 tensors differ, the first is {tensor}" in judge(evidence).reason


def test_negative_zero_for_zero(rejects):
    """Equal as numbers, not as bits."""

    trainer = Trainer()
    name = "buffer/1.running_mean"
    trainer.begin = lambda: trainer.training.model[1].running_mean.neg_()
    evidence = trainer.run(opened=(0,))
    assert not trainer.snapshots[0].tensor(name).data.any()
    assert rejects(evidence) == INITIAL


# Data.


def centre(inputs: torch.Tensor, _labels: torch.Tensor) -> None:
    inputs[:, 2:4] += 0.5


def only_labels(_inputs: torch.Tensor, labels: torch.Tensor) -> None:
    labels.copy_((labels + 1) % 4)


@pytest.mark.parametrize("change", [centre, only_labels])
def test_data_tampering_undeclared(rejects, change):
    """Trained on changed samples under the root of the genuine ones."""

    trainer = Trainer()
    trainer.dataset = tampered(trainer.dataset, change)
    assert rejects(trainer.run()) == DATA


def test_data_tampering_of_one_sample_is_seen_when_it_is_opened(rejects, judge):
    trainer = Trainer()

    def change(inputs: torch.Tensor, _labels: torch.Tensor) -> None:
        inputs[first, 0] += 1e-6

    first = Trainer().draw(0)[0]
    trainer.dataset = tampered(trainer.dataset, change)
    evidence = trainer.run(opened=(0,))
    assert rejects(evidence) == DATA


@pytest.mark.parametrize(
    "lie",
    [
        lambda indices: indices[::-1],  # another order in the batch
        lambda indices: (indices[0],) * len(indices),  # one sample, again and again
        lambda indices: indices[:-1],  # a sample left out
        lambda indices: (*indices, (indices[0] + 1) % 64),  # an undeclared sample
        lambda indices: ((indices[0] + 1) % 64, *indices[1:]),  # another sample
        lambda indices: (*indices, indices[0]),  # a duplicate
    ],
)
def test_trained_on_other_samples_than_recorded(rejects, lie):
    class Lying(Trainer):
        def used(self, number: int, indices: tuple[int, ...]) -> tuple[int, ...]:
            return lie(indices) if number == 4 else indices

    assert rejects(Lying().run(opened=(1,))) == REPLAY


def test_sample_outside_the_dataset(rejects):
    class Outside(Trainer):
        def draw(self, number: int) -> tuple[int, ...]:
            return (*super().draw(number)[:-1], 64)

        def used(self, number: int, indices: tuple[int, ...]) -> tuple[int, ...]:
            return (*indices[:-1], 0)

    assert rejects(Outside().run()) == DATA


def test_dataset_with_one_more_sample(rejects):
    """The trainer's dataset goes on where the verifier's ends."""
    trainer = Trainer()
    inputs, labels = trainer.dataset.tensors
    trainer.dataset = torch.utils.data.TensorDataset(torch.cat([inputs, inputs[:1]]), torch.cat([labels, labels[:1]]))
    assert rejects(trainer.run()) == DATA


# What the step records say.


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda step: replace(step, loss=step.loss * (1 + 1e-12)), REPLAY),
        (lambda step: replace(step, loss=float("nan")), REPLAY),
        (lambda step: replace(step, hyperparameters=()), REPLAY),
        (lambda step: replace(step, hyperparameters=step.hyperparameters * 2), REPLAY),
        (lambda step: replace(step, microbatches=()), DATA),
        (lambda step: replace(step, microbatches=step.microbatches * 2), DATA),
        (lambda step: replace(step, microbatches=(replace(step.microbatches[0], ranks=((), (0,))),)), DATA),
        (
            lambda step: replace(step, microbatches=(*step.microbatches, type(step.microbatches[0])(50, ((0,),)))),
            REPLAY,
        ),
    ],
)
def test_false_step_record(rejects, change, check):
    """One step's record is false: its loss, hyperparameters, or batches."""

    class Lying(Trainer):
        def step(self, number: int) -> Any:
            step = super().step(number)
            return change(step) if number == 2 else step

    assert rejects(Lying().run(opened=(0,))) == check


def test_learning_rate_in_the_record_is_not_the_one_used(rejects):
    class Lying(Trainer):
        def step(self, number: int) -> Any:
            step = super().step(number)
            group = tuple((name, 0.05 if name == "lr" else value) for name, value in step.hyperparameters[0])
            return replace(step, hyperparameters=(group,))

    assert rejects(Lying().run()) == REPLAY


# The base of a snapshot.


class FarBase(Trainer):
    """Makes one false snapshot, and takes all later ones against it: so far off that rounding leaves no training."""

    def aim(self, victim: Trainer, change: Any) -> FarBase:
        self.goal, self.change = last(victim), change
        return self

    def commit(self, index: int, committed: Snapshot) -> Snapshot:
        if index != 1:
            return committed
        return map_weights(committed, lambda name, data: self.change(data, self.goal.tensor(name).data))

    def base_of(self, start: int) -> int | None:
        return 0 if start < 6 else 6


def one_huge_weight(_data: Any, goal: Any) -> Any:
    return np.where(np.arange(goal.size) == 0, np.float32(2.0**100), goal)


def all_far_off(data: Any, _goal: Any) -> Any:
    return data + np.float32(4096)


@pytest.mark.parametrize("change", [one_huge_weight, all_far_off])
def test_base_so_far_off_that_rounding_hides_the_training(rejects, judge, trained, change):
    """Segments 3 and 4 match bit for bit whatever was trained: the first change ends all in the victim's weights."""
    evidence = FarBase().aim(trained, change).run(opened=(3, 4))
    verdict = judge(evidence)
    assert verdict.decision is Decision.INCONCLUSIVE, verdict.reason
    assert re.match(r"check 10 \(replay\): segment 3: rounding against its base moved the weights", verdict.reason)
    assert (verdict.power.drawn, verdict.power.steps_replayed) == (0, 0)
    small = replace(evidence.records()[1].norms, l1=0.1, l2=0.1, linf=0.1)
    assert rejects(evidence.recording(1, norms=small).recording(2, norms=small)) == PLAUSIBILITY
    assert rejects(FarBase().aim(trained, change).run(opened=(1,))) == REPLAY


# Records and norms.


def test_false_norms(rejects, honest):
    for name, value in (("l1", 0.0), ("l2", 1e9), ("linf", float("nan")), ("cos", float("inf"))):
        norms = replace(honest.records()[2].norms, **{name: value})
        assert rejects(honest.recording(2, norms=norms)) == PLAUSIBILITY


def test_norms_are_not_false_by_a_part_of_a_larger_one(rejects):
    """l1 grows with the number of weights; a billionth of it is no measure for the other distances."""
    change = Trainer(config={"hidden": 5000, "lr": 3.0})
    evidence = change.run(opened=(2,))
    norms = evidence.records()[2].norms
    for name in ("linf", "cos"):
        off = norms.l1 * 9e-10
        assert off > 1e-8
        false = replace(norms, **{name: getattr(norms, name) + off})
        assert rejects(evidence.recording(2, norms=false)) == PLAUSIBILITY


def test_nan_weights_are_no_match(rejects):
    """NaN compares as false with everything, so "not greater than δ" must never be what is asked."""

    class Broken(Trainer):
        def end(self, index: int) -> None:
            if index == 2:
                with torch.no_grad():
                    parameters(self)[0].fill_(self.value)

    for value in (float("nan"), float("inf")):
        trainer = Broken()
        trainer.value = value
        assert rejects(trainer.run(opened=(2,))) == REPLAY


def test_another_environment_class_is_never_accepted(judge, honest):
    """A segment that claims to come from a machine like no other cannot be replayed, so nothing is said of it."""
    record = honest.records()[2]
    strange = replace(record.environment, device_name="Elsewhere 9000")
    verdict = judge(honest.recording(2, environment=strange))
    assert verdict.decision is Decision.INCONCLUSIVE
    assert [result.outcome for result in verdict.segments].count(Outcome.UNDECIDED) == 1


def test_a_fault_elsewhere_beats_a_strange_environment(rejects, trained):
    forged = Jump().aim(trained, at=3).run()
    strange = replace(forged.records()[0].environment, device_name="Elsewhere 9000")
    assert rejects(forged.recording(1, environment=strange)) == REPLAY


def test_evidence_of_the_helpers_holds_together(judge):
    """Signing anew without a change gives a proof that is still good: the edits above are what is caught."""
    forged = Trainer().run()
    assert judge(forged.declaring(extensions=())).decision is Decision.ACCEPT
    assert isinstance(forged, Evidence)
