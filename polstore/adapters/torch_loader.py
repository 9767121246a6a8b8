"""A tap on a DataLoader: sees each batch as it is handed to the loop, and makes its drawing repeatable.

The tap stands around the outermost batch sampler and the dataset. The order of samples is drawn from a stream of its
own, keyed by epoch, and each batch is loaded under a stream keyed by its number; so neither depends on how many workers
prefetch. A DataLoader asks its sampler once more for every batch that it hands out (workers or not), after first asking
``prefetch_factor * num_workers`` times ahead: that is how a batch handed out is told from one fetched ahead. One batch
more is always drawn, so that the last one of a pass is known as such when it is handed out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset

from polstore.codec.live.order import batches_of_pass, pass_length
from polstore.codec.live.samples import load_samples
from polstore.errors import TrainingError
from polstore.wire.randomness import Stream, stream_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch.utils.data import DataLoader

__all__ = ["LoaderTap", "Position"]


@dataclass(frozen=True)
class Position:
    """Where in the data a run stands.

    Attributes:
        epoch: number of the pass over the data that comes next or is under way.
        batch: batches of it that were handed out.
        number: number of the next batch: batches of the run that were handed out, and those that loops left out when
            they broke off a pass.
    """

    epoch: int = 0
    batch: int = 0
    number: int = 0


class LoaderTap:
    """The tap on one loader, from `install` to `remove`.

    Args:
        loader: a DataLoader over a map-style dataset, not yet iterated.
        seed: the run's seed, 32 bytes.
        position: where to go on: batches before it are drawn and dropped without being loaded.
        on_batch: called with (batch number, sample indices) just before the loop gets that batch.
        on_pass: called when the loop begins a pass over the data.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        seed: bytes,
        position: Position,
        on_batch: Callable[[int, Sequence[int]], None],
        on_pass: Callable[[], None],
    ) -> None:
        _check(loader)
        self._loader = loader
        self._before = (loader.batch_sampler, loader.dataset)
        self._on_batch = on_batch
        self._on_pass = on_pass
        self._removed = False
        self._start: Position | None = position
        self.seed = seed
        self.position = position
        self.exhausted = False

    def install(self) -> None:
        """Put the tap in place. A DataLoader refuses plain assignment of these attributes once it is built."""
        self._loader.__dict__["batch_sampler"] = _TappedSampler(self, self._loader)
        self._loader.__dict__["dataset"] = _KeyedDataset(self._before[1], self.seed)

    def remove(self) -> None:
        """Leave the loader as it was; a pass that is still under way goes on unseen."""
        self._removed = True
        self._loader.__dict__["batch_sampler"], self._loader.__dict__["dataset"] = self._before
        if getattr(self._loader, "_iterator", None) is not None:
            self._loader._iterator = None  # persistent workers hold the tapped dataset; the next pass starts others

    def next_position(self) -> Position:
        """Return the position from which a later run would go on: a finished epoch is left behind."""
        return self._after_pass() if self.exhausted else self.position

    def begin_epoch(self) -> tuple[Position, int]:
        """Return where a fresh pass over the data starts, and how many batches of it to drop."""
        if not self._removed:
            self._on_pass()
        if self._start is not None:
            start, self._start = self._start, None
            return Position(start.epoch, 0, start.number - start.batch), start.batch
        return self._after_pass(), 0

    def _after_pass(self) -> Position:
        """Return where the next pass begins. Where passes have a length, a batch's number says where in them it is,
        also after a loop has left one early."""
        epoch, length = self.position.epoch + 1, pass_length(self._before[0])
        return Position(epoch, 0, self.position.number if length is None else epoch * length)

    def hand_out(self, position: Position, indices: Sequence[int], *, last: bool) -> None:
        """Report a batch to the recorder; ``position`` is the one after it."""
        if not self._removed:
            self._on_batch(position.number - 1, indices)
        self.position, self.exhausted = position, last


class _TappedSampler:
    """Stands in for the batch sampler; everything but iteration is the sampler's own."""

    def __init__(self, tap: LoaderTap, loader: DataLoader[Any]) -> None:
        self._tap = tap
        self._sampler: Any = loader.batch_sampler
        self._ahead = loader.num_workers * (loader.prefetch_factor or 0)

    def __iter__(self) -> Iterator[list[int]]:
        return _TappedBatches(self._tap, self._sampler, self._ahead)

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)


