"""The fused capture against the reference implementation of quantisation, bit for bit."""

from __future__ import annotations

import contextlib

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polstore.codec.live import capture, host_lanes, lanes
from polstore.codec.quantise import FIDELITIES, quantise, writes_back
from polstore.codec.snapshot import Snapshot, Tensor, bits
from polstore.errors import TrainingError

pytestmark = pytest.mark.usefixtures("loops")

KEYS = ("parameter/w{}", "optimizer/w{}/exp_avg", "optimizer/w{}/exp_avg_sq", "optimizer/w{}/other", "buffer/b{}")
SCALARS = b"\x90"


@st.composite
def states(draw):
    """A base and a live state whose tensors have few distinct magnitudes, so that all branches are met."""
    count = draw(st.integers(1, 4))
    kind = draw(st.sampled_from(("ordinary", "any bits", "mixed")))
    tensors = {}
    for number in range(count):
        name = draw(st.sampled_from(KEYS)).format(number)
        size = draw(st.integers(0, 40))
        exponent = draw(st.integers(-149, 127))
        pair = []
        for _ in range(2):
            if kind == "any bits" or (kind == "mixed" and number == 0):
                words = draw(hnp.arrays("<u4", size))
                pair.append(words.view("<f4"))
            else:
                mantissas = draw(hnp.arrays("<f4", size, elements=st.floats(-1, 1, width=32)))
                pair.append((mantissas.astype("f8") * 2.0**exponent).astype("<f4"))
        if draw(st.booleans()):
            pair[1] = pair[0].copy()
        tensors[name] = pair
    base = draw(st.sampled_from(("whole", "whole", "without moments", "none")))
    return tensors, draw(st.sampled_from((SCALARS, b"\xc0", b"\x91\x05"))), base


@st.composite
def cuts(draw):
    """Into what a lane is cut: elements of a block of torch's or of a piece, elements for a thread, and threads."""
    return draw(st.sampled_from((1, 7, 64))), draw(st.sampled_from((1, 20, 1000))), draw(st.sampled_from((1, 2)))


@contextlib.contextmanager
def cut(block, portion, threads):
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(lanes.BLOCK, "cpu", block)
        patch.setattr(host_lanes, "PIECE", block)
        patch.setattr(host_lanes, "PORTION", portion)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def snapshot(arrays, scalars=SCALARS):
    ordered = sorted(arrays, key=str.encode)
    return Snapshot(
        tuple(Tensor(name, "float32", (arrays[name].size,), arrays[name].copy()) for name in ordered), scalars
    )


@pytest.mark.parametrize("fidelity", FIDELITIES)
@settings(deadline=None, max_examples=100)
@given(drawn=states(), sizes=cuts())
def test_the_capture_gives_the_bits_of_the_reference(fidelity, drawn, sizes):
    pairs, scalars, kept = drawn
    base = None
    if kept != "none":
        names = [name for name in pairs if kept == "whole" or not name.startswith("optimizer/")]
        base = snapshot({name: pairs[name][0] for name in names})
    before = snapshot({name: pair[1] for name, pair in pairs.items()}, scalars)
    live = {name: torch.from_numpy(pair[1].copy()) for name, pair in pairs.items()}
    expected = quantise(before, base, fidelity)
    with cut(*sizes):
        captured = capture.Capture(fidelity).take(live, scalars, base)
    for wanted, got in zip(expected.tensors, captured.committed.tensors, strict=True):
        assert np.array_equal(bits(wanted.data), bits(got.data)), wanted.name
    left = expected if writes_back(fidelity) else before
    for wanted in left.tensors:
        assert np.array_equal(bits(wanted.data), bits(live[wanted.name].numpy())), wanted.name


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_the_ordinary_case_is_fused_with_a_base_or_without(fidelity, monkeypatch):
    """Keyframes and copies too: what the reference would do on the host is done where the training is."""
    by_reference = []
    original = capture.quantise_tensor
    monkeypatch.setattr(
        capture, "quantise_tensor", lambda tensor, *rest: by_reference.append(tensor.name) or original(tensor, *rest)
    )
    generator = np.random.default_rng(1)
    names = ("optimizer/w/exp_avg", "optimizer/w/exp_avg_sq", "parameter/w")
    live = {name: torch.from_numpy(np.abs(generator.standard_normal(100)).astype("f4")) for name in names}
    taker = capture.Capture(fidelity)
    before = snapshot({name: tensor.numpy() for name, tensor in live.items()})
    base = taker.take(live, SCALARS, None).committed
    assert base.digest() == quantise(before, None, fidelity).digest()
    alone = Snapshot((base.tensor("parameter/w"),), b"")  # as much as a writer keeps
    live["parameter/w"] += 1e-3
    before = snapshot({name: tensor.numpy() for name, tensor in live.items()})
    assert taker.take(live, SCALARS, alone).committed.digest() == quantise(before, alone, fidelity).digest()
    assert by_reference == []
    live["parameter/w"][0] = 2.0**127
    assert taker.take(live, SCALARS, alone).committed.tensor("parameter/w").data[0] == 2.0**127
    assert by_reference == ([] if fidelity == "lossless" else ["parameter/w"])


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_the_default_dtype_changes_nothing(fidelity, default):
    live = {name.format(0): torch.linspace(0.1, 1, 50) for name in KEYS}
    base = snapshot({name: tensor.numpy() for name, tensor in live.items()})
    for tensor in live.values():
        tensor += 1e-3
    expected = quantise(snapshot({name: tensor.numpy() for name, tensor in live.items()}), base, fidelity)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        captured = capture.Capture(fidelity).take(live, SCALARS, base)
    finally:
        torch.set_default_dtype(before)
    assert captured.committed.digest() == expected.digest()


