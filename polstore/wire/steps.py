"""The step records of a segment: which samples each step used, with which hyperparameters, and its loss.

One blob per segment; the segment record holds its SHA-256. Implements specs/run-records.md, section "Step records".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from polstore.errors import MalformedError
from polstore.wire import canonical
from polstore.wire.fields import MAX_INDEX, Fields
from polstore.wire.manifest import MAX_EVERY
from polstore.wire.state import check_order

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = ["MAX_HYPERPARAMETERS", "MAX_STEPS_BLOB", "Groups", "Microbatch", "Step", "Steps", "parse_groups"]

MAX_STEPS_BLOB = 64 * 2**20  # bytes: 1,000 steps of 16k samples each, at 4 bytes an index
MAX_HYPERPARAMETERS = 16 * 2**20  # bytes of one set of hyperparameters
MAX_MICROBATCHES = 65_536
MAX_RANKS = 65_536
MAX_SAMPLES = 2**24  # of one microbatch on one rank
MAX_GROUPS = 65_536

Groups: TypeAlias = "tuple[tuple[tuple[str, Value], ...], ...]"
"""Hyperparameters: per parameter group, sorted (name, value) pairs."""


@dataclass(frozen=True)
class Microbatch:
    """One batch as it was loaded: its number since the start of the run and, per rank, its sample indices."""

    number: int
    ranks: tuple[tuple[int, ...], ...]

    def value(self) -> Value:
        """Return the microbatch as a canonical value."""
        return (self.number, self.ranks)

    @classmethod
    def from_value(cls, value: Value) -> Microbatch:
        """Parse a microbatch; raises `MalformedError`."""
        fields = Fields(value, "microbatch", 2)
        number = fields.integer("number")
        ranks = []
        for rank in fields.array("ranks", MAX_RANKS):
            samples = Fields((rank,), "microbatch", 1).array("samples", MAX_SAMPLES)
            if not all(type(index) is int and 0 <= index <= MAX_INDEX for index in samples):
                raise MalformedError("microbatch, sample indices", expected=f"integers from 0 to {MAX_INDEX}")
            ranks.append(tuple(index for index in samples if isinstance(index, int)))
        return cls(number, tuple(ranks))


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        microbatches: what it was computed from, in order.
        hyperparameters: those the optimizer really used; empty when it skipped the step (gradient overflow).
        loss: the loss as the loop reported it, or None.
    """

    microbatches: tuple[Microbatch, ...]
    hyperparameters: Groups
    loss: float | None

    def value(self) -> Value:
        """Return the step as a canonical value."""
        return (tuple(microbatch.value() for microbatch in self.microbatches), self.hyperparameters, self.loss)

    @classmethod
    def from_value(cls, value: Value) -> Step:
        """Parse a step; raises `MalformedError`."""
        fields = Fields(value, "step record", 3)
        microbatches = tuple(map(Microbatch.from_value, fields.array("microbatches", MAX_MICROBATCHES)))
        groups, loss = parse_groups(fields.value()), fields.value()
        if loss is not None and not isinstance(loss, float):
            raise MalformedError("step record, field loss", expected="a float64 or nil", got=loss)
        return cls(microbatches, groups, loss)


@dataclass(frozen=True)
class Steps:
    """All steps of one segment, from ``start_step`` on."""

    start_step: int
    steps: tuple[Step, ...]

    TAG = "polstore/steps/v1"

    def encode(self) -> bytes:
        """Return the blob's bytes."""
        return canonical.encode((self.TAG, self.start_step, tuple(step.value() for step in self.steps)))

    @classmethod
    def parse(cls, data: bytes) -> Steps:
        """Parse a blob; raises `MalformedError`."""
        fields = Fields(canonical.decode(data, limit=MAX_STEPS_BLOB, what="step records"), "step records", 3)
        fields.tag(cls.TAG)
        start_step = fields.integer("start_step")
        return cls(start_step, tuple(map(Step.from_value, fields.array("steps", MAX_EVERY))))

    def samples(self) -> set[int]:
        """Return the indices of all samples that the segment used."""
        return {
            index
            for step in self.steps
            for microbatch in step.microbatches
            for rank in microbatch.ranks
            for index in rank
        }


def parse_groups(value: Value) -> Groups:
    """Parse hyperparameters; raises `MalformedError`."""
    groups = []
    for group in Fields((value,), "hyperparameters", 1).array("groups", MAX_GROUPS):
        pairs = []
        for item in Fields((group,), "hyperparameters", 1).array("group", 256):
            pair = Fields(item, "hyperparameter", 2)
            pairs.append((pair.text("name", 128), pair.value()))
        check_order((name for name, _ in pairs), "hyperparameters of a group")
        groups.append(tuple(pairs))
    return tuple(groups)
