"""Whether the samples of the opened segments come in the order that the run's seed gives, where that was declared.

The pass and the place of a batch follow from its number; the sampler of the verifier's own recipe draws the pass again.
Numbers go on from one opened segment to the next, or else passes could be chosen at will among countless ones.
Implements specs/verification.md, check 9, part "order".
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from polstore.codec.live.order import batches_of_pass, follows_seed, pass_length
from polstore.errors import DataError, MissingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from polstore.wire.steps import Steps

__all__ = ["check_order"]


def check_order(sampler: Any, seed: bytes, segments: Iterable[Steps]) -> int | None:
    """Draw the order of samples again and compare it with the committed one.

    Args:
        sampler: the batch sampler of the verifier's own loader.
        seed: the run's seed.
        segments: step records of the opened segments, ascending.

    Returns:
        How many batches were left out, which is what breaking off a pass does; where steps lie between that are not
        opened, how many more than those can have used, each as many as the largest step of the opened ones. None if
        this sampler's order does not follow from the seed, so that nothing could be compared.

    Raises:
        DataError: other samples than the seed gives, batches left out inside a pass, or fewer batches than steps.
        MissingError: the sampler fails here.
    """
    length = pass_length(sampler) if follows_seed(sampler) else None
    if length is None:
        return None
    order = _Order(sampler, seed, length)
    segments = tuple(segments)
    most = max((len(step.microbatches) for steps in segments for step in steps.steps), default=0)
    left_out, last, end = 0, -1, 0
    for steps in segments:
        unseen = steps.start_step - end
        end = steps.start_step + len(steps.steps)
        for number, step in enumerate(steps.steps, steps.start_step):
            for microbatch in step.microbatches:
                got = microbatch.number
                if unseen:
                    if got <= last + unseen:
                        expected = f"{last + unseen + 1} or more, as each step before took one"
                        raise DataError(f"step {number}: batch number", expected=expected, got=got)
                    left_out += max(0, got - last - 1 - unseen * most)
                    unseen = 0
                elif got != last + 1:
                    if got <= last or got % length:
                        raise DataError(f"step {number}: batch number", expected=f"{last + 1} or a new pass", got=got)
                    left_out += got - last - 1
                last = got
                drawn = order.batch(got)
                if microbatch.ranks[0] != drawn:
                    raise DataError(
                        f"step {number}: samples of batch {got}, drawn from the seed",
                        expected=drawn,
                        got=microbatch.ranks[0],
                    )
    return left_out


class _Order:
    """The batches of the run by number; cheap as long as they are asked for in order."""

    def __init__(self, sampler: Any, seed: bytes, length: int) -> None:
        self._sampler = sampler
        self._seed = seed
        self._length = length
        self._next = 0  # number of the batch that the pass under way gives next
        self._batches: Iterator[Sequence[int]] = iter(())
        self._epoch = -1

    def batch(self, number: int) -> tuple[int, ...] | None:
        """Return the samples of batch ``number``; None if its pass has fewer batches."""
        epoch = number // self._length
        if epoch != self._epoch or number < self._next:
            self._batches = batches_of_pass(self._sampler, self._seed, epoch)
            self._epoch, self._next = epoch, epoch * self._length
        try:
            indices = next(islice(self._batches, number - self._next, None), None)
        except Exception as error:
            raise MissingError(f"the recipe's sampler fails here: {type(error).__name__}: {error}") from error
        self._next = number + 1
        return None if indices is None else tuple(int(index) for index in indices)
