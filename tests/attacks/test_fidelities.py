"""What a fidelity changes in the verdict, honest and forged: above all float16, where a replay cannot meet the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from polstore.codec.snapshot import Snapshot, Tensor
from polverify.verdict import Decision, Outcome
from tests.attacks import forge
from tests.attacks.forge import Trainer

CONTINUITY, DATA, REPLAY, PLAUSIBILITY = 6, 9, 10, 11
NEEDS = "fidelity float16 needs a tolerance"


@pytest.fixture(scope="module")
def approximate():
    return Trainer(fidelity="float16").run()


@pytest.mark.parametrize("fidelity", ["compact-writeback", "float16-writeback", "lossless"])
def test_honest_runs_are_accepted(judge, fidelity):
    verdict = judge(Trainer(fidelity=fidelity).run())
    assert verdict.decision is Decision.ACCEPT, verdict.reason


def test_an_honest_float16_run_is_inconclusive(judge, approximate):
    verdict = judge(approximate)
    assert verdict.decision is Decision.INCONCLUSIVE
    assert verdict.reason.startswith("check 10 (replay): segment ")
    assert NEEDS in verdict.reason
    assert [check.outcome for check in verdict.checks if check.number == REPLAY] == [Outcome.UNDECIDED]
    # The first segment starts from an exact snapshot, so nothing of it is rounded away.
    assert verdict.segments[0].outcome is Outcome.PASSED
    assert {result.outcome for result in verdict.segments[1:]} == {Outcome.UNDECIDED}


def test_a_float16_run_that_was_written_back_is_accepted(judge):
    """The committed values are those of float16-writeback, so where training did go on from them all is well."""
    written_back = Trainer().run()
    assert judge(written_back.declaring(fidelity="float16")).decision is Decision.ACCEPT


def test_false_losses_of_a_float16_run_that_was_written_back(judge):
    """All states match to the last bit; the fidelity that is declared does not make false losses pass beside them."""

    class Boastful(Trainer):
        def train(self, batches, number):
            return super().train(batches, number) * 0.5

    verdict = judge(Boastful().run().declaring(fidelity="float16"))
    assert verdict.decision is Decision.INCONCLUSIVE
    assert "fidelity float16 needs a tolerance" in verdict.reason


def test_losses_do_not_reject_a_float16_run(judge):
    class Boastful(Trainer):
        def train(self, batches, number):
            loss = super().train(batches, number)
            return loss * 0.5

    assert judge(Boastful(fidelity="float16").run()).decision is Decision.INCONCLUSIVE
    assert judge(Boastful(fidelity="float16-writeback").run()).decision is Decision.REJECT


def test_hyperparameters_reject_a_float16_run(rejects):
    class Faster(Trainer):
        def train(self, batches, number):
            for group in self.training.optimizer.param_groups:
                group["lr"] = 0.7
            return super().train(batches, number)

    assert rejects(Faster(fidelity="float16").run()) == REPLAY


def test_scalars_reject_a_float16_run(judge, rejects):
    class Relabelled(Trainer):
        def commit(self, index, committed):
            return replace(committed, scalars=committed.scalars[:-1] + bytes((committed.scalars[-1] ^ 1,)))

    forged = Relabelled(fidelity="float16").run(opened=(0,))
    assert rejects(forged) == REPLAY
    assert "scalars" in judge(forged).reason


def test_other_tensors_reject_a_float16_run(judge, rejects):
    class Fatter(Trainer):
        def commit(self, index, committed):
            extra = Tensor("zzz/more", "float32", (1,), np.zeros(1, "<f4"))
            return Snapshot((*committed.tensors, extra), committed.scalars)

    forged = Fatter(fidelity="float16").run(opened=(0,))
    assert rejects(forged) == REPLAY
    assert "tensors" in judge(forged).reason


def test_other_samples_reject_a_float16_run(rejects, approximate):
    samples = approximate.bundle.samples
    salts = tuple((index, bytes(32)) for index, _ in samples.salts)
    assert rejects(approximate.edited(samples=replace(samples, salts=salts))) == DATA


def test_norms_reject_a_float16_run(rejects, approximate):
    norms = approximate.records()[1].norms
    assert rejects(approximate.recording(1, norms=replace(norms, l2=norms.l2 * 1.01))) == PLAUSIBILITY


def test_a_compact_run_takes_no_older_base(rejects):
    class Older(Trainer):
        def base_of(self, start):
            return 0

    assert rejects(Older(fidelity="compact-writeback").run()) == CONTINUITY


def test_a_compact_run_may_take_no_base(judge):
    assert judge(Trainer(fidelity="compact-writeback", base=None).run()).decision is Decision.ACCEPT


def test_values_rounded_by_another_rule_are_rejected(rejects):
    class Nearest(Trainer):
        def commit(self, index, committed):
            name = next(t.name for t in committed.tensors if t.name.startswith("parameter/"))
            return forge.edit(committed, name, lambda data: np.nextafter(data, np.float32(9)))

    assert rejects(Nearest(fidelity="compact-writeback").run(opened=(0,))) == REPLAY
