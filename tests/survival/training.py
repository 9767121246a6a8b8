"""A small training for the tests of this folder, and what is true of a recording of it. To be used in a child."""

from __future__ import annotations

import threading

from polstore.codec.live.recipe import RecipeFile
from polstore.fsck import check_store
from polstore.recording import record_recipe
from polstore.run_row import RunRow
from polstore.run_writer import RunWriter
from polstore.storage.store import open_store

PATIENCE = 60  # seconds for one snapshot, on a busy machine

RECIPE = """
import torch
import polstore
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def build(device, width=64):
    inputs = torch.randn(48, 16, generator=torch.Generator().manual_seed(2))
    model = nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 16))
    loader = DataLoader(TensorDataset(inputs), batch_size=16, shuffle=True)
    return polstore.Training(model, torch.optim.AdamW(model.parameters(), 0.01), loader)

def step(training, batches):
    inputs, = next(batches)
    loss = (training.model(inputs) - inputs).square().mean()
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    return loss
"""


def recipe_file(directory):
    """Write the recipe into a directory and return its path."""
    path = directory / "recipe.py"
    path.write_text(RECIPE)
    return path


def record(recipe, store, steps, *, every=2, seed=4, run="r", width=64, each=lambda step: None):
    """Record a run, or go on with it, up to step ``steps``; ``each`` is told every step done."""
    recorder, training, loaded = record_recipe(
        RecipeFile.read(recipe), every=every, store=store, run=run, seed=seed, resume=True, config={"width": width}
    )
    with recorder:
        recorder.train(training, loaded.step, steps, lambda step, _loss: each(step))


def announce(pipe):
    """Have a writer say when it begins to write a snapshot, and when that counts."""
    original = RunWriter.write

    def write(self, plan, *rest):
        pipe.send(("writing", plan.end_step))
        committed = original(self, plan, *rest)
        pipe.send(("written", plan.end_step))
        return committed

    RunWriter.write = write


class Written:
    """Waits for snapshots to be written, in the process that records."""

    def __init__(self):
        self._steps = {0}
        self._changed = threading.Condition()
        announce(self)

    def send(self, said):
        kind, step = said
        if kind == "written":
            with self._changed:
                self._steps.add(step)
                self._changed.notify_all()

    def wait(self, step):
        with self._changed:
            assert self._changed.wait_for(lambda: step in self._steps, PATIENCE), step


def facts(store, run="r"):
    """Return the state digests of all snapshots by step, the leaves after the manifest, and whether the run ended.

    That the snapshots decode to these digests is for `damages` to find out.
    """
    with open_store(store, readonly=True) as opened, opened.read() as view:
        digests = {step: view.snapshot_at(run, step) for step in view.snapshot_steps(run)}
        return digests, tuple(view.leaves(run))[1:], RunRow.parse(view.run(run)).complete


def damages(store):
    """Return what a check of the store finds."""
    with open_store(store, readonly=True) as opened:
        return check_store(opened, lambda *_: None).damages
