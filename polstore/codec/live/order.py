"""The order of samples in one pass over the data, drawn from the run's seed alone.

What the recorder does while it records and a verifier does again. It holds for PyTorch's own samplers, which draw from
torch's generators or from one that they were given; a sampler of another class may keep a state of its own, so nothing
is promised of its order. Implements specs/run-records.md, section "Order of samples".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

from polstore.codec.live.randomness import Generators
from polstore.wire.randomness import Stream, stream_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["batches_of_pass", "follows_seed", "pass_length"]

SAMPLERS = (RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler)  # no state between passes


def follows_seed(sampler: Any) -> bool:
    """Say whether a loader's batch sampler is PyTorch's own throughout, so that a pass follows from the seed."""
    return type(sampler) is BatchSampler and type(sampler.sampler) in SAMPLERS


def pass_length(sampler: Any) -> int | None:
    """Return how many batches a pass has, at least one; None where that is not known beforehand."""
    return max(1, len(sampler)) if follows_seed(sampler) else None


def batches_of_pass(sampler: Any, seed: bytes, epoch: int) -> Iterator[Sequence[int]]:
    """Yield the sample indices of each batch of pass ``epoch``, drawn under that pass's own generators.

    Args:
        sampler: the loader's batch sampler.
        seed: the run's seed, 32 bytes.
        epoch: number of the pass, from 0.
    """
    key = stream_seed(seed, Stream.EPOCH, epoch)
    generators = Generators(key)
    for generator in _own_generators(sampler):
        generator.manual_seed(int.from_bytes(key[:8], "big"))
    with generators.active():
        batches = iter(sampler)
    while True:
        with generators.active():
            indices = next(batches, None)
        if indices is None:
            return
        yield indices


def _own_generators(sampler: Any) -> list[torch.Generator]:
    """Return the generators that a sampler was given to draw from in place of the default one."""
    found = (getattr(owner, "generator", None) for owner in (sampler, getattr(sampler, "sampler", None)))
    return [generator for generator in found if isinstance(generator, torch.Generator)]
