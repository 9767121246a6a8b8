"""Running the two command lines as a user does: in this process for speed, as a process where that is the point."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from polstore.cli.main import main as polstore_main
from polverify.cli import main as polverify_main
from tests.schema import check_verdict

BIN = Path(sys.executable).parent
MAINS = {"polstore": polstore_main, "polverify": polverify_main}

RECIPE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import polstore


def build(device, lr=0.1, samples=32):
    inputs = torch.arange(samples * 4, dtype=torch.float32).reshape(samples, 4) / 100
    labels = torch.arange(samples) % 3
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return polstore.Training(model, optimizer, DataLoader(TensorDataset(inputs, labels), batch_size=8, shuffle=True))


def step(training, batches):
    inputs, labels = next(batches)
    loss = nn.functional.cross_entropy(training.model(inputs), labels)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    return loss
"""


class Shell:
    """Runs commands; a result is (exit code, stdout, stderr)."""

    def __init__(self, capsys, monkeypatch):
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *words):
        self._capsys.readouterr()
        words = [str(word) for word in words]
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                MAINS[words[0]]()
        out, err = self._capsys.readouterr()
        if words[:2] in (["polverify", "check"], ["polverify", "log"]) and "--json" in words and out:
            check_verdict(json.loads(out))
        return ended.value.code, out, err

    def ok(self, *words):
        """Run a command that must succeed; return its stdout."""
        code, out, err = self(*words)
        assert code == 0, (words, out, err)
        return out

    def fails(self, code, *words, says=""):
        """Run a command that must fail with one line, which says ``says``; return the line."""
        got, out, err = self(*words)
        assert (got, out, err.count("\n")) == (code, "", 1), (words, got, out, err)
        assert err.startswith("error: ")
        assert says in err, err
        return err


def process(*words, env=None, **options):
    """Run a command as a process of its own; SIGINT ends it whatever the caller of pytest does with it."""
    return subprocess.Popen(
        [BIN / words[0], *map(str, words[1:])],
        env=os.environ | {"COLUMNS": "80"} | (env or {}),
        stdin=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options),
    )


def finish(child):
    """Wait for a process; return (exit code, stdout, stderr)."""
    out, err = child.communicate(timeout=120)
    return child.returncode, out, err
