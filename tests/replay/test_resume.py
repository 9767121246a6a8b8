"""Resuming is exact: an interrupted run, however often and wherever, ends with the leaves of an undisturbed one."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.utils.data import TensorDataset

import polstore
from polstore.codec.live.recipe import RecipeFile
from polstore.errors import ExistsError, LockedError, TrainingError, UsageError
from polstore.fsck import check_store
from polstore.reader import open_archive
from polstore.recording import record_recipe
from polstore.storage.store import open_store
from tests.replay.harness import SEED, Bench
from tests.replay.recipes import loop

RICH = {
    "kind": "batchnorm",
    "optimizer": "adamw",
    "scheduler": "sequential",
    "ema": True,
    "augment": True,
    "mixup": True,
    "every": 4,
    "steps": 15,  # six batches a pass: snapshots fall into passes and between them
}


def same_but_for_the_dataset(bench, first, second):
    """Compare two runs leaf by leaf. Their manifests differ in name and in the dataset's salt."""
    with open_archive(bench.store) as archive:
        first, second = archive.run(first), archive.run(second)
        assert first.leaves(first.size())[1:] == second.leaves(second.size())[1:]
        assert first.snapshots == second.snapshots
        rows = [(row.epoch, row.batch, row.number, row.complete) for row in (first.row, second.row)]
        assert rows[0] == rows[1]


def digest_of(path):
    """Return all that a reader can see of a store."""
    with open_archive(path) as archive:
        return {
            name: (archive.run(name).leaves(archive.run(name).size()), archive.run(name).row) for name in archive.runs()
        }


@pytest.mark.parametrize("stop", [1, 4, 6, 7, 12, 15])
def test_an_interrupted_run_ends_like_an_undisturbed_one(bench: Bench, stop):
    expected = bench.record("whole", **RICH)
    bench.record("broken", stop=stop, **RICH)
    assert bench.record("broken", resume=True, **RICH) == expected
    same_but_for_the_dataset(bench, "whole", "broken")


@pytest.mark.parametrize("settings", [{"workers": 2, "prefetch": 3}, {"fidelity": "lossless", "accumulate": 2}])
def test_it_does_so_with_workers_and_with_accumulation(bench: Bench, settings):
    settings = {**RICH, **settings}
    expected = bench.record("whole", **settings)
    for stop in (7, 10):
        bench.record("broken", stop=stop, resume=True, **settings)
    assert bench.record("broken", resume=True, **settings) == expected
    same_but_for_the_dataset(bench, "whole", "broken")
    bench.require_accepted("broken")


def test_a_run_interrupted_again_and_again_ends_like_an_undisturbed_one(bench: Bench):
    expected = bench.record("whole", **RICH)
    for stop in (2, 5, 5, 9, 13, 14):
        bench.record("broken", stop=stop, resume=True, **RICH)
    assert bench.record("broken", resume=True, **RICH) == expected
    same_but_for_the_dataset(bench, "whole", "broken")


@pytest.mark.parametrize(("first", "workers"), [(1, 0), (5, 0), (6, 0), (8, 0), (12, 0), (5, 2), (6, 2)])
def test_a_complete_run_can_go_on(bench: Bench, first, workers):
    """It ends like one that was never complete, but for the short segment in which it once ended."""
    settings = {**RICH, "fidelity": "lossless", "workers": workers, "accumulate": 1}
    del settings["steps"]
    expected = bench.record("whole", steps=14, **settings)
    bench.record("longer", steps=first, **settings)
    with open_archive(bench.store) as archive:
        assert archive.run("longer").complete
    assert bench.record("longer", steps=14, resume=True, **settings) == expected
    with open_archive(bench.store) as archive:
        assert archive.run("longer").complete
    bench.require_accepted("longer")


def test_resuming_a_complete_run_without_more_steps_changes_nothing(bench: Bench):
    bench.record(**RICH)
    before = digest_of(bench.store)
    bench.record(resume=True, **RICH)
    assert digest_of(bench.store) == before


def test_resuming_what_never_began_begins_it(bench: Bench):
    expected = bench.record("whole", **RICH)
    assert bench.record("new", resume=True, **RICH) == expected


