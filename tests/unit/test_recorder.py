"""The recorder's edges: what it refuses, what it leaves behind, and what it keeps of a loop gone wrong."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import polstore
from polstore.background import Background
from polstore.codec.live.capture import Capture
from polstore.errors import MissingError, TrainingError, UsageError
from polstore.fsck import check_store
from polstore.reader import open_archive
from polstore.recording import run_seed
from polstore.storage.store import open_store

pytestmark = pytest.mark.filterwarnings("ignore:no recipe")


class Loop:
    """A tiny training."""

    def __init__(self, **settings):
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.loader = DataLoader(TensorDataset(torch.randn(12, 3)), batch_size=4, shuffle=True, **settings)

    def record(self, path, run="r", **settings):
        settings = {"every": 2, "seed": 1, **settings}
        return polstore.record(self.model, self.optimizer, self.loader, store=path, run=run, **settings)

    def update(self, batch):
        self.optimizer.zero_grad()
        self.model(batch[0]).square().mean().backward()
        self.optimizer.step()

    def passes(self, count=1):
        for _ in range(count):
            for batch in self.loader:
                self.update(batch)


def snapshots(path, run="r"):
    with open_archive(path) as archive:
        return archive.run(run).snapshots


def hooks(loop):
    optimizer = loop.optimizer
    return (
        len(optimizer._optimizer_step_pre_hooks),
        len(optimizer._optimizer_step_post_hooks),
        len(loop.model._forward_pre_hooks),
        type(loop.loader.dataset),
        type(loop.loader.batch_sampler),
    )


def test_nothing_is_left_behind_and_the_loader_serves_again(tmp_path):
    loop = Loop()
    before = hooks(loop)
    with loop.record(tmp_path) as recorder:
        assert hooks(loop) != before
        loop.passes()
    assert hooks(loop) == before
    assert recorder.steps_done == 3
    loop.passes(2)
    assert recorder.steps_done == 3
    assert snapshots(tmp_path) == [0, 2, 3]


def test_nothing_is_left_behind_by_an_exception(tmp_path):
    loop = Loop()
    before = hooks(loop)
    with pytest.raises(ZeroDivisionError), loop.record(tmp_path):
        raise ZeroDivisionError
    assert hooks(loop) == before
    with loop.record(tmp_path, resume=True):
        loop.passes()
    assert snapshots(tmp_path) == [0, 2, 3]


def test_an_exception_between_the_optimizer_and_the_boundary_costs_that_segment_only(tmp_path):
    loop = Loop()

    def train(recorder):
        with recorder:
            for _ in range(2):
                for batch in loop.loader:
                    loop.update(batch)
                    if recorder.steps_done == 4:
                        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(loop.record(tmp_path))
    assert snapshots(tmp_path) == [0, 2]
    recorder = loop.record(tmp_path, resume=True)
    assert recorder.steps_done == 2
    with recorder:
        loop.passes()  # what is left of the first
    assert snapshots(tmp_path) == [0, 2, 3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_loop_that_goes_on_after_a_snapshot_was_cut_short_is_refused(tmp_path, monkeypatch, error):
    loop, taken = Loop(), []
    whole = Capture.take

    def take(self, *arguments):
        captured = whole(self, *arguments)
        taken.append(captured)
        if len(taken) == 3:
            raise error
        return captured

    monkeypatch.setattr(Capture, "take", take)

    def train():
        with loop.record(tmp_path):
            with contextlib.suppress(error):
                loop.passes(2)
            loop.passes(2)

    with pytest.raises(TrainingError, match="snapshot of step 4 was cut short"):
        train()
    assert snapshots(tmp_path) == [0, 2]
    with loop.record(tmp_path, resume=True):
        loop.passes(2)
    assert snapshots(tmp_path) == [0, 2, 4, 6]
    with open_store(tmp_path) as store:
        assert check_store(store, lambda *_: None).damages == []


@pytest.mark.parametrize("passes", [0, 1, 2])
def test_a_snapshot_that_was_interrupted_before_it_began_is_taken_all_the_same(tmp_path, monkeypatch, passes):
    """A loop that catches the interrupt may go on, or end there; no segment gets longer than declared."""
    loop, waits = Loop(), []
    whole = Background.flush

    def flush(self):
        waits.append(self)
        if len(waits) == 2:
            raise KeyboardInterrupt
        whole(self)

    monkeypatch.setattr(Background, "flush", flush)
    with loop.record(tmp_path):
        with contextlib.suppress(KeyboardInterrupt):
            loop.passes(2)
        loop.passes(passes)
    assert snapshots(tmp_path) == {0: [0, 2, 4], 1: [0, 2, 4, 6, 7], 2: [0, 2, 4, 6, 8, 10]}[passes]
    with open_archive(tmp_path) as archive:
        run = archive.run("r")
        assert [len(run.steps(index).steps) for index in range(len(run.segments))][:2] == [2, 2]


def test_a_recorder_is_used_inside_one_with_block(tmp_path):
    loop = Loop()
    recorder = loop.record(tmp_path)
    for call in (lambda: recorder.loss(1.0), lambda: recorder.step([1]), lambda: recorder.train(None, None, 1, print)):
        with pytest.raises(UsageError, match="not under way"):
            call()
    with recorder:
        loop.passes()
    with pytest.raises(UsageError, match="not under way"):
        recorder.loss(1.0)
    with pytest.raises(UsageError, match="records once"):
        recorder.__enter__()


def test_an_optimizer_that_steps_without_a_batch_is_refused(tmp_path):
    loop = Loop()
    recorder = loop.record(tmp_path)
    with recorder:
        for batch in loop.loader:
            loop.update(batch)
            break
        with pytest.raises(TrainingError, match="without a batch"):
            loop.optimizer.step()


def test_a_recipe_step_without_a_batch_is_refused(tmp_path):
    loop = Loop()
    recorder = loop.record(tmp_path)
    training = polstore.Training(loop.model, loop.optimizer, loop.loader)
    with pytest.raises(TrainingError, match="took no batch"), recorder:
        recorder.train(training, lambda *_: None, 2, lambda *_: None)


def test_a_loader_without_batches_is_refused(tmp_path):
    loop = Loop()
    loop.loader = DataLoader(TensorDataset(torch.randn(3, 3)), batch_size=4, drop_last=True)
    training = polstore.Training(loop.model, loop.optimizer, loop.loader)
    recorder = loop.record(tmp_path)
    with pytest.raises(TrainingError, match="gives no batch"), recorder:
        recorder.train(training, lambda _, batches: next(batches), 1, lambda *_: None)


def test_a_run_without_steps_is_whole(tmp_path):
    loop = Loop()
    with loop.record(tmp_path):
        pass
    assert snapshots(tmp_path) == [0]


ARGUMENTS = {
    "unknown fidelity": {"fidelity": "exact"},
    "unknown kind of initial state": {"initial": "magic"},
    "steps between snapshots": {"every": 0},
    "seed": {"seed": -1},
    "run": {"run": "../up"},
}


@pytest.mark.parametrize("message", ARGUMENTS)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_written(tmp_path, message):
    with pytest.raises(UsageError, match=message):
        Loop().record(tmp_path / "store", **ARGUMENTS[message])
    assert not (tmp_path / "store").exists()


def test_a_recording_without_a_loader_needs_its_dataset(tmp_path):
    loop = Loop()
    loop.loader = None
    with pytest.raises(UsageError, match="needs its dataset"):
        loop.record(tmp_path)


def test_a_recipe_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(MissingError, match="no recipe"):
        Loop().record(tmp_path, recipe=tmp_path / "none.py")


def test_an_empty_dataset_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="empty"):
        Loop().record(tmp_path, dataset=[])


def test_samples_outside_the_committed_dataset_are_refused(tmp_path):
    loop = Loop()
    loop.loader = DataLoader(TensorDataset(torch.randn(8, 3)), batch_sampler=[[0, -1]])
    with pytest.raises(TrainingError, match="samples of a batch"), loop.record(tmp_path):
        loop.passes()


def test_seeds():
    assert run_seed(258) == bytes(30) + b"\x01\x02"
    assert run_seed(bytes(range(32))) == bytes(range(32))
    assert run_seed(None) != run_seed(None)
    for wrong in (b"", bytes(31), 2**256, -1):
        with pytest.raises(UsageError):
            run_seed(wrong)


def test_training_is_not_touched_by_a_lossless_recording(tmp_path):
    """Apart from the seeding: the same batches by hand lead to the same weights."""
    loop, plain = Loop(), Loop()
    with loop.record(tmp_path, fidelity="lossless"):
        loop.passes(2)
    with open_archive(tmp_path) as archive:
        run = archive.run("r")
        steps = [step for index in range(len(run.segments)) for step in run.steps(index).steps]
    data = plain.loader.dataset.tensors[0]
    for step in steps:
        plain.update((data[list(step.microbatches[0].ranks[0])],))
    assert torch.equal(loop.model.weight, plain.model.weight)


def test_written_back_weights_are_the_committed_ones(tmp_path):
    loop = Loop()
    with loop.record(tmp_path):
        loop.passes(2)
    with open_archive(tmp_path) as archive:
        state = archive.run("r").state(6)
    assert state.tensor("parameter/weight").data.tobytes() == loop.model.weight.detach().numpy().tobytes()
