"""The tap on a DataLoader: which batches it reports, when, in which order, and what it refuses."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, TensorDataset

from polstore.adapters.torch_loader import LoaderTap, Position
from polstore.codec.live.samples import load_batch
from polstore.errors import TrainingError

SEED = bytes(range(32))


class Noisy(Dataset):
    """Gives each sample's number and what the three generators say."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(())


class Tap:
    """A tap that keeps what it is told, in the order of events."""

    def __init__(self, loader, position=None):
        self.events = []
        self.tap = LoaderTap(
            loader,
            SEED,
            position or Position(),
            lambda number, indices: self.events.append(("batch", number, tuple(indices))),
            lambda: self.events.append(("pass",)),
        )
        self.tap.install()

    @property
    def batches(self):
        return [event[1:] for event in self.events if event[0] == "batch"]


def loader(workers=0, prefetch=None, **settings):
    settings = {"batch_size": 5, "shuffle": True, **settings}
    return DataLoader(Noisy(), num_workers=workers, prefetch_factor=prefetch, **settings)


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("workers", "prefetch", "persistent"), [(0, None, False), (1, 1, False), (2, None, False), (2, 7, True)]
)
def test_each_batch_is_reported_just_before_the_loop_gets_it(workers, prefetch, persistent):
    live = loader(workers, prefetch, persistent_workers=persistent)
    tap = Tap(live)
    for epoch in range(2):
        for batch, content in enumerate(live):
            number = 5 * epoch + batch
            assert len(tap.batches) == number + 1  # nothing was reported ahead
            assert tap.batches[-1] == (number, tuple(content[0].tolist()))
            again = load_batch(loader(), tap.batches[-1][1], SEED, number)
            assert equal(content, again)
            expected = Position(epoch, batch + 1, number + 1) if batch < 4 else Position(epoch + 1, 0, number + 1)
            assert tap.tap.next_position() == expected
    assert tap.events[0] == ("pass",)
    assert tap.events.count(("pass",)) == 2
    assert tap.batches[:5] != [(number - 5, indices) for number, indices in tap.batches[5:]]
    tap.tap.remove()
    assert live._iterator is None


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 2, 4, 5, 7, 10])
def test_a_later_tap_goes_on_where_an_earlier_one_was_left(workers, taken):
    whole, first, second = loader(), loader(workers), loader(workers)
    expected = Tap(whole)
    for _ in range(3):
        list(whole)
    early = Tap(first)
    run = (batch for _ in range(3) for batch in first)
    for _ in range(taken):
        next(run)
    position = early.tap.next_position()
    early.tap.remove()
    late = Tap(second, position)
    for _ in range(position.epoch, 3):
        list(second)
    assert early.batches + late.batches == expected.batches
    assert late.tap.next_position() == Position(3, 0, 15)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_that_is_left_makes_room_for_the_next(workers):
    live = loader(workers)
    tap = Tap(live)
    for taken, _ in enumerate(live, 1):
        if taken == 2:
            break
    assert tap.tap.next_position() == Position(0, 2, 2)
    list(live)
    assert [number for number, _ in tap.batches] == [0, 1, *range(5, 10)]  # a number says the pass and the place in it
    assert tap.tap.next_position() == Position(2, 0, 10)
    complete = loader()
    expected = Tap(complete)
    list(complete), list(complete)
    assert tap.batches[2:] == expected.batches[5:]


def test_iterators_that_nobody_uses_cost_nothing():
    live = loader()
    tap = Tap(live)
    iter(live), iter(live)
    assert tap.events == []
    list(live)
    assert tap.tap.next_position() == Position(1, 0, 5)


def test_the_loader_is_as_before_once_the_tap_is_gone():
    live = loader()
    sampler, dataset = live.batch_sampler, live.dataset
    tap = Tap(live)
    assert live.batch_sampler is not sampler
    assert len(live) == 5
    assert len(live.dataset) == 23
    tap.tap.remove()
    assert live.batch_sampler is sampler
    assert live.dataset is dataset
    assert len(list(live)) == 5
    assert tap.events == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterator_that_outlives_the_tap_goes_on_unseen(workers):
    live = loader(workers)
    tap = Tap(live)
    iterator = iter(live)
    next(iterator)
    tap.tap.remove()
    assert len(list(iterator)) == 4
    assert len(tap.batches) == 1


def test_persistent_workers_serve_the_loader_after_the_tap():
    live = loader(2, persistent_workers=True)
    tap = Tap(live)
    list(live)
    tap.tap.remove()
    assert len(list(live)) == 5
    assert len(tap.batches) == 5
    again = Tap(DataLoader(Noisy(), batch_size=5))
    again.tap.remove()


def test_the_order_depends_on_the_seed_and_not_on_generators():
    first, second = loader(generator=torch.Generator().manual_seed(1)), loader()
    orders = []
    for live in (first, second, loader(generator=torch.Generator().manual_seed(2))):
        tap = Tap(live)
        torch.rand(3)
        list(live)
        orders.append(tap.batches)
    assert orders[0] == orders[2]
    assert sorted(index for _, batch in orders[1] for index in batch) == list(range(23))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loops_own_random_numbers_stay_its_own(workers):
    live = loader(workers)
    Tap(live)
    iterator = iter(live)
    next(iterator)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    list(iterator)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_a_loader_that_has_become_shorter_is_refused():
    live = loader()
    Tap(live, Position(0, 6, 6))
    with pytest.raises(TrainingError, match="fewer batches"):
        list(live)


def test_a_sampler_of_names_is_refused():
    live = DataLoader(Noisy(), batch_sampler=[["a", "b"]])
    Tap(live)
    with pytest.raises(TrainingError, match="numbers of samples"):
        list(live)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


def started():
    live = loader(1, persistent_workers=True)
    iter(live)
    return live


def tapped():
    live = loader()
    Tap(live)
    return live


REFUSED = {
    "map-style": lambda: DataLoader(Stream()),
    "automatic batching": lambda: DataLoader(Noisy(), batch_size=None),
    "in_order": lambda: loader(2, in_order=False),
    "workers have not started": started,
    "no other recorder": tapped,
}


@pytest.mark.parametrize("message", REFUSED)
def test_loaders_that_cannot_be_recorded_are_refused(message):
    live = REFUSED[message]()
    with pytest.raises(TrainingError, match=message):
        LoaderTap(live, SEED, Position(), lambda *_: None, lambda: None)
    live._iterator = None


def test_batch_samplers_of_the_users_own_and_getitems_are_honoured():
    dataset = TensorDataset(torch.arange(10))
    live = DataLoader(
        torch.utils.data.Subset(dataset, range(9, -1, -1)),
        batch_sampler=BatchSampler(SequentialSampler(range(10)), 4, True),
    )
    tap = Tap(live)
    assert [batch[0].tolist() for batch in live] == [[9, 8, 7, 6], [5, 4, 3, 2]]
    assert tap.batches == [(0, (0, 1, 2, 3)), (1, (4, 5, 6, 7))]
    assert live.batch_sampler.batch_size == 4
