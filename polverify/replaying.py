"""Check 10 over all opened segments: while one trains, a second thread finishes the one before and decodes the next.

Only the thread of the caller trains and touches the recipe. The second one works on values that nothing changes any
more: it decodes snapshots, and quantises, hashes and measures what was copied out of the live state. So bits do not
depend on it. At most 19 snapshots are held, however many segments there are: start, end and two bases of the segment
that trains and of the next; of the one before its start, end, base, and its end as replayed, twice; two while a chain
is decoded, and the four that `States` keeps. What decides a segment is `polverify.replay.comparison`. Implements
specs/verification.md, check 10.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from polstore.errors import ProofError
from polverify.audit import check_norms
from polverify.opened import put_together
from polverify.verdict import Outcome, SegmentResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from polstore.codec.snapshot import Snapshot
    from polstore.wire.manifest import Manifest
    from polstore.wire.segment import SegmentRecord
    from polstore.wire.steps import Steps
    from polverify.noise import Segment
    from polverify.replay.session import Session
    from polverify.request import Request
    from polverify.states import States

__all__ = ["REPLAYING", "Decided", "Material", "replay_in_turn"]

REPLAYING = "replaying"  # what progress is reported as


@dataclass(frozen=True)
class Material:
    """All that replays of a run's segments take.

    Attributes:
        request: what the verifier wants to know.
        manifest: of the run.
        records: all of its segments.
        steps: step records of the opened segments, by index.
        states: gives the snapshots.
        session: the verifier's recipe, built.
    """

    request: Request
    manifest: Manifest
    records: Sequence[SegmentRecord]
    steps: Mapping[int, Steps]
    states: States
    session: Session

    def segment(self, record: SegmentRecord) -> Segment:
        """Put together what the replay of one segment needs; raises `MalformedError`."""
        return put_together(record, self.records, self.steps[record.index], self.states, self.manifest.fidelity)


@dataclass(frozen=True)
class Decided:
    """What the replay of one segment came to, and whether its norms were found to be those of its snapshots."""

    result: SegmentResult
    norms: bool


def replay_in_turn(
    material: Material, opened: Sequence[int], progress: Callable[[int], None] = lambda _steps: None
) -> Iterator[Decided]:
    """Replay segments one after the other and yield what each came to, in their order.

    Args:
        material: of the run.
        opened: the segments.
        progress: told the steps trained so far, of all of them.

    Raises:
        ProofError: a segment does not match; the first in order decides, whatever comes to light sooner.
        CallerError: this machine cannot run it.
    """
    from polverify.replay.comparison import Comparison  # loads torch

    comparison = Comparison(material.session, material.request, material.manifest.fidelity)
    beside = ThreadPoolExecutor(1, thread_name_prefix="polverify-replay")
    before = 0
    last: Future[Decided] | None = None
    try:
        ahead = deque(_fetch(beside, material, index) for index in opened[:1])
        for place, index in enumerate(opened, 1):
            record = material.records[index]
            segment, end = ahead.popleft()
            try:
                found = segment.result()
                ahead.extend(_fetch(beside, material, after) for after in opened[place : place + 1])
                rest = comparison.start(found, end.result, partial(_report, progress, before, last))
            except Exception:
                if last is not None:
                    yield last.result()  # or what it raises, since it comes earlier in the run
                raise
            if last is not None:
                yield last.result()
            last = beside.submit(_finish, material.records, rest, found, end.result)
            before += record.end_step - record.start_step
            del segment, end, found, rest  # else they would be held while the next segment trains
        if last is not None:
            yield last.result()
    finally:
        beside.shutdown(cancel_futures=True)


def _fetch(beside: ThreadPoolExecutor, material: Material, index: int) -> tuple[Future[Segment], Future[Snapshot]]:
    """Have a segment decoded: what its replay starts from, and what it is said to end in."""
    record = material.records[index]
    return beside.submit(material.segment, record), beside.submit(material.states.get, record.end_state)


def _report(progress: Callable[[int], None], before: int, last: Future[Decided] | None, done: int) -> None:
    """Report progress; raises what has failed earlier in the run, so that nothing is trained in vain."""
    if last is not None and last.done():
        last.result()
    progress(before + done)


def _finish(
    records: Sequence[SegmentRecord],
    rest: Callable[[], SegmentResult],
    segment: Segment,
    end: Callable[[], Snapshot],
) -> Decided:
    """Decide a segment, and compute the norms of one that passed while its snapshots are at hand."""
    result = rest()
    norms = False
    if result.outcome is Outcome.PASSED:
        with suppress(ProofError):  # which is for check 11 to find
            check_norms(records, segment.record, segment.start, segment.base, end())
            norms = True
    return Decided(result, norms)
