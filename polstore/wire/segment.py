"""The segment record: leaf i+1 of a run's tree commits to segment i.

Implements specs/run-records.md, section "Segment record". The record of every step is a blob of its own
(`polstore.wire.steps`), so a leaf stays small whatever the segment's length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.errors import MalformedError
from polstore.wire import canonical
from polstore.wire.environment import Environment
from polstore.wire.extensions import MAX_EXTENSIONS, Extensions, parse_extensions
from polstore.wire.fields import MAX_INDEX, Fields
from polstore.wire.manifest import MAX_EVERY, MAX_LEAF

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = ["Norms", "SegmentRecord"]


@dataclass(frozen=True)
class Norms:
    """How far the parameters moved over a segment: the paper's distances of W_end from W_start, in float64."""

    l1: float
    l2: float
    linf: float
    cos: float

    def value(self) -> Value:
        """Return the norms as a canonical value."""
        return (self.l1, self.l2, self.linf, self.cos)

    @classmethod
    def from_value(cls, value: Value) -> Norms:
        """Parse norms; raises `MalformedError`."""
        fields = Fields(value, "segment record, norms", 4)
        return cls(*(fields.number(name) for name in ("l1", "l2", "linf", "cos")))


@dataclass(frozen=True)
class SegmentRecord:
    """The training steps ``[start_step, end_step)`` between two snapshots.

    Attributes:
        index: number of the segment; it is leaf ``index + 1``.
        start_step: first step of the segment.
        end_step: the step after its last one.
        start_state: state digest of the snapshot at ``start_step``.
        end_state: state digest of the snapshot at ``end_step``.
        base_step: step of the snapshot that the end snapshot was quantised against, or None for none.
        steps: SHA-256 of the segment's step records.
        environment: environment class in which it was trained.
        norms: how far the parameters moved.
        extensions: later commitments.
    """

    index: int
    start_step: int
    end_step: int
    start_state: bytes
    end_state: bytes
    base_step: int | None
    steps: bytes
    environment: Environment
    norms: Norms
    extensions: Extensions = ()

    TAG = "polstore/segment/v1"

    def encode(self) -> bytes:
        """Return the leaf's bytes; raises `MalformedError` if they are too many."""
        leaf = canonical.encode(
            (
                self.TAG,
                self.index,
                self.start_step,
                self.end_step,
                self.start_state,
                self.end_state,
                self.base_step,
                self.steps,
                self.environment.value(),
                self.norms.value(),
                self.extensions,
            )
        )
        if len(leaf) > MAX_LEAF:
            raise MalformedError("segment record is too long", expected=f"at most {MAX_LEAF} bytes", got=len(leaf))
        return leaf

    @classmethod
    def parse(cls, leaf: bytes) -> SegmentRecord:
        """Parse a leaf; raises `MalformedError`."""
        fields = Fields(canonical.decode(leaf, limit=MAX_LEAF, what="segment record"), "segment record", 11)
        fields.tag(cls.TAG)
        index = fields.integer("index")
        start_step = fields.integer("start_step")
        end_step = fields.integer("end_step", start_step + 1, min(start_step + MAX_EVERY, MAX_INDEX))
        start_state, end_state = fields.digest("start_state"), fields.digest("end_state")
        base = fields.value()
        if base is not None:
            base = Fields((base,), "segment record", 1).integer("base_step", 0, start_step)
        return cls(
            index=index,
            start_step=start_step,
            end_step=end_step,
            start_state=start_state,
            end_state=end_state,
            base_step=base,
            steps=fields.digest("steps"),
            environment=Environment.from_value(fields.value()),
            norms=Norms.from_value(fields.value()),
            extensions=parse_extensions(fields.array("extensions", MAX_EXTENSIONS), "segment record"),
        )
