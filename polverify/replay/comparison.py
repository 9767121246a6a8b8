"""Deciding one segment: bit for bit in its own environment class, within a measured tolerance elsewhere.

A tolerance is in play only where bits cannot be asked for, and only if the verifier wants it: he measures the noise
with replays of this very segment, now or beforehand (`polverify calibrate`). Implements specs/verification.md, check
10, and specs/tolerance.md, section "When".
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from polstore.codec.quantise import replays_exactly
from polstore.errors import ReplayError
from polstore.wire import canonical
from polverify.distance import normalised, reproduction_error
from polverify.noise import Floor, Replayed, Segment, measure
from polverify.replay.settings import settings_for
from polverify.rounding import hides_training
from polverify.tolerance import judge, require_scalars
from polverify.verdict import Outcome, SegmentResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from polstore.codec.snapshot import Snapshot
    from polverify.replay.session import Session
    from polverify.replay.settings import Setting
    from polverify.request import Request

__all__ = ["Comparison", "variations"]

EQUAL = "state digests are equal"


class Comparison:
    """Decides segments of one run.

    Args:
        session: the verifier's recipe, built.
        request: what the verifier wants to know.
        fidelity: of the run.
    """

    def __init__(self, session: Session, request: Request, fidelity: str) -> None:
        self._session = session
        self._request = request
        self._fidelity = fidelity

    def start(
        self, segment: Segment, committed: Callable[[], Snapshot], progress: Callable[[int], None]
    ) -> Callable[[], SegmentResult]:
        """Train a segment again, and return what decides it.

        Where the replay has to be exact, that is left to do: it quantises, hashes and compares, and any thread may do
        it while the next segment trains. Else it is done, since measuring the noise takes more training.

        Args:
            segment: the segment.
            committed: returns the snapshot that it is said to end in.
            progress: told the steps done so far.

        Raises:
            ReplayError: the replay does not match; the result may raise that, too.
            CallerError: this machine cannot run it.
        """
        differences = self._session.differences(segment.record.environment)
        tolerant = self._request.tolerant or self._request.calibration is not None
        if differences and not tolerant:
            detail = "another environment class: " + "; ".join(differences)
            return partial(_result, segment, Outcome.UNDECIDED, detail)
        # An exact start of a float16 run leads to the committed end, too: who asks for a tolerance gets no more of it
        # than is needed.
        certain = replays_exactly(self._fidelity) or (tolerant and not segment.start_rounded)
        if certain and not differences:
            return partial(self._exactly, segment, self._session.train(segment, progress, exact=True), committed)
        found = self._within(segment, committed, progress, another=bool(differences))
        return lambda: found

    def _exactly(self, segment: Segment, trained: Replayed, committed: Callable[[], Snapshot]) -> SegmentResult:
        """Decide a segment whose replay has to end in the committed state, bit for bit."""
        replayed, end = self._session.as_committed(segment, trained), committed()
        if replayed.end.digest() != segment.record.end_state:
            raise ReplayError(
                f"{_end(segment)} ({_mismatch(end, replayed.end)})", expected=end.digest(), got=replayed.end.digest()
            )
        return self._passed(segment, trained, replayed, EQUAL, self._error(segment, replayed, end))

    def _passed(
        self, segment: Segment, trained: Replayed, replayed: Replayed, detail: str, measured: dict[str, Any]
    ) -> SegmentResult:
        """Return that a segment passed, unless rounding would have made any training end there."""
        hidden = None if segment.base is None else hides_training(segment.start, trained.end, replayed.end)
        if hidden is not None:
            return _result(segment, Outcome.UNDECIDED, hidden, measured)
        return _result(segment, Outcome.PASSED, detail, measured)

    def _within(
        self,
        segment: Segment,
        committed: Callable[[], Snapshot],
        progress: Callable[[int], None],
        *,
        another: bool,
    ) -> SegmentResult:
        """Decide a segment that may end elsewhere: in another environment class, or after a rounded start."""
        tolerant = self._request.tolerant or self._request.calibration is not None
        trained = self._session.train(segment, progress, exact=False)
        replayed, end = self._session.as_committed(segment, trained), committed()
        if replayed.end.digest() == segment.record.end_state:
            if replayed.mismatch is not None:
                raise replayed.mismatch
            if _losses_are_equal(segment, replayed):
                return self._passed(segment, trained, replayed, EQUAL, self._error(segment, replayed, end))
        if not tolerant:
            require_scalars(_end(segment), end, replayed)
            detail = (
                f"fidelity {self._fidelity} needs a tolerance: training went on from other values than were committed"
            )
            return _result(segment, Outcome.UNDECIDED, detail, self._error(segment, replayed, end))
        floor = self._floor(segment, replayed, another=another)
        if floor is None:
            detail = "the noise of this segment was not measured"
            return _result(segment, Outcome.UNDECIDED, detail, self._error(segment, replayed, end))
        judgement = judge(segment, end, replayed, floor, comparable=self._comparable(segment, replayed))
        measured = self._error(segment, replayed, end) | {"tolerance": judgement.measured}
        if judgement.outcome is Outcome.PASSED:
            return self._passed(segment, trained, replayed, judgement.detail, measured)
        return _result(segment, judgement.outcome, judgement.detail, measured)

    def _error(self, segment: Segment, replayed: Replayed, committed: Snapshot) -> dict[str, Any]:
        """Return ε in the paper's terms, and apply the paper's criterion where the verifier wants it."""
        error = reproduction_error(replayed.end, committed)
        if self._request.criterion is not None:
            self._request.criterion.require(segment.name, error, self._request.d_ref)
        return {"epsilon": {"raw": error, "normalised": normalised(error, self._request.d_ref)}}

    def _floor(self, segment: Segment, replayed: Replayed, *, another: bool) -> Floor | None:
        """Return the noise of a segment: out of the calibration, or measured now; None if neither can be had."""
        calibration = self._request.calibration
        if calibration is not None:
            calibration.require_machine(self._session.here())
            found = calibration.floor(segment)
            if found is not None or not self._request.tolerant:
                return found
        settings = settings_for(segment.record.environment, another=another, rounded=segment.start_rounded)
        floor = measure(replayed, variations(self._session, segment, settings, self._request.progress))
        return floor if floor.settings else None

    def _comparable(self, segment: Segment, replayed: Replayed) -> bool:
        """Say whether this machine draws the random numbers of the recorded one, or none are drawn."""
        ours, theirs = self._session.here(), segment.record.environment
        same_device = (ours.device, ours.device_name) == (theirs.device, theirs.device_name)
        return ours.torch == theirs.torch and (same_device or not replayed.drew)


def variations(
    session: Session, segment: Segment, settings: Sequence[Setting], progress: Callable[[str, int, int], None]
) -> Iterator[tuple[str, Replayed]]:
    """Replay a segment under each setting; yield the name of each with what it came to."""
    what, steps = f"measuring the noise of {segment.name}", len(segment.steps.steps)
    for done, setting in enumerate(settings):

        def report(step: int, before: int = done * steps) -> None:
            progress(what, before + step, len(settings) * steps)

        with suppress(ReplayError):  # the recipe cannot run so; the reference shows that it can run
            yield setting.name, session.vary(segment, setting, report)


def _result(segment: Segment, outcome: Outcome, detail: str, measured: dict[str, Any] | None = None) -> SegmentResult:
    record = segment.record
    return SegmentResult(record.index, record.start_step, record.end_step, outcome, detail, measured or {})


def _losses_are_equal(segment: Segment, replayed: Replayed) -> bool:
    """Say whether every recorded loss is the replay's, to the last bit."""
    pairs = zip(segment.steps.steps, replayed.losses, strict=True)
    return all(step.loss is None or canonical.encode(step.loss) == canonical.encode(loss) for step, loss in pairs)


def _end(segment: Segment) -> str:
    return f"{segment.name}, state after step {segment.record.end_step}"


def _mismatch(committed: Snapshot, end: Snapshot) -> str:
    """Say where a replayed state differs from the committed one; scalars decide how tensors are rounded besides."""
    theirs = {entry.name: entry for entry in committed.entries()}
    names = [entry.name for entry in end.entries() if theirs.get(entry.name) != entry]
    found = ["scalars differ"] if committed.scalars != end.scalars else []
    if names:
        found.append(f"{len(names)} tensors differ, the first is {names[0]}")
    return ", ".join(found)
