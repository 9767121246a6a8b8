"""What looks odd without a replay: norms against a slow reference, moments and decay on states made by hand."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polstore.codec import frames
from polstore.codec.norms import distances
from polstore.codec.quantise import FIDELITIES, quantise, writes_back
from polstore.codec.snapshot import Snapshot, Tensor
from polstore.errors import MalformedError, ReplayError
from polstore.wire import canonical
from polstore.wire.challenge import Rules
from polverify.audit import audit
from polverify.challenge import choose, top_updates
from polverify.plausibility import ODD_DEVIATIONS, movement, norm_scores
from polverify.states import States
from tools.checker import challenge as independent
from tools.vectors import tiny_run

if TYPE_CHECKING:
    from polstore.wire.segment import SegmentRecord

NUMBERS = st.sampled_from([0.0, 1.0, 1.5, 2.0, 2.5, 1e-300, 1e300, 40.0, -3.0, math.inf, -math.inf, math.nan])
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=14)


def records(rows: list[tuple[float, ...]], every: int = 10) -> list[SegmentRecord]:
    norms = tiny_run.RECORDS[0].norms
    return [
        replace(
            tiny_run.RECORDS[0],
            index=index,
            start_step=every * index,
            end_step=every * (index + 1),
            norms=replace(norms, **dict(zip(("l1", "l2", "linf", "cos"), row, strict=True))),
        )
        for index, row in enumerate(rows)
    ]


@settings(deadline=None, max_examples=200)
@given(ROWS, st.integers(0, 3), st.integers(0, 60), st.integers(0, 4))
def test_segments_are_chosen_as_the_page_says(rows: Any, top: int, epoch_steps: int, odd: int) -> None:
    """Against the independent checker's own way of choosing, NaN and infinities included."""
    shown: list[list[Any]] = [[10 * index, *row] for index, row in enumerate(rows)]
    chosen = choose(records(rows), Rules(top, epoch_steps if top else 0, odd))
    assert list(chosen) == independent._chosen(shown, top, epoch_steps if top else 0, odd)


def test_the_largest_updates_of_every_epoch() -> None:
    rows = [(float(index % 7), 1.0, 1.0, float(-index)) for index in range(20)]
    found = records(rows)
    assert top_updates(found, 1, 0) == {6, 0}
    assert top_updates(found, 1, 100) == {6, 0, 13, 10}
    assert top_updates(found, 2, 100) == {5, 6, 0, 1, 12, 13, 10, 11}
    assert top_updates(found, 99, 0) == set(range(20))


def test_norms_stand_out_by_their_distance_from_the_median() -> None:
    rows = [(1.0 + index % 3, 1.0, 1.0, 1.0) for index in range(12)]
    assert norm_scores(rows) == {}
    rows[4] = (2.0 + ODD_DEVIATIONS, 1.0, 1.0, 1.0)
    assert norm_scores(rows) == {}  # just not more than that
    rows[4] = (2.5 + ODD_DEVIATIONS, 1.0, 1.0, 1.0)
    assert norm_scores(rows) == {4: 0.5 + ODD_DEVIATIONS}
    rows[7] = (-20.0, 1.0, 1.5, 1.0)  # small ones, too; and where all others are equal, any other value
    assert norm_scores(rows) == {4: 0.5 + ODD_DEVIATIONS, 7: math.inf}
    assert norm_scores(rows[4:8]) == {}


# Moments.


def state(weight: Any, dtype: str = "float32", group: dict[str, Any] | None = None, **moments: Any) -> Snapshot:
    """A model of one parameter ``w`` and its optimizer's tensors."""
    carrier = {"float32": "<f4", "float64": "<f8", "bfloat16": "<u2"}[dtype]

    def tensor(name: str, values: Any) -> Tensor:
        data = np.array(values, "<f4")
        data = (data.view("<u4") >> 16).astype("<u2") if dtype == "bfloat16" else data.astype(carrier)
        return Tensor(name, dtype, data.shape, data)

    tensors = [tensor(f"optimizer/w/{key}", values) for key, values in sorted(moments.items())]
    pairs = sorted(((group or {}) | {"params": (0, "w")}).items())
    tree = (2, ("#groups", (0, (2, *pairs))))
    return Snapshot((*tensors, tensor("parameter/w", weight)), canonical.encode(("polstore/scalars/v1", 0, tree, (2,))))


