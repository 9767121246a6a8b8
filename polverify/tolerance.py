"""Whether a replay that is not bit-exact still is the committed training, as far as measured noise lets anybody tell.

Used only in another environment class than the recorded one, and for fidelity ``float16``. Every tensor of the state is
compared, relative to its own update and to the noise floor that the verifier measured; the scalars must be equal. What
noise could hide makes the segment undecided. All constants are here, and nothing from a proof changes them. Implements
specs/tolerance.md.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING, Any

from polstore.codec.quantise import MOMENTS, Role, dropped_bits, roles_of
from polstore.errors import ReplayError
from polverify.noise import UNIT, Replayed, gap, largest_gap, size
from polverify.verdict import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.codec.snapshot import Snapshot, Tensor
    from polverify.noise import Floor, Segment

__all__ = ["CAP", "FACTOR", "GROSS", "MARGIN", "SHARE", "Judgement", "judge", "require_scalars"]

FACTOR = 8.0  # floors that an error may measure: the floor is the largest of a few draws, and small tensors scatter
CAP = 0.1  # of a tensor's update that a tolerance may measure for the tensor to count as compared, a tenth
# Of a compared tensor's update that is tolerated at least: one gate of a ReLU that flips moved tensors by up to 2 % of
# their updates in networks of a few thousand weights, and does so in one replay out of several.
JUMP = 0.03
SHARE = 0.9  # of a group's squared update that compared tensors must hold, or the group is not compared at all
MARGIN = 64.0  # floors beyond which noise explains nothing: 8 times the tolerance, hence never a draw of the same noise
GROSS = 0.5  # of a tensor's update that must be wrong besides: gates that flip are not noise that grows, see JUMP
QUANTUM = 2.0**-10  # a step of float16 relative to the largest difference that was rounded: where one value flips
MANTISSA_BITS = 23  # of float32; a step of a number without its lowest n bits is 2^(n - 23) of it
NAMED = 32  # tensors that a verdict lists by name; it counts them all
SHOWN = 20  # tensors nearest to their tolerance, of which a verdict gives error and tolerance


@dataclass(frozen=True)
class Judgement:
    """What the comparison of one segment came to.

    Attributes:
        outcome: PASSED within tolerance, or UNDECIDED; what must be rejected is raised.
        detail: one line.
        measured: the figures behind it, as plain data for the verdict.
    """

    outcome: Outcome
    detail: str
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Compared:
    """One tensor: all l2 distances in float64."""

    name: str
    group: str
    update: float  # of the verifier's own replay: the prover's end has no say in what is large
    error: float
    noise: float
    rounding: float  # one element of it, the largest, off by one unit, or by one step of a moment's quantisation
    step: float = 0.0  # one element of a weight off by one step of its difference from a base that the prover chose
    floor: float = 0.0
    numeric: bool = True  # else only equal or not: a counter of what passes a threshold may hang on rounding

    @property
    def told(self) -> bool:
        """Whether the tolerance is small enough to tell anything: against the update, or as a few rounding units."""
        return FACTOR * self.floor <= CAP * self.update or self.floor <= self.rounding

    @property
    def tolerance(self) -> float:
        """The largest error that noise may have made."""
        return max(FACTOR * self.floor, JUMP * self.update if self.told else 0.0)

    @property
    def fits(self) -> bool:
        """Whether the error is within tolerance; NaN is not."""
        return self.error <= self.tolerance

    @property
    def forged(self) -> bool:
        """Whether noise cannot explain the error: it is far beyond the floor, and most of the tensor's movement."""
        far = self.error > MARGIN * self.floor and self.error > GROSS * self.update
        return self.numeric and math.isfinite(self.floor) and far


