"""A small recorded run for the tests of what reads stores: 5 segments of a network with batch normalisation."""

import torch

from polstore.codec.live.recipe import RecipeFile
from polstore.prover import commit
from polstore.recording import record_recipe
from polstore.storage.store import open_store
from polstore.wire.keys import SigningKey

KEY = SigningKey("example.com/alice", bytes(range(32)))
STEPS, EVERY = 9, 2
SNAPSHOTS = [0, 2, 4, 6, 8, 9]
NOW = 1_800_000_000

RECIPE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import polstore


def build(device, lr=0.1):
    inputs = torch.arange(64, dtype=torch.float32).reshape(16, 4) / 100
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return polstore.Training(model, optimizer, DataLoader(TensorDataset(inputs, torch.arange(16) % 3), batch_size=8))


def step(training, batches):
    inputs, labels = next(batches)
    loss = nn.functional.cross_entropy(training.model(inputs), labels)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    return loss
"""


def make(path, runs=("r",), steps=STEPS, *, signed=True):
    """Record runs into the store ``path / "st"``, sign them, and return the store's path."""
    (path / "recipe.py").write_text(RECIPE)
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    for number, run in enumerate(runs):
        recorder, training, loaded = record_recipe(
            RecipeFile.read(path / "recipe.py"), every=EVERY, store=path / "st", run=run, seed=number
        )
        with recorder:
            recorder.train(training, loaded.step, steps, lambda _done, _loss: None)
    torch.set_num_threads(threads)
    torch.set_rng_state(generator)
    if signed:
        with open_store(path / "st") as store:
            for run in runs:
                commit(store, run, KEY, now=lambda: NOW)
    return path / "st"