class _TappedBatches:
    """One pass over the batches. It begins with the first request: DataLoaders make iterators that they never use."""

    def __init__(self, tap: LoaderTap, sampler: Any, ahead: int) -> None:
        self._tap = tap
        self._sampler = sampler
        self._ahead = ahead
        self._requests = 0
        self._waiting: deque[list[int]] = deque()
        self._batches: Iterator[Sequence[int]] | None = None  # None at the end, too
        self._next: list[int] | None = None  # drawn, not yet asked for
        self._begun = False

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        if not self._begun:
            self._begin()
        self._requests += 1
        batch = self._draw()
        if batch is not None:
            self._waiting.append(batch)
        if self._requests > self._ahead and self._waiting:
            self._hand_out(self._waiting.popleft())
        elif batch is None and not self._waiting:
            self._tap.exhausted = True
        if batch is None:
            raise StopIteration
        return batch

    def _begin(self) -> None:
        self._begun = True
        self._position, dropped = self._tap.begin_epoch()
        self._tap.position, self._tap.exhausted = self._position, False
        self._batches = batches_of_pass(self._sampler, self._tap.seed, self._position.epoch)
        self._number = self._position.number
        self._next = self._fetch()
        for _ in range(dropped):
            if self._draw() is None:
                raise TrainingError(
                    "the loader has fewer batches than were recorded", expected=f"at least {dropped}", got="fewer"
                )
        self._position = Position(self._position.epoch, dropped, self._position.number + dropped)
        self._tap.position = self._position

    def _draw(self) -> list[int] | None:
        """Return the next batch's indices, or None at the end."""
        batch = self._next
        if batch is not None:
            self._next = self._fetch()
        return batch

    def _fetch(self) -> list[int] | None:
        """Have the sampler draw a batch under the epoch's own generators; None at the end."""
        if self._batches is None:
            return None
        indices = next(self._batches, None)
        if indices is None:
            self._batches = None
            return None
        try:
            batch = _KeyedBatch(int(index) for index in indices)
        except (TypeError, ValueError) as error:
            raise TrainingError("a sampler's indices", expected="numbers of samples", got=indices) from error
        batch.number = self._number
        self._number += 1
        return batch

    def _hand_out(self, batch: list[int]) -> None:
        now = self._position
        self._position = Position(now.epoch, now.batch + 1, now.number + 1)
        self._tap.hand_out(self._position, batch, last=self._next is None and not self._waiting)


class _KeyedBatch(list[int]):
    """A batch's sample indices and its number, which travel to the process that loads it."""

    number: int


class _KeyedDataset:
    """Stands in for the dataset; loads each batch under the generators' state of that batch."""

    def __init__(self, dataset: Any, seed: bytes) -> None:
        self._dataset = dataset
        self._seed = seed

    def __getitems__(self, batch: list[int]) -> list[Any]:
        if not isinstance(batch, _KeyedBatch):
            raise TrainingError(
                "a sampler of the loader's changed the batch", expected="it as it was drawn", got=type(batch)
            )
        return load_samples(self._dataset, batch, stream_seed(self._seed, Stream.FETCH, batch.number, 0))

    def __getitem__(self, index: Any) -> Any:
        return self._dataset[index]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_dataset" not in self.__dict__:  # while it is being unpickled in a worker
            raise AttributeError(name)
        return getattr(self._dataset, name)


def _check(loader: Any) -> None:
    """Refuse loaders whose batches cannot be attributed to samples."""
    for wrong, message in (
        (isinstance(loader.dataset, IterableDataset), "a map-style dataset; for others call rec.step(indices)"),
        (loader.batch_sampler is None, "automatic batching; for other loaders call rec.step(indices)"),
        (not getattr(loader, "in_order", True), "in_order=True"),
        (getattr(loader, "_iterator", None) is not None, "a loader whose persistent workers have not started"),
        (isinstance(loader.batch_sampler, _TappedSampler), "a loader that no other recorder has tapped"),
    ):
        if wrong:
            raise TrainingError("this loader cannot be recorded", expected=message, got=type(loader.dataset).__name__)