def test_weights_move_against_the_gradient() -> None:
    for key in ("momentum_buffer", "exp_avg"):
        start, along = state([1, 2, 3]), state([0, 2, 2], **{key: [1, 0, 1]})
        assert movement(start, along, 1).cosine == pytest.approx(1)
        assert movement(state([0, 2, 2]), state([1, 2, 3], **{key: [1, 0, 1]}), 1).against
        assert movement(start, state([1, 1, 3], **{key: [1, 0, 0]}), 1).cosine == 0
    climbing = state([0, 2, 2], group={"maximize": True}, momentum_buffer=[1, 0, 1])
    assert movement(start, climbing, 1).cosine == pytest.approx(-1)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_all_dtypes(dtype: str) -> None:
    assert movement(state([1, 2], dtype), state([0, 2], dtype, exp_avg=[2, 0]), 1).cosine == pytest.approx(1)
    betas = {"betas": (1, 0.9, 0.5)}
    for value, odd in ((0.5, False), (0.25, True)):
        start = state([1, 2], dtype, betas, exp_avg_sq=[1, 1])
        found = movement(start, state([1, 2], dtype, betas, exp_avg_sq=[1, value]), 1)
        assert (found.decayed is not None) == odd


@pytest.mark.parametrize(
    ("weight", "moments"),
    [
        ([1, 2, 3], {"momentum_buffer": [1, 1, 1]}),  # no movement
        ([1, 2, 4], {"momentum_buffer": [0, 0, 0]}),  # no pull
        ([1, 2, 4], {}),  # no moments
        ([1, 2, 4], {"square_avg": [1, 1, 1]}),
        ([1, 2, 4], {"exp_avg": [1, 1]}),  # of another shape
        ([1, 2, math.nan], {"exp_avg": [1, 1, 1]}),
        ([1, 2, 4], {"exp_avg": [1, math.inf, 1]}),
    ],
)
def test_nothing_to_compare(weight: Any, moments: Any) -> None:
    found = movement(state([1, 2, 3]), state(weight, **moments), 1)
    assert (found.cosine, found.against, found.decayed) == (None, False, None)


BETAS = {"betas": (1, 0.9, 0.99)}


@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_second_moments_fall_no_faster_than_beta(steps: int) -> None:
    start = state([1, 2], group=BETAS, exp_avg_sq=[1.0, 8.0])
    least = 8.0 * 0.99**steps
    for part, odd in ((2.0, False), (1.0, False), (1 - 2**-6, False), (1 - 2**-4, True), (0.0, True), (-1.0, True)):
        end = state([1, 2], group=BETAS, exp_avg_sq=[1.0, part * least])
        assert (movement(start, end, steps).decayed is not None) == odd
    assert movement(start, state([1, 2], group=BETAS, exp_avg_sq=[1.0, math.nan]), steps).decayed is None


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_rounding_of_either_end_looks_like_no_decay(fidelity: str) -> None:
    """Second moments of gradients that are 0, snapshot after snapshot: none falls faster than it can."""
    live = np.exp2(np.random.default_rng(3).uniform(-20, 20, 3000)).astype("<f4")
    lowest, start = 1.0, None
    for number in range(20):
        exact = state([1, 2], group=BETAS, exp_avg_sq=live.tolist())
        rounded = quantise(replace(exact, scalars=bytes((number,))), None, fidelity)  # another key in each
        end = replace(rounded, scalars=exact.scalars)
        if start is not None:
            assert movement(start, end, 1).decayed is None
            before, after = (each.tensor("optimizer/w/exp_avg_sq").data.astype("<f8") for each in (start, end))
            lowest = min(lowest, float((after / before).min()))
        start = end
        live = (end.tensor("optimizer/w/exp_avg_sq").data if writes_back(fidelity) else live) * np.float32(0.99)
    assert (lowest < 0.99 * (1 - 2**-8)) == (fidelity != "lossless")  # so there was something to allow for