def judge(segment: Segment, committed: Snapshot, replayed: Replayed, floor: Floor, *, comparable: bool) -> Judgement:
    """Compare a replay with what was committed.

    Args:
        segment: the segment.
        committed: the snapshot that it is said to end in.
        replayed: the replay in the recorded class, as far as it could be entered.
        floor: the noise that the verifier measured for this very segment.
        comparable: whether this machine draws the recorded one's random numbers. Where it may not, any error may be
            theirs, and only scalars can reject.

    Raises:
        ReplayError: other scalars or hyperparameters, other tensors, or an error that noise cannot explain.
    """
    name = f"{segment.name}, state after step {segment.record.end_step}"
    if not floor.unstable:
        require_scalars(name, committed, replayed)
    roles = zip(replayed.end.tensors, roles_of(replayed.end.tensors), strict=True)
    tensors = _with_floors([_compare(tensor, role, segment, committed, floor) for tensor, role in roles])
    losses = _losses(segment, replayed, floor)
    measured = _measured(tensors, floor)
    forged = [tensor for tensor in tensors if tensor.forged]
    comparable = comparable and not floor.unstable
    if forged and comparable:
        worst = max(forged, key=_over)
        raise ReplayError(
            f"{name}: {len(forged)} tensors differ by more than noise can explain, the most {worst.name}",
            expected=f"within {FACTOR:g} times the noise floor of {worst.floor:.3g}, update {worst.update:.3g}",
            got=f"{worst.error:.3g}",
        )
    wrong = [loss for loss in losses if loss.forged]
    if wrong and comparable:
        raise ReplayError(
            f"{wrong[0].name}: loss",
            expected=f"within {FACTOR * wrong[0].floor:.3g} of the replay's",
            got=wrong[0].error,
        )
    outside = [item for item in (*tensors, *losses) if not item.fits]
    hidden = [group for group, share in measured["compared"].items() if not share >= SHARE]
    if floor.unstable:
        doubt = "scalars hang on rounding here: the verifier's own replays do not agree on them"
    elif hidden:
        group = min(hidden, key=lambda each: measured["compared"][each])
        share = measured["compared"][group]
        doubt = f"noise hides too much: of {group} tensors only {share:.0%} of the update can be compared"
    elif outside:
        worst = max(outside, key=_over)
        doubt = (
            f"{worst.name} is off by {worst.error / worst.update if worst.update else math.inf:.2g} of its update and "
            f"{_over(worst):.2g} noise floors: too much to be accepted, too little to be called forged"
        )
    else:
        return Judgement(Outcome.PASSED, f"within tolerance: {_summary(tensors)}", measured)
    return Judgement(Outcome.UNDECIDED, doubt, measured)


def require_scalars(name: str, committed: Snapshot, replayed: Replayed) -> None:
    """Require what has to be equal in every mode: hyperparameters, scalars, and names, dtypes and shapes of tensors.

    Raises:
        ReplayError: something is not.
    """
    if replayed.mismatch is not None:
        raise replayed.mismatch
    if replayed.end.scalars != committed.scalars:
        raise ReplayError(
            f"{name}: scalars",
            expected=hashlib.sha256(committed.scalars).digest(),
            got=hashlib.sha256(replayed.end.scalars).digest(),
        )
    ours, theirs = ([(t.name, t.dtype, t.shape) for t in state.tensors] for state in (replayed.end, committed))
    if ours != theirs:
        first = next(pair for pair in zip_longest(theirs, ours) if pair[0] != pair[1])
        raise ReplayError(f"{name}: tensors", expected=first[0], got=first[1])


def _compare(tensor: Tensor, role: Role, segment: Segment, committed: Snapshot, floor: Floor) -> _Compared:
    about = (tensor.name, tensor.dtype, tensor.shape)
    before = segment.start.partner(*about)
    update = 0.0
    if tensor.dtype in UNIT:  # of others it is only asked whether they are equal
        update = size(tensor) if before is None else gap(tensor, before)
    rounding, quantum = UNIT.get(tensor.dtype, 0.0) * largest_gap(tensor, None), 0.0
    base = None if segment.base is None else segment.base.partner(*about)
    if role is Role.WEIGHT and base is not None:
        quantum = QUANTUM * largest_gap(tensor, base)
    elif role in MOMENTS and segment.fidelity != "lossless":
        unit = 2.0 ** (dropped_bits(segment.fidelity, role) - MANTISSA_BITS)
        rounding = max(rounding, unit * largest_gap(tensor, None))
    return _Compared(
        name=tensor.name,
        group=_group(tensor.name),
        update=update,
        error=gap(tensor, committed.partner(*about)),
        noise=floor.tensors.get(tensor.name, math.inf),
        rounding=rounding,
        step=quantum,
        numeric=tensor.dtype in UNIT,
    )


def _group(name: str) -> str:
    """Return what a tensor is compared among: parameters, buffers, extras, or one kind of optimizer state."""
    kind, _, path = name.partition("/")
    return f"{kind}/{path.rpartition('/')[2]}" if kind == "optimizer" else kind


