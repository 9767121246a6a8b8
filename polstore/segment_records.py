"""The segment records of a run as a prover needs them: all are carried, and few looked at.

Parsing a record takes longer than all else that is done with it, so each is parsed when it is first asked for. What is
found here was signed; the unsigned tables of the store are not asked. Does no I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from polstore.errors import DamagedError
from polstore.wire.segment import SegmentRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SegmentRecords"]


class SegmentRecords:
    """The records among a run's leaves, by index; what is malformed raises `MalformedError` when it is asked for.

    Args:
        leaves: all leaves under a signed root, the manifest first, and at least one record.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._leaves = leaves
        self._parsed: dict[int, SegmentRecord] = {}

    def __len__(self) -> int:
        return len(self._leaves) - 1

    def __getitem__(self, index: int) -> SegmentRecord:
        if index not in self._parsed:
            self._parsed[index] = SegmentRecord.parse(self._leaves[index + 1])
        return self._parsed[index]

    def needed_states(self, segments: Sequence[int]) -> list[bytes]:
        """Return the digests of the snapshots at both ends of each segment, and of those its end is quantised against.

        They come in the order of their steps, each once.

        Raises:
            DamagedError: a segment is quantised against a step at which there is no snapshot.
        """
        needed: dict[int, bytes] = {}  # by step
        for index in segments:
            record = self[index]
            needed[record.start_step], needed[record.end_step] = record.start_state, record.end_state
        for index in segments:
            base = self[index].base_step
            if base is not None and base not in needed:
                needed[base] = self._state_at(base)
        return list(dict.fromkeys(needed[step] for step in sorted(needed)))

    def _state_at(self, step: int) -> bytes:
        """Return the digest of the snapshot at a step, found by bisection: the steps of the records ascend."""
        after = bisect_right(range(len(self)), step, key=lambda index: self[index].start_step)
        record = self[max(after - 1, 0)]
        if step == record.start_step:
            return record.start_state
        if step == record.end_step:
            return record.end_state
        expected = f"{record.start_step} or {record.end_step}"
        raise DamagedError("a segment is quantised against a step without a snapshot", expected=expected, got=step)
