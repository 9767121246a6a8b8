"""Loops of the user's own, under `polstore.record`: what they may do around a step, and what is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import polstore
from polstore.errors import TrainingError, UsageError
from polstore.reader import open_archive
from tests.replay.harness import SEED, Bench
from tests.replay.recipes import loop


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, "loop.py")


def start(bench, run="r", *, every=4, loader=True, training=None, resume=False, **config):
    if training is None:
        polstore.seed_initial(SEED)
        training = loop.build("cpu", **config)
    recorder = polstore.record(
        training.model,
        training.optimizer,
        training.loader if loader else None,
        every=every,
        store=bench.store,
        run=run,
        extras=training.extras,
        recipe=bench.recipe,
        config=config,
        seed=SEED,
        initial="seed",
        dataset=None if loader else training.loader.dataset,
        resume=resume,
    )
    return training, recorder


def evaluate(training):
    """Look at the model as evaluations do, and draw random numbers meanwhile."""
    training.model.eval()
    with torch.no_grad():
        training.model(torch.randn(5, 6))
    random.random(), np.random.rand()
    training.model.train()


def steps_of(bench, run="r"):
    with open_archive(bench.store) as archive:
        found = archive.run(run)
        return [step for index in range(len(found.segments)) for step in found.steps(index).steps]


def test_a_loop_over_epochs_with_a_scheduler_and_evaluations_is_accepted(bench):
    training, recorder = start(bench, epochs=True)
    with recorder:
        for _ in range(recorder.epoch, 3):
            for batch in training.loader:
                loss = loop.train_on(training, batch)
                loop.update(training)
                recorder.loss(loss)
            training.extras["scheduler"].step()
            evaluate(training)
    steps = steps_of(bench)
    assert len(steps) == 18
    assert all(step.loss is not None for step in steps)
    bench.require_accepted()


def test_the_loss_may_be_told_before_the_optimizer_steps(bench):
    training, recorder = start(bench)
    with recorder:
        for batch in training.loader:
            loss = loop.train_on(training, batch)
            recorder.loss(loss.item())
            loop.update(training)
    assert [step.loss for step in steps_of(bench)] == pytest.approx([0.7] * 6, abs=0.4)
    bench.require_accepted()


def test_a_false_loss_is_found(bench):
    training, recorder = start(bench)
    with recorder:
        for batch in training.loader:
            recorder.loss(loop.train_on(training, batch).item() / 2)
            loop.update(training)
    assert "loss" in bench.verdict().reason


def test_leaving_a_pass_right_after_a_batch_was_fetched_is_accepted(bench):
    training, recorder = start(bench)
    with recorder:
        for _ in range(4):
            for number, batch in enumerate(training.loader):
                if number == 3:
                    break
                loop.train_on(training, batch)
                loop.update(training)
            evaluate(training)
    steps = steps_of(bench)
    assert [len(step.microbatches) for step in steps] == [1] * 12
    bench.require_accepted()


def test_looking_at_the_training_data_between_passes_is_accepted(bench):
    training, recorder = start(bench)
    with recorder:
        for _ in range(2):
            for batch in training.loader:
                loop.train_on(training, batch)
                loop.update(training)
            training.model.eval()
            with torch.no_grad():
                for inputs, _ in training.loader:
                    training.model(inputs)
            training.model.train()
    assert [len(step.microbatches) for step in steps_of(bench)] == [1] * 12
    bench.require_accepted()


def test_steps_that_a_gradient_scaler_skips_are_steps(bench):
    training, recorder = start(bench, scaler=True, every=2)
    with recorder:
        for batch in training.loader:
            loop.train_on(training, batch)
            loop.update(training)
    steps = steps_of(bench)
    assert [len(step.microbatches) for step in steps] == [1] * 6
    assert {bool(step.hyperparameters) for step in steps} == {True, False}
    assert "step" not in vars(training.extras["scaler"])
    bench.require_accepted()


def test_accumulated_gradients_are_one_step(bench):
    training, recorder = start(bench, accumulate=3)
    with recorder:
        for _ in range(2):
            for number, batch in enumerate(training.loader, 1):
                loop.train_on(training, batch)
                if number % 3 == 0:
                    loop.update(training)
    assert [len(step.microbatches) for step in steps_of(bench)] == [3] * 4
    bench.require_accepted()


def test_a_loop_that_ends_inside_a_step_says_so_and_ends_at_its_last_snapshot(bench):
    training, recorder = start(bench, accumulate=2, every=1)

    def train():
        with recorder:
            for number, batch in enumerate(training.loader, 1):
                loop.train_on(training, batch)
                if number % 2 == 0:
                    loop.update(training)
                if number == 5:
                    break

    with pytest.raises(TrainingError, match="inside a step"):
        train()
    assert len(steps_of(bench)) == 2
    bench.require_accepted()


def test_explicit_steps_without_a_loader_are_accepted(bench):
    training, recorder = start(bench, loader=False)
    dataset = training.loader.dataset
    order = random.Random(1)
    with recorder:
        for _ in range(10):
            indices = order.sample(range(46), 7)
            recorder.step(indices)
            loss = loop.train_on(training, dataset[indices])
            recorder.loss(loss)
            loop.update(training)
        assert recorder.steps_done == 9  # the last one ends with the block
    assert len(steps_of(bench)) == 10
    bench.require_accepted()


@pytest.mark.parametrize("indices", [[], [46], [-1], [3, 99]])
def test_explicit_steps_on_samples_that_there_are_not_are_refused(bench, indices):
    _, recorder = start(bench, loader=False)
    with pytest.raises(TrainingError, match="samples of a batch"), recorder:
        recorder.step(indices)


def test_explicit_steps_beside_a_loader_are_refused(bench):
    _, recorder = start(bench)
    with pytest.raises(UsageError, match="without a loader"), recorder:
        recorder.step([1])


def test_stale_gradients_do_not_matter(bench):
    """A replay starts a segment without gradients, whatever stood in them when it was recorded."""
    polstore.seed_initial(SEED)
    training = loop.build("cpu")
    for parameter in training.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    _, recorder = start(bench, training=training, every=1)
    with recorder:
        for batch in training.loader:
            loop.train_on(training, batch)
            loop.update(training)
            for parameter in training.model.parameters():
                parameter.grad = torch.ones_like(parameter)
    bench.require_accepted()


def test_channels_last_and_strided_parameters_are_accepted(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(CONVOLUTION)
    bench = Bench(tmp_path)
    bench.recipe = recipe
    bench.record(every=2, steps=7)
    bench.require_accepted()


CONVOLUTION = """
import torch, polstore
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Strided(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(40, 6).t())
    def forward(self, inputs):
        return inputs.flatten(1)[:, :40] @ self.weight.t()

