"""Keyed randomness: every random stream of a run is seeded from the run's seed and its place in the run.

Because a stream depends on nothing but its place, a replay of one segment draws what the recording drew, whatever
prefetched, crashed or ran before it. Implements specs/run-records.md, section "Randomness" (design: counter-based
randomness, paper section VIII). Seeds no generator: `polstore.codec.live` does that.
"""

from __future__ import annotations

import hashlib
import hmac

from polstore.wire import canonical

__all__ = ["SEED_SIZE", "Stream", "sample_salt", "stream_seed"]

SEED_SIZE = 32  # bytes of a run's seed


class Stream:
    """The names of the streams."""

    INITIAL = "initial"  # building the model; numbers: none
    EPOCH = "epoch"  # drawing the order of samples; numbers: epoch
    FETCH = "fetch"  # loading one batch, augmentation included; numbers: batch since the start of the run, rank
    STEP = "step"  # everything else in a step; numbers: step, microbatch, rank
    SAMPLE = "sample"  # loading one sample to commit to the dataset; numbers: sample index


def stream_seed(seed: bytes, stream: str, *numbers: int) -> bytes:
    """Return the 32-byte seed of one stream: SHA-256 over the canonical encoding of its name and place."""
    return hashlib.sha256(canonical.encode(("polstore/randomness/v1", seed, stream, numbers))).digest()


def sample_salt(salt: bytes, index: int) -> bytes:
    """Return the 32-byte salt of sample ``index``: HMAC-SHA256 under the dataset's secret salt."""
    return hmac.digest(salt, index.to_bytes(8, "big"), "sha256")
