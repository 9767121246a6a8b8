"""Optimizers that come with moments: snapshot 0 rounds them, training begins at what it holds, and replays meet it."""

from __future__ import annotations

import numpy as np
import pytest

from polstore.codec.live.recipe import RecipeFile
from polstore.codec.quantise import FIDELITIES, dropped_bits, quantise, role_of, writes_back
from polstore.codec.stored import Encoding
from polstore.reader import open_archive
from polstore.recording import record_recipe
from polverify.replay import session
from polverify.verdict import Decision, Outcome
from tests.replay.harness import SEED, Bench

INITIAL, REPLAY = 5, 10  # numbers of checks
OPTIMIZERS = {"adagrad_accumulated": 1, "adamw_resumed": 2}  # moments that each has of a parameter
PARAMETERS = 6
WRITING_BACK = [fidelity for fidelity in FIDELITIES if writes_back(fidelity)]


def first_snapshot(bench: Bench):
    with open_archive(bench.store) as archive:
        run = archive.run("r")
        state = run.state(0)
        moments = [t for t in state.tensors if t.dtype == "float32" and t.name.startswith("optimizer/") and t.shape]
        return state, moments, run.stored_snapshots(state.digest())[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("fidelity", [*WRITING_BACK, "lossless"])
def test_runs_that_begin_with_moments_are_accepted(bench: Bench, fidelity, optimizer):
    bench.record(steps=6, every=2, fidelity=fidelity, optimizer=optimizer)
    state, moments, stored = first_snapshot(bench)
    assert len(moments) == OPTIMIZERS[optimizer] * PARAMETERS
    for moment in moments:
        assert moment.data.any()
        low = 0
        if fidelity != "lossless":
            low = (1 << dropped_bits(fidelity, role_of(moment.name, moment.dtype, moment.shape))) - 1
        assert not (moment.data.view("<u4") & low).any()
        assert (stored.row(moment.name).encoding is Encoding.BFLOAT16) == (fidelity != "lossless")
    assert quantise(state, None, fidelity).digest() == state.digest()
    verdict = bench.require_accepted()
    (check,) = (check for check in verdict.checks if check.number == INITIAL)
    assert (check.outcome, check.detail) == (Outcome.PASSED, "rebuilt from the seed, state digests are equal")
    assert {segment.outcome for segment in verdict.segments} == {Outcome.PASSED}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_training_begins_at_the_committed_values_where_it_is_written_back(bench: Bench, fidelity, optimizer):
    recorder, training, _ = record_recipe(
        RecipeFile.read(bench.recipe), every=2, store=bench.store, run="r", config={"optimizer": optimizer}, seed=SEED,
        fidelity=fidelity,
    )  # fmt: skip
    with recorder:
        live = {}
        for name, parameter in training.model.named_parameters():
            for key, value in training.optimizer.state[parameter].items():
                live[f"optimizer/{name}/{key}"] = value.detach().clone().numpy().ravel()
    _, moments, _ = first_snapshot(bench)
    equal = [np.array_equal(live[moment.name], moment.data) for moment in moments]
    assert len(equal) == OPTIMIZERS[optimizer] * PARAMETERS
    assert all(equal) if fidelity != "float16" else not any(equal)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_verifier_who_did_not_round_his_own_would_reject(bench: Bench, optimizer, monkeypatch):
    """What the two tests above rest on: the state that the recipe builds is another than the committed one."""
    bench.record(steps=2, every=2, optimizer=optimizer)
    monkeypatch.setattr(session, "quantise", lambda snapshot, *_: snapshot)
    verdict = bench.verdict()
    assert verdict.decision is Decision.REJECT
    assert verdict.reason.startswith(f"check {INITIAL} ")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_float16_run_that_begins_with_moments_has_a_rounded_start(bench: Bench, optimizer):
    """Training went on from what was not rounded, so that not even the first segment can be met to the bit."""
    bench.record(steps=4, every=2, fidelity="float16", optimizer=optimizer)
    verdict = bench.verdict()
    assert verdict.decision is Decision.INCONCLUSIVE
    assert verdict.reason.startswith(f"check {REPLAY} ")
    assert {segment.outcome for segment in verdict.segments} == {Outcome.UNDECIDED}


def test_an_interrupted_run_that_began_with_moments_ends_like_an_undisturbed_one(bench: Bench):
    settings = {"optimizer": "adamw_resumed", "steps": 9, "every": 2}
    expected = bench.record("whole", **settings)
    for stop in (1, 2, 5):
        bench.record(f"broken{stop}", stop=stop, **settings)
        assert bench.record(f"broken{stop}", resume=True, **settings) == expected
