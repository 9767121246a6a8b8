"""What a second thread does while segments train: nothing that training touches, in bounds, and in the run's order."""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from typing import Any

import pytest

from polstore.codec.snapshot import Snapshot
from polverify.states import States
from polverify.verdict import Decision
from tests.attacks import forge
from tests.attacks.forge import Trainer, edit


def forged(*wrong: int, lying_about_loss: int | None = None, **options: Any) -> Trainer:
    """A trainer who commits one weight of some segments' ends one unit in the last place off, or a false loss."""

    class Forger(Trainer):
        def commit(self, index: int, committed: Snapshot) -> Snapshot:
            def change(data: Any) -> Any:
                data.view("<u4")[0] += 1
                return data

            return edit(committed, "parameter/0.weight", change) if index in wrong else committed

        def step(self, number: int) -> Any:
            step = super().step(number)
            return replace(step, loss=0.25) if number == lying_about_loss else step

    return Forger(**options)


def test_only_training_is_left_to_the_thread_that_trains(judge, honest, monkeypatch):
    seen: dict[str, set[bool]] = {}
    replaying = threading.Event()

    def watched(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def work(*arguments: Any, **options: Any) -> Any:
            if replaying.is_set():
                seen.setdefault(name, set()).add(threading.current_thread() is threading.main_thread())
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, work)

    watched(States, "get")
    import polverify.replay.session
    import polverify.replaying

    watched(polverify.replay.session, "quantise")
    watched(polverify.replaying, "check_norms")
    watched(polverify.replay.session.Session, "train")

    def progress(what: str, done: int, total: int) -> None:
        replaying.set() if what == "hashing samples" else None

    verdict = judge(honest, progress=progress)
    assert verdict.decision is Decision.ACCEPT
    assert seen == {"get": {False}, "quantise": {False}, "check_norms": {False}, "train": {True}}


@pytest.mark.parametrize("fidelity", ["float16-writeback", "lossless", "float16"])
def test_few_snapshots_are_held_in_however_long_a_run(judge, monkeypatch, fidelity):
    evidence = Trainer(steps=40, every=1, fidelity=fidelity).run()
    alive: weakref.WeakSet[Snapshot] = weakref.WeakSet()
    check, held = Snapshot.__post_init__, []

    def counted(snapshot: Snapshot) -> None:
        check(snapshot)
        alive.add(snapshot)

    monkeypatch.setattr(Snapshot, "__post_init__", counted)
    judge(evidence, tolerant=fidelity == "float16", progress=lambda *_: held.append(len(alive)))
    assert 3 < max(held) <= 19


@pytest.mark.parametrize("first", [0, 1, 3])
def test_nothing_is_trained_beyond_the_segment_after_a_forged_one(judge, first):
    trained: list[int] = []
    verdict = judge(
        forged(first, 4).run(), progress=lambda what, done, _: trained.append(done) if what == "replaying" else None
    )
    assert verdict.reason.startswith(f"check 10 (replay): segment {first}, state after step")
    assert [result.index for result in verdict.segments] == list(range(first))
    assert max(trained) <= (first + 2) * forge.EVERY


def test_what_fails_while_training_waits_for_what_comes_before(judge):
    """The loss of step 6 is seen to be false while segment 1 is still being hashed."""
    verdict = judge(forged(1, lying_about_loss=6).run())
    assert verdict.reason.startswith("check 10 (replay): segment 1, state after step 6")
    verdict = judge(forged(lying_about_loss=6).run())
    assert verdict.reason.startswith("check 10 (replay): step 6: loss")
    assert [result.index for result in verdict.segments] == [0, 1]
