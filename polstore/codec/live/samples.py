"""Samples of a dataset: what is committed of one, and how a batch is loaded.

A sample is committed as ``dataset[i]`` gives it, label included, with the generators seeded for that sample, so a
dataset that augments on the fly commits to one drawing of it. A batch is loaded under a seed of its own, so a replay
augments as the recording did, in whatever process. Implements specs/run-records.md, section "Dataset".
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from polstore.codec.live.arrays import dtype_name, raw_bytes
from polstore.codec.live.randomness import Generators, preserved, seed_cpu
from polstore.codec.live.tree import flatten
from polstore.errors import MalformedError, TrainingError
from polstore.wire.merkle import leaf_hash
from polstore.wire.randomness import Stream, sample_salt, stream_seed
from polstore.wire.sample import sample_leaf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from polstore.wire.canonical import Value

__all__ = ["dataset_hashes", "load_batch", "load_samples", "sample_content", "sample_hash"]


def sample_content(sample: Any) -> Value:
    """Return what is committed of a sample: its tree, each tensor as (dtype, shape, SHA-256 of its bytes)."""

    def digest(path: str, tensor: torch.Tensor) -> Value:
        return (dtype_name(path, tensor), tuple(tensor.shape), hashlib.sha256(raw_bytes(tensor).data).digest())

    return flatten(sample, "sample", digest)


def sample_hash(dataset: Any, index: int, salt: bytes) -> bytes:
    """Return the Merkle leaf hash of sample ``index`` under its own 32-byte ``salt``."""
    with preserved():
        return _seeded_hash(dataset, index, salt)


def dataset_hashes(dataset: Any, salt: bytes, progress: Callable[[int, int], None]) -> list[bytes]:
    """Return the leaf hash of every sample, in order; ``salt`` is the dataset's secret."""
    size = len(dataset)
    hashes = []
    with preserved():  # once for all samples: it costs more than hashing a small one
        for index in range(size):
            hashes.append(_seeded_hash(dataset, index, sample_salt(salt, index)))
            if index % 256 == 0 or index == size - 1:
                progress(index + 1, size)
    return hashes


def _seeded_hash(dataset: Any, index: int, salt: bytes) -> bytes:
    seed_cpu(stream_seed(b"", Stream.SAMPLE, index))
    sample = dataset[index]
    try:
        return leaf_hash(sample_leaf(salt, sample_content(sample)))
    except (MalformedError, RecursionError) as error:
        raise TrainingError(f"sample {index} cannot be committed: {error}") from error


def load_samples(dataset: Any, indices: Sequence[int], seed: bytes) -> list[Any]:
    """Load samples as a DataLoader's fetcher does, under the generators' state ``seed``."""
    with Generators(seed).active():
        if getattr(dataset, "__getitems__", None):
            return list(dataset.__getitems__(list(indices)))
        return [dataset[index] for index in indices]


def load_batch(loader: Any, indices: Sequence[int], run_seed: bytes, number: int) -> Any:
    """Load batch ``number`` of a run again: the samples at ``indices``, collated as ``loader`` collates."""
    samples = load_samples(loader.dataset, indices, stream_seed(run_seed, Stream.FETCH, number, 0))
    return loader.collate_fn(samples)
