"""The order of samples: declared as the seed's and chosen, or declared as free and said so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from polstore.codec.live.order import batches_of_pass, follows_seed, pass_length
from polstore.errors import DataError
from polstore.wire.steps import Microbatch, Step, Steps
from polverify.replay.order import check_order
from polverify.verdict import Decision
from tests.attacks import forge
from tests.attacks.forge import Trainer

DATA = 9  # number of the check


def test_an_order_that_was_chosen_and_declared_as_the_seeds(rejects, judge):
    chosen = Trainer().run().declaring(sampler="seed")
    assert rejects(chosen) == DATA
    assert "drawn from the seed" in judge(chosen).reason


def test_an_order_that_was_chosen_and_declared_as_free(judge):
    verdict = judge(Trainer().run())
    assert verdict.decision is Decision.ACCEPT
    assert any("order of samples was the prover's free choice" in warning for warning in verdict.warnings)


def test_an_honest_order_is_re_derived(judge, honest):
    verdict = judge(honest)
    assert verdict.decision is Decision.ACCEPT
    assert "order re-derived from the seed" in verdict.checks[DATA].detail
    assert not any("order" in warning for warning in verdict.warnings)


class Picks(Trainer):
    """Trains on the seed's own batches, but not on all of them: only on those that ``numbers`` says."""

    def picking(self, numbers):
        self.numbers = numbers
        return self

    def draw(self, number):
        place = self.numbers[number]
        batches = list(batches_of_pass(self.training.loader.batch_sampler, forge.SEED, place // 8))
        return tuple(batches[place % 8])

    def step(self, number):
        step = super().step(number)
        ((batch,),) = [step.microbatches]
        return replace(step, microbatches=(replace(batch, number=self.numbers[number]),))


def test_batches_left_out_inside_a_pass(rejects):
    numbers = [*range(4), *range(5, 15)]
    forged = Picks(fidelity="lossless").picking(numbers).run()
    assert rejects(forged.declaring(sampler="seed")) == DATA


def test_passes_chosen_at_will(rejects, judge):
    """Segment 2 is trained on pass 1000: never in a run whose segments before it are opened, nor unseen in another."""
    numbers = [*range(6), *range(8000, 8008)]
    forged = Picks(fidelity="lossless").picking(numbers).run().declaring(sampler="seed")
    assert any("7994 batches of the order were left out" in warning for warning in judge(forged).warnings)
    numbers = [*range(6), *range(8001, 8009)]
    forged = Picks(fidelity="lossless").picking(numbers).run().declaring(sampler="seed")
    assert rejects(forged) == DATA
    forged = Picks(fidelity="lossless").picking(numbers).run(opened=(0, 2, 4)).declaring(sampler="seed")
    assert any("7995 batches of the order were left out" in warning for warning in judge(forged).warnings)
    forged = Picks(fidelity="lossless").picking(range(3, 17)).run(opened=(0,)).declaring(sampler="seed")
    assert rejects(forged) == DATA


def steps(numbers, batches, start=None):
    start = next(iter(numbers)) if start is None else start  # as many steps before it as batches
    return Steps(start, tuple(Step((Microbatch(n, (tuple(batches[n]),)),), (), None) for n in numbers))


@pytest.fixture
def drawn():
    sampler = DataLoader(list(range(20)), batch_size=6, shuffle=True).batch_sampler
    batches = [batch for epoch in range(4) for batch in batches_of_pass(sampler, forge.SEED, epoch)]
    return sampler, batches


def test_passes_differ_and_are_repeatable(drawn):
    sampler, batches = drawn
    assert pass_length(sampler) == 4
    assert sorted(index for batch in batches[:4] for index in batch) == list(range(20))
    assert batches[:4] != batches[4:8]
    assert [list(batch) for batch in batches_of_pass(sampler, forge.SEED, 2)] == batches[8:12]


@pytest.mark.parametrize(("numbers", "left_out"), [(range(11), 0), ((3, 4, 8, 9, 12), 5), ((6, 7), 0), ((1, 12), 10)])
def test_whole_passes_and_broken_off_ones_agree(drawn, numbers, left_out):
    sampler, batches = drawn
    assert check_order(sampler, forge.SEED, [steps(numbers, batches)]) == left_out


@pytest.mark.parametrize(
    ("segments", "left_out"),
    [
        ([((0, 1), 0), ((2, 3), 2)], 0),
        ([((0, 1), 0), ((4, 5), 2)], 2),
        ([((4, 5), 0)], 4),
        ([((0, 1), 0), ((7, 8), 7)], 0),
        ([((0, 1), 0), ((9, 10), 7)], 2),
        ([((0, 1), 0), ((3, 4), 2)], None),
        ([((3, 4), 0)], None),
        ([((0, 1), 0), ((5, 6), 7)], None),
        ([((5, 6), 7)], None),
        ([((2, 3), 2), ((0, 1), 4)], None),
        ([((3, 4), 3), ((4, 5), 5)], None),  # the first batch of a pass, trained on twice
    ],
)
def test_numbers_go_on_from_one_opened_segment_to_the_next(drawn, segments, left_out):
    sampler, batches = drawn
    opened = [steps(numbers, batches, start) for numbers, start in segments]
    if left_out is not None:
        assert check_order(sampler, forge.SEED, opened) == left_out
    else:
        with pytest.raises(DataError, match="batch number"):
            check_order(sampler, forge.SEED, opened)


@pytest.mark.parametrize("numbers", [(0, 2), (4, 6), (3, 5), (0, 1, 2, 7)])
def test_gaps_inside_a_pass_do_not(drawn, numbers):
    sampler, batches = drawn
    with pytest.raises(DataError, match="batch number"):
        check_order(sampler, forge.SEED, [steps(numbers, batches)])


def test_a_batch_under_another_number_or_in_another_order_does_not(drawn):
    sampler, batches = drawn
    for wrong in (batches[::-1], [batch[::-1] for batch in batches], [batch[:-1] for batch in batches]):
        with pytest.raises(DataError, match="drawn from the seed"):
            check_order(sampler, forge.SEED, [steps(range(4), wrong)])
    with pytest.raises(DataError, match="drawn from the seed"):
        check_order(sampler, bytes(32), [steps(range(4), batches)])


class Own(RandomSampler):
    """A sampler whose order nobody can know from its class."""


@pytest.mark.parametrize(
    ("sampler", "known"),
    [
        (RandomSampler(range(9)), True),
        (RandomSampler(range(9), replacement=True, num_samples=30), True),
        (SubsetRandomSampler(range(9)), True),
        (WeightedRandomSampler([1.0, 2.0, 3.0], 9), True),
        (Own(range(9)), False),
        (range(9), False),
    ],
)
def test_only_pytorchs_own_samplers_follow_the_seed(sampler, known):
    batches = DataLoader(list(range(9)), batch_size=2, sampler=sampler).batch_sampler
    assert follows_seed(batches) is known
    assert (check_order(batches, forge.SEED, []) is None) is not known
    assert not follows_seed([[1, 2], [3]])
    assert follows_seed(BatchSampler(RandomSampler(range(9)), 2, drop_last=True))