REFUSED = {
    "recipe setting": {"lr": 0.01},
    "other model": {"kind": "dropout"},
    "every": {"every": 5},
    "fidelity": {"fidelity": "lossless"},
    "seed": {"seed": 12},
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_resuming_with_other_declarations_is_refused(bench: Bench, change):
    bench.record(stop=9, **RICH)
    before = digest_of(bench.store)
    with pytest.raises(UsageError, match="declared with another"):
        bench.record(resume=True, **{**RICH, **change})
    assert digest_of(bench.store) == before
    bench.record(resume=True, **RICH)


def test_resuming_with_another_recipe_file_is_refused(bench: Bench, tmp_path):
    bench.record(stop=9, **RICH)
    before, recipe = digest_of(bench.store), bench.recipe
    bench.recipe = tmp_path / "recipe.py"
    bench.recipe.write_bytes(recipe.read_bytes() + b"\n")
    with pytest.raises(UsageError, match="another recipe"):
        bench.record(resume=True, **RICH)
    assert digest_of(bench.store) == before


def test_a_run_is_not_begun_twice(bench: Bench):
    bench.record(stop=9, **RICH)
    before = digest_of(bench.store)
    with pytest.raises(ExistsError):
        bench.record(**RICH)
    assert digest_of(bench.store) == before


def test_the_seed_of_a_resumed_run_need_not_be_repeated(bench: Bench):
    bench.record(seed=None, stop=9, **RICH)
    assert bench.record(seed=None, resume=True, **RICH)
    bench.require_accepted()


# Loops of the user's own


def session(bench, run, *, passes, stop=None, training=None, dataset=None, break_at=None):
    """Train in a loop of one's own; die of RuntimeError inside step ``stop``."""
    if training is None:
        polstore.seed_initial(SEED)
        training = loop.build("cpu", epochs=True)
    if dataset is not None:
        training.loader = torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True)
    recorder = polstore.record(
        training.model,
        training.optimizer,
        training.loader,
        every=4,
        store=bench.store,
        run=run,
        extras=training.extras,
        recipe=bench.recipe,
        config={"epochs": True},
        seed=SEED,
        initial="seed",
        resume=True,
    )
    with recorder:
        for _ in range(recorder.epoch, passes):
            for batch in training.loader:
                if recorder.steps_done == break_at:
                    return training
                loss = loop.train_on(training, batch)
                if recorder.steps_done == stop:
                    raise RuntimeError("lost power")
                loop.update(training)
                recorder.loss(loss)
            training.extras["scheduler"].step()
    return training


@pytest.fixture
def by_hand(tmp_path):
    return Bench(tmp_path, "loop.py")


@pytest.mark.parametrize(
    ("stop", "fresh"), [(0, True), (4, True), (5, True), (6, True), (17, True), (0, False), (5, False), (11, False)]
)
def test_a_loop_of_ones_own_resumes_exactly(by_hand, stop, fresh):
    session(by_hand, "whole", passes=3)
    polstore.seed_initial(SEED)
    training = loop.build("cpu", epochs=True)
    with pytest.raises(RuntimeError, match="lost power"):
        session(by_hand, "broken", passes=3, stop=stop, training=training)
    session(by_hand, "broken", passes=3, training=None if fresh else training)
    same_but_for_the_dataset(by_hand, "whole", "broken")
    by_hand.require_accepted("broken")


@pytest.mark.parametrize("break_at", [4, 7, 8])
def test_a_batch_that_was_fetched_and_not_used_comes_again(by_hand, break_at):
    """The loop leaves by ``break`` at the top of its body, and goes on later."""
    session(by_hand, "whole", passes=2)
    session(by_hand, "longer", passes=2, break_at=break_at)
    session(by_hand, "longer", passes=2)
    with open_archive(by_hand.store) as archive:
        batches = [
            [
                microbatch
                for index in range(len(archive.run(name).segments))
                for step in archive.run(name).steps(index).steps
                for microbatch in step.microbatches
            ]
            for name in ("whole", "longer")
        ]
    assert batches[0] == batches[1]
    by_hand.require_accepted("longer")


def test_resuming_with_another_dataset_is_refused(by_hand):
    with pytest.raises(RuntimeError, match="lost power"):
        session(by_hand, "r", passes=3, stop=9)
    before = digest_of(by_hand.store)
    inputs, labels = loop.build("cpu").loader.dataset.tensors
    for changed in (TensorDataset(inputs, 1 - labels), TensorDataset(inputs[:-1], labels[:-1])):
        with pytest.raises(TrainingError, match="dataset has changed"):
            session(by_hand, "r", passes=3, dataset=changed)
    assert digest_of(by_hand.store) == before


def test_two_recorders_on_one_store_are_refused(bench: Bench):
    recipe = RecipeFile.read(bench.recipe)
    recorder, _, _ = record_recipe(recipe, every=4, store=bench.store, run="a", seed=SEED)
    with recorder:
        before = digest_of(bench.store)
        with pytest.raises(LockedError):
            record_recipe(recipe, every=4, store=bench.store, run="b", seed=SEED)
        assert digest_of(bench.store) == before
    record_recipe(recipe, every=4, store=bench.store, run="b", seed=SEED)[0].__enter__().__exit__(None, None, None)


def test_a_recorder_that_is_never_entered_holds_nothing_once_it_is_gone(bench: Bench):
    recipe = RecipeFile.read(bench.recipe)
    recorder, training, loaded = record_recipe(recipe, every=4, store=bench.store, run="a", seed=SEED)
    with pytest.raises(UsageError, match="not under way"):
        recorder.train(training, loaded.step, 3, lambda done, loss: None)
    del recorder
    gc.collect()
    assert bench.record("a", resume=True)
    with open_store(bench.store, readonly=True) as store:
        assert not check_store(store, lambda *_: None).damages


def test_a_failing_step_leaves_the_store_whole_and_free(bench: Bench):
    with pytest.raises(ValueError, match="no number"):
        bench.record(kind="plain", clip="no number", every=2)
    assert bench.record("other")