def build(device):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 2), Strided())
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(20, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(images), batch_size=4, shuffle=True)
    return polstore.Training(model, torch.optim.AdamW(model.parameters(), 0.01), loader)

def step(training, batches):
    images = next(batches)[0].to(memory_format=torch.channels_last)
    loss = training.model(images).square().mean()
    training.optimizer.zero_grad()
    loss.backward()
    norms = [s["exp_avg"].sum() for s in training.optimizer.state.values()]  # depends on the layout in memory
    for parameter, norm in zip(training.model.parameters(), norms):
        parameter.grad.mul_(1 + norm)
    training.optimizer.step()
    return loss
"""


def test_a_recipe_may_change_the_state_before_it_takes_a_batch(tmp_path):
    bench = Bench(tmp_path, "unfreezing.py")
    whole = bench.record(every=2, steps=7)
    bench.require_accepted()
    bench.record("again", every=2, steps=7, stop=3)
    assert bench.record("again", every=2, steps=7, resume=True) == whole


def test_a_run_without_a_recipe_warns(bench):
    polstore.seed_initial(SEED)
    training = loop.build("cpu")
    with pytest.warns(UserWarning, match="nobody can replay it"):
        recorder = polstore.record(
            training.model,
            training.optimizer,
            training.loader,
            every=2,
            store=bench.store,
            run="r",
            extras=training.extras,
        )
    with recorder:
        pass


def test_environment_changes_inside_a_segment_are_refused_and_before_it_are_taken(bench):
    before = torch.get_num_threads()
    training, recorder = start(bench, every=2)

    def train():
        with recorder:
            torch.set_num_threads(1)
            for number, batch in enumerate(training.loader):
                loop.train_on(training, batch)
                loop.update(training)
                if number == 2:
                    torch.set_num_threads(2)

    try:
        with pytest.raises(TrainingError, match="environment class changed"):
            train()
    finally:
        torch.set_num_threads(before)
    assert len(steps_of(bench)) == 2
    bench.require_accepted()


def test_sampler_generators_of_the_users_own_are_keyed_too(bench):
    orders = []
    for state in (1, 2):
        polstore.seed_initial(SEED)
        training = loop.build("cpu")
        training.loader = DataLoader(
            training.loader.dataset, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(state)
        )
        _, recorder = start(bench, f"r{state}", training=training)
        with recorder:
            for batch in training.loader:
                loop.train_on(training, batch)
                loop.update(training)
        orders.append([step.microbatches for step in steps_of(bench, f"r{state}")])
    assert orders[0] == orders[1]


def test_autocast_around_the_whole_loop_is_no_change_of_environment(bench):
    training, recorder = start(bench, every=2)
    with recorder, torch.autocast("cpu", dtype=torch.bfloat16):
        for batch in training.loader:
            loop.train_on(training, batch)
            loop.update(training)
    assert len(steps_of(bench)) == 6


def test_a_dataset_that_is_a_tensor_dataset_is_left_as_it_was(bench):
    training, recorder = start(bench)
    with recorder:
        for batch in training.loader:
            loop.train_on(training, batch)
            loop.update(training)
    assert type(training.loader.dataset) is TensorDataset
    assert len(list(training.loader)) == 6
    assert steps_of(bench)[-1].microbatches[0].number == 5
