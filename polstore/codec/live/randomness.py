"""Seeding every generator that a training loop may draw from: Python's, numpy's legacy one, and torch's.

Implements specs/run-records.md, section "Randomness"; which seed belongs where is `polstore.wire.randomness`.
"""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Generators", "preserved", "seed_all", "seed_cpu"]


# torch.manual_seed costs 0.2 ms where no other device is built in: it takes down a stack trace for each kind.
CPU_ONLY = not (
    torch.backends.cuda.is_built()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    or torch.backends.mps.is_built()
    or torch.xpu.is_available()
)


def seed_all(seed: bytes) -> None:
    """Seed all generators of this process, on every device, from 32 bytes."""
    seed_cpu(seed)
    if not CPU_ONLY:
        torch.manual_seed(_word(seed))


def seed_cpu(seed: bytes) -> None:
    """Seed the CPU's generators of this process from 32 bytes."""
    random.seed(seed)
    np.random.seed(np.frombuffer(seed, dtype=">u4").astype(np.uint32))  # the one that loops draw from
    torch.default_generator.manual_seed(_word(seed))


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Put the CPU's generators back afterwards as they were."""
    outer = _read()
    try:
        yield
    finally:
        _write(outer)


class Generators:
    """A private state of the CPU's generators, seeded from 32 bytes, that is in force inside `active` only."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._state: tuple[Any, Any, torch.Tensor] | None = None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Put this state in force, and afterwards the one that was."""
        outer = _read()
        if self._state is None:
            seed_cpu(self._seed)
        else:
            _write(self._state)
        try:
            yield
        finally:
            self._state = _read()
            _write(outer)


def _word(seed: bytes) -> int:
    return int.from_bytes(seed[:8], "big")


def _read() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _write(state: tuple[Any, Any, torch.Tensor]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