def _with_floors(tensors: list[_Compared]) -> list[_Compared]:
    """Give each tensor its floor: its own noise, but no less than rounding, nor than what is usual in its group.

    A tensor of few elements may by chance have shown next to no noise.
    """
    ratios = defaultdict(list)
    for tensor in tensors:
        if 0 < tensor.update < math.inf:
            ratios[tensor.group].append(tensor.noise / tensor.update)
    usual = {group: statistics.median_low(found) for group, found in ratios.items()}
    floored = []
    for tensor in tensors:
        share = usual.get(tensor.group, 0.0)
        group = share * tensor.update if tensor.update else 0.0  # an infinite share of nothing is nothing
        floored.append(replace(tensor, floor=max(tensor.noise, tensor.rounding, tensor.step, group)))
    return floored


def _losses(segment: Segment, replayed: Replayed, floor: Floor) -> list[_Compared]:
    """Compare the recorded losses; the noise of a step is the largest so far, for it grows."""
    found = []
    noises = accumulate(floor.losses, max) if floor.losses else iter([math.inf] * len(replayed.losses))
    for number, (step, loss, noise) in enumerate(
        zip(segment.steps.steps, replayed.losses, noises, strict=True), segment.record.start_step
    ):
        if step.loss is None or loss is None or step.loss == loss or (math.isnan(step.loss) and math.isnan(loss)):
            continue
        error = abs(step.loss - loss)
        rounding = UNIT["float32"] * abs(loss)
        found.append(
            _Compared(
                f"step {number}, loss", "loss", abs(loss), math.inf if math.isnan(error) else error, noise, rounding,
                floor=max(noise, rounding),
            )
        )  # fmt: skip
    return found


def _measured(tensors: Sequence[_Compared], floor: Floor) -> dict[str, Any]:
    """Return the figures of a judgement as plain data."""
    squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for tensor in tensors:
        # An update that is not finite makes every share NaN, and NaN is not enough.
        squares[tensor.group][1] += tensor.update**2
        squares[tensor.group][0] += tensor.update**2 if tensor.told else 0.0
    compared = {group: told / whole if whole else 1.0 for group, (told, whole) in sorted(squares.items())}
    worst = max(tensors, key=_over, default=None)
    bounded = [tensor.name for tensor in tensors if not tensor.told]
    return {
        "settings": list(floor.settings),
        "compared": compared,
        "bounded": bounded[:NAMED],
        "bounded_count": len(bounded),
        "worst": None if worst is None else worst.name,
        "worst_error": None if worst is None else worst.error,
        "worst_floors": None if worst is None else _over(worst),
        "worst_share": max((t.error / t.update for t in tensors if t.told and t.update), default=0.0),
        "largest_tolerance": _largest_tolerance(tensors),
        "tensors": [
            {"name": tensor.name, "epsilon": tensor.error, "bound": tensor.tolerance}
            for tensor in sorted(tensors, key=_part, reverse=True)[:SHOWN]
        ],
    }


def _part(tensor: _Compared) -> float:
    """Return an error over its tolerance; what cannot be divided comes first."""
    if tensor.error == 0:
        return 0.0
    part = tensor.error / tensor.tolerance if tensor.tolerance else math.inf
    return math.inf if math.isnan(part) else part


def _over(tensor: _Compared) -> float:
    """Return an error in floors."""
    if tensor.floor == 0:
        return math.inf if tensor.error else 0.0
    return tensor.error / tensor.floor if math.isfinite(tensor.floor) else 0.0


def _largest_tolerance(tensors: Sequence[_Compared]) -> float:
    """Return the largest tolerance among the compared tensors that moved, relative to their updates."""
    return max((t.tolerance / t.update for t in tensors if t.told and t.floor > t.rounding and t.update), default=0.0)


def _summary(tensors: Sequence[_Compared]) -> str:
    bounded = sum(not tensor.told for tensor in tensors)
    worst = max((tensor.error / tensor.tolerance for tensor in tensors if tensor.tolerance), default=0.0)
    parts = f"{len(tensors) - bounded} tensors compared, errors up to {worst:.0%} of the tolerance"
    return f"{parts}; {bounded} bounded only" if bounded else parts
