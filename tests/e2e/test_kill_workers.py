"""A check of several segments at once that is interrupted or killed leaves no process of its own behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from command_line import RECIPE, finish, process

# In a worker each step takes a while, and the first one says which process it is.
SLOW = """
import multiprocessing, os, pathlib, time
_step = step


def step(training, batches):
    if multiprocessing.parent_process() is not None:
        pathlib.Path(os.environ["SEEN"], str(os.getpid())).touch()
        time.sleep(0.2)
    return _step(training, batches)
"""
PATIENCE = 100  # seconds, on a busy machine


def until(true):
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid):
    """Whether a process runs; one that has ended may wait for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture(scope="module")
def proof(tmp_path_factory):
    path = tmp_path_factory.mktemp("proof")
    (path / "recipe.py").write_text(RECIPE + SLOW)
    for words in (
        ("polstore", "keygen", "--name", "example.com/alice", "--out", "key"),
        ("polstore", "record", "recipe.py", "--store", "st", "--run", "r", "--every", 100, "--steps", 200),
        ("polstore", "commit", "--store", "st", "--key", "key", "--out", "root"),
        ("polstore", "prove", "--store", "st", "--segment", 0, "--segment", 1, "--out", "bundle"),
    ):
        code, _, err = finish(process(*words, cwd=path))
        assert code == 0, err
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes as Linux has them")
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_worker_is_left(proof, tmp_path, how, code):
    words = ("polverify", "check", "root", "--key", "key.pub", "--bundle", "bundle", "--recipe", "recipe.py")
    child = process(*words, "--jobs", 2, cwd=proof, env={"SEEN": str(tmp_path)}, start_new_session=True)
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert all(map(alive, workers))
    if how is signal.SIGINT:
        os.killpg(child.pid, how)  # as a terminal does
    else:
        child.send_signal(how)
    got, out, err = finish(child)
    assert (got, out) == (code, "")
    assert "Traceback" not in err
    until(lambda: not any(map(alive, workers)))
