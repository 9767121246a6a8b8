"""A recording by command line, killed while it starts up or trains, and resumed, ends as if nothing had happened.

tests/survival kills many more, at chosen moments, without loading torch for each.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from polstore.errors import MissingError, PolstoreError
from polstore.fsck import check_store
from polstore.reader import open_archive
from polstore.storage.store import open_store

POLSTORE = Path(sys.executable).with_name("polstore")
STEPS, EVERY = 24, 3
START_UPS = 2  # rounds killed before training: while torch is loaded and the dataset hashed
ROUNDS = 1  # rounds killed while training
PATIENCE = 60  # seconds for one snapshot, on a busy machine

RECIPE = """
import time
import torch
import polstore
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def build(device):
    inputs = torch.randn(300, 32, generator=torch.Generator().manual_seed(2))
    model = nn.Sequential(nn.Linear(32, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 32))
    loader = DataLoader(TensorDataset(inputs), batch_size=16, shuffle=True)
    return polstore.Training(model, torch.optim.AdamW(model.parameters(), 0.01), loader)

def step(training, batches):
    inputs, = next(batches)
    loss = (training.model(inputs) - inputs).square().mean()
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    time.sleep(0.02)  # so that a kill has something to hit
    return loss
"""


def command(recipe, store):
    settings = f"--run r --every {EVERY} --steps {STEPS} --seed 4 --resume".split()
    return [POLSTORE, "record", recipe, "--store", store, *settings]


def snapshots(store):
    """Return how many snapshots a store has that is being recorded to; 0 if it has no run yet."""
    try:
        with open_archive(store) as archive:
            return len(archive.run("r").snapshots)
    except MissingError:
        return 0
    except PolstoreError:
        if not (store / "data.mdb").exists():  # it is only just being made
            return 0
        raise


def end(store):
    with open_archive(store) as archive:
        run = archive.run("r")
        assert run.complete
        return run.state(STEPS).digest(), run.leaves(run.size())[1:]


def test_a_killed_recorder_loses_nothing(tmp_path):
    random_ = random.Random(3)
    recipe, whole, broken = tmp_path / "recipe.py", tmp_path / "whole", tmp_path / "broken"
    recipe.write_text(RECIPE)
    subprocess.run(command(recipe, whole), check=True, capture_output=True)
    kept = killed = 0
    for attempt in range(START_UPS + ROUNDS):
        with subprocess.Popen(command(recipe, broken), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
            if attempt < START_UPS:
                time.sleep(random_.uniform(0.5, 4))
            else:
                wait_for(child, broken, kept + random_.randrange(1, 3))
                time.sleep(random_.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
            errors = child.stderr.read().decode()
            killed += child.wait() == -signal.SIGKILL
            assert child.returncode in (0, -signal.SIGKILL), errors
        now = snapshots(broken)
        assert now >= kept
        kept = now
        if kept:
            with open_store(broken, readonly=True) as store:
                assert not check_store(store, lambda *_: None).damages
    assert killed
    subprocess.run(command(recipe, broken), check=True, capture_output=True)
    assert end(broken) == end(whole)


def wait_for(child, store, count):
    """Wait until a store has ``count`` snapshots, or the recorder has ended."""
    limit = time.monotonic() + PATIENCE
    while snapshots(store) < count and child.poll() is None:
        assert time.monotonic() < limit, "the recorder makes no snapshots"
        time.sleep(0.002)