@pytest.mark.parametrize("name", ["parameter/" + "x" * 512, "buffer/a\nb", "optimizer/\x00/exp_avg"])
def test_names_that_no_reader_would_take_are_refused(name):
    with pytest.raises(TrainingError, match="cannot be committed"):
        capture.Capture("float16-writeback").take({name: torch.zeros(3)}, SCALARS, None)


def test_capturing_again_and_again_follows_a_base_that_changes():
    taker = capture.Capture("float16-writeback")
    generator = np.random.default_rng(1)
    live = {"parameter/w": torch.zeros(100), "optimizer/w/exp_avg": torch.zeros(100)}
    base = taker.take(live, SCALARS, None).committed
    for number in range(4):
        for tensor in live.values():
            tensor += torch.from_numpy(generator.standard_normal(100).astype("f4"))
        expected = quantise(
            snapshot({name: tensor.numpy() for name, tensor in live.items()}), base, "float16-writeback"
        )
        got = taker.take(live, SCALARS, base).committed
        assert got.digest() == expected.digest()
        if number == 1:
            base = got


def test_a_capture_that_the_next_one_is_taken_against_is_left_alone():
    taker = capture.Capture("compact-writeback")
    generator = np.random.default_rng(1)
    live = {name: torch.zeros(100) for name in ("optimizer/w/exp_avg", "optimizer/w/exp_avg_sq", "parameter/w")}
    base = taker.take(live, SCALARS, None).committed
    for step in range(5):
        scalars = bytes((step,))  # another key in every capture
        for tensor in live.values():
            tensor += torch.from_numpy(np.abs(generator.standard_normal(100)).astype("f4"))
        expected = quantise(
            snapshot({name: tensor.numpy() for name, tensor in live.items()}, scalars), base, "compact-writeback"
        )
        before = [tensor.data.copy() for tensor in base.tensors]
        got = taker.take(live, scalars, base).committed
        assert all(np.array_equal(one, tensor.data) for one, tensor in zip(before, base.tensors, strict=True))
        assert got.digest() == expected.digest()
        base = got


def test_strided_tensors_are_written_back_where_they_are():
    values = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    live = values.t().clone(memory_format=torch.preserve_format)
    assert not live.is_contiguous()
    base = Snapshot((Tensor("parameter/w", "float32", (4, 3), values.t().contiguous().numpy().ravel()),), SCALARS)
    live += torch.linspace(0, 1e-3, 12).reshape(3, 4).t()
    before = live.contiguous().numpy().ravel().copy()
    wanted = quantise(Snapshot((Tensor("parameter/w", "float32", (4, 3), before),), SCALARS), base, "float16-writeback")
    got = capture.Capture("float16-writeback").take({"parameter/w": live}, SCALARS, base).committed
    assert got.digest() == wanted.digest()
    assert np.array_equal(live.contiguous().numpy().ravel(), wanted.tensors[0].data)
    assert live.stride() == (1, 4)


def test_a_graph_that_outlives_a_capture_is_not_walked_back_with_other_values():
    taker = capture.Capture("float16-writeback")
    weight = torch.nn.Parameter(torch.linspace(0.1, 1, 50))
    base = taker.take({"parameter/w": weight}, SCALARS, None).committed
    with torch.no_grad():
        weight += 1e-3
    loss = (weight * weight).sum()
    before = weight._version
    taker.take({"parameter/w": weight}, SCALARS, base)
    assert weight._version > before  # by which the recorder, too, tells that a step changed the model
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