def test_decay_is_judged_by_the_smaller_beta_and_not_without_any() -> None:
    start, end = [1.0, 8.0], [1.0, 4.5]
    small, large = {"betas": (1, 0.9, 0.5)}, {"betas": (1, 0.9, 0.999)}
    cases: list[tuple[Any, Any, bool]] = [(large, large, True), (small, large, False), (large, small, False)]
    cases += [(None, None, False), ({"betas": (0, 0.9, 0.999)}, {"betas": (1, 0.9, 0.999)}, True)]
    cases += [
        ({"betas": wrong},) * 2 + (False,)
        for wrong in (0.9, (1, 0.9), (3, "lr"), (1, 0.9, True), (1, 0.9, math.nan), (1, 0.9, 1.5))
    ]
    for before, after, odd in cases:
        found = movement(state([1, 2], group=before, exp_avg_sq=start), state([1, 2], group=after, exp_avg_sq=end), 1)
        assert (found.decayed is not None) == odd, (before, after)


def test_tiny_and_growing_second_moments_are_in_order() -> None:
    for before, after in (([1e-44, 0.0], [0.0, 0.0]), ([0.0, 1.0], [1e-9, 1.0]), ([1e-38, 1.0], [0.0, 1.0])):
        start, end = (state([1, 2], group=BETAS, exp_avg_sq=each) for each in (before, after))
        assert movement(start, end, 1).decayed is None


@pytest.mark.parametrize("scalars", [b"", b"\xc0", canonical.encode(("polstore/scalars/v2", 0, (2,), (2,)))])
def test_scalars_that_are_none(scalars: bytes) -> None:
    broken = replace(state([1]), scalars=scalars)
    with pytest.raises(MalformedError):
        movement(state([1]), broken, 1)


@pytest.mark.parametrize(
    "tree", [None, (), (2,), (0, 1), (2, ("#groups", 5)), (2, ("#groups", (0, 5, (2, ("params", 1)))))]
)
def test_hostile_trees_hold_nothing(tree: Any) -> None:
    broken = replace(state([1]), scalars=canonical.encode(("polstore/scalars/v1", 0, tree, (2,))))
    assert movement(state([2]), broken, 1).cosine is None


# The walk over all snapshots.


def chain(length: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[SegmentRecord], States, Any]:
    """Snapshots each stored against the one before, and how many decoded ones are alive at the most."""
    from polstore.codec import chain as chain_module

    shots, blobs, stored = [], {}, []
    for number in range(length + 1):
        shot = state(np.linspace(0, 1, 64) + number, momentum_buffer=-np.ones(64))
        record, parts, _ = frames.encode(shot, shots[-1] if shots else None, "lossless")
        shots.append(shot)
        blobs |= parts
        stored.append(record)
    alive: Any = weakref.WeakSet()
    most = [0]
    decode = chain_module.decode_against

    def counted(*arguments: Any, **options: Any) -> Snapshot:
        decoded = decode(*arguments, **options)
        alive.add(decoded)
        most[0] = max(most[0], len(alive))
        return decoded

    monkeypatch.setattr(chain_module, "decode_against", counted)
    found = [
        replace(
            each, start_state=shots[i].digest(), end_state=shots[i + 1].digest(), base_step=max(each.start_step - 20, 0)
        )
        for i, each in enumerate(records([(0.0,) * 4] * length))
    ]
    found = [replace(each, norms=distances(shots[i], shots[i + 1])) for i, each in enumerate(found)]
    ordered = sorted(stored, key=lambda record: record.state_digest)
    return found, States([record.encode() for record in ordered], blobs.__getitem__), most


def test_memory_stays_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = []
    for length in (6, 40):
        found, states, most = chain(length, monkeypatch)
        seen = dict(audit(found, range(length), states))
        assert list(seen) == list(range(length))
        assert all(each.cosine == pytest.approx(1) for each in seen.values())
        peaks.append(most[0])
        monkeypatch.undo()
    assert peaks[0] == peaks[1] <= 6


@pytest.mark.parametrize("name", ["l1", "l2", "linf", "cos"])
def test_one_false_norm_among_many_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found, states, _ = chain(9, monkeypatch)
    norms = found[5].norms
    found[5] = replace(found[5], norms=replace(norms, **{name: getattr(norms, name) + 1e-3}))
    with pytest.raises(ReplayError, match=f"segment 5: norm {name}"):
        list(audit(found, range(9), states))
    assert len(list(audit(found, [0, 4, 6], states))) == 3
