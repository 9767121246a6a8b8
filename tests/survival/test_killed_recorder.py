"""A recorder that is killed at any moment: its store stays whole, and resumed it ends as if nothing had happened."""

from __future__ import annotations

import random
import signal
import time

import children
import training

from polstore.errors import MissingError
from polstore.storage import opening

ROUNDS = 100
STEPS, EVERY = 20, 2  # of one run; a run that came to its end is followed by another, in a store of its own
WIDTH = 96  # 3 thousand weights and their moments: a snapshot of some 30 kB
SMALL_MAP = 64 << 10  # bytes; so that growing is interrupted, too


def record(pipe, recipe, store, seed):
    opening.INITIAL_MAP = SMALL_MAP
    training.announce(pipe)
    pipe.send(("ready", None))
    training.record(recipe, store, STEPS, every=EVERY, seed=seed, width=WIDTH)


def undisturbed(pipe, recipe, store, seed):
    training.record(recipe, store, STEPS, every=EVERY, seed=seed, width=WIDTH)
    return training.facts(store)


def look(pipe, store):
    """Return what a store that was left behind holds; nothing if there was not even a run in it."""
    if not (store / "VERSION").exists():  # it was only just being made
        return {}, (), False
    assert not training.damages(store)
    try:
        return training.facts(store)
    except MissingError:
        return {}, (), False


class Moment:
    """When to kill: at a random moment of everything, or shortly after a snapshot began to be written."""

    def __init__(self, random_):
        self._writes = random_.choice((0, 1, 1, 2, 3))
        self._delay = random_.expovariate(1 / 0.004) if self._writes else random_.uniform(0, 0.08)

    def wait(self, recorder, written):
        """Wait for the moment, or the end; note the steps of snapshots that counted before; return whether it ended."""
        left = self._writes
        while left:
            kind, step = recorder.receive()
            if kind == "done":
                return True
            if kind == "written":
                written.append(step)
            left -= kind == "writing"
        time.sleep(self._delay)
        return False


def rest(recorder, written):
    """Note what the killed child had still said; return whether it had ended by itself."""
    try:
        while True:
            kind, step = recorder.receive()
            if kind == "written":
                written.append(step)
            if kind == "done":
                return True
    except children.DiedError as death:
        if death.signal != signal.SIGKILL:
            raise
        return False


def test_a_killed_recorder_loses_nothing(tmp_path):
    random_ = random.Random(3)
    recipe = training.recipe_file(tmp_path)
    killed = {"starting": 0, "training": 0}
    seed = 0
    while sum(killed.values()) < ROUNDS:
        seed += 1
        store = tmp_path / f"store {seed}"
        whole, leaves, complete = children.call(undisturbed, recipe, tmp_path / f"whole {seed}", seed)
        assert complete
        before, ended = {}, False
        while not ended:
            written = [0] if before else []
            with children.child(record, recipe, store, seed) as recorder:
                assert recorder.receive() == ("ready", None)
                ended = Moment(random_).wait(recorder, written)
                if not ended:
                    recorder.kill()
                    ended = rest(recorder, written)
            killed["training" if len(written) > bool(before) else "starting"] += not ended
            digests, got, complete = children.call(look, store)
            assert before.items() <= digests.items() <= whole.items()
            assert set(written) <= set(digests)
            assert got == leaves[: len(got)]
            assert complete or not ended
            before, ended = digests, complete  # it may be killed between its last write and saying so
        assert (digests, got) == (whole, leaves)
    assert min(killed.values()) >= ROUNDS // 5, killed
