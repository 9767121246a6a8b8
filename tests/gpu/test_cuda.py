"""Recording and replaying on a CUDA device: bit for bit on the same model of device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polstore.codec.live.capture import Capture
from polstore.codec.quantise import FIDELITIES, quantise, writes_back
from polstore.codec.snapshot import Snapshot, Tensor
from polverify.verdict import Decision
from tests.replay.harness import Bench

pytestmark = pytest.mark.gpu

NAMES = ("optimizer/w/exp_avg", "optimizer/w/exp_avg_sq", "parameter/w")
SCALARS = b"\x90"
CASES = {
    "plain": {},
    "batch norm and dropout": {"kind": "batchnorm"},
    "adamw": {"optimizer": "adamw", "scheduler": "cosine", "clip": 1.0},
    "bfloat16 autocast": {"autocast": True, "optimizer": "adamw"},
    "gradient scaler": {"scaler": True, "optimizer": "adam", "every": 1},
    "compact": {"fidelity": "compact-writeback", "optimizer": "adamw"},
    "lossless": {"fidelity": "lossless"},
    "moments from the start": {"optimizer": "adamw_resumed"},
    "moments from the start, compact": {"optimizer": "adagrad_accumulated", "fidelity": "compact-writeback"},
}


@pytest.mark.parametrize("kept", ["a base", "a base of weights alone", "no base"])
@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_the_capture_on_the_device_gives_the_bits_of_the_reference(fidelity, kept):
    generator = np.random.default_rng(3)
    size = 1 << 20

    def state():
        values = [generator.standard_normal(size).astype("<f4") * scale for scale in (1e-3, 1e-6, 1)]
        values[1] = np.abs(values[1])
        return Snapshot(tuple(Tensor(n, "float32", (size,), v) for n, v in zip(NAMES, values, strict=True)), SCALARS)

    base, before = state(), state()
    if kept != "a base":
        base = None if kept == "no base" else Snapshot((base.tensor("parameter/w"),), SCALARS)
    live = {tensor.name: torch.from_numpy(tensor.data.copy()).cuda() for tensor in before.tensors}
    wanted = quantise(before, base, fidelity)
    got = Capture(fidelity).take(live, SCALARS, base).committed
    assert got.digest() == wanted.digest()
    left = wanted if writes_back(fidelity) else before
    for tensor in left.tensors:
        assert np.array_equal(live[tensor.name].cpu().numpy(), tensor.data)


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_training_goes_on_while_a_capture_is_on_its_way(fidelity):
    """Whatever the training writes or allocates next, and the next capture too, comes after what is being copied."""
    capture = Capture(fidelity)
    live = {name: torch.rand(1 << 22, device="cuda") for name in (*NAMES, "buffer/b")}
    base = None
    for step in range(4):
        before = {name: tensor.clone() for name, tensor in live.items()}
        wanted = quantise(snapshot_of(before), base, fidelity)
        captured = capture.take(live, SCALARS, base)
        for tensor in live.values():
            tensor.mul_(0.5 + step)
        crowd = [torch.full((1 << 22,), float(step), device="cuda") for _ in range(16)]
        assert captured.digest == wanted.digest()
        del crowd
        base = wanted if step == 0 else base


def snapshot_of(tensors):
    return Snapshot(
        tuple(Tensor(name, "float32", (1 << 22,), tensors[name].cpu().numpy()) for name in sorted(tensors)), SCALARS
    )


@pytest.mark.parametrize("case", CASES)
def test_a_run_on_the_device_is_accepted_there(case, tmp_path):
    bench = Bench(tmp_path, device="cuda")
    bench.record(**CASES[case])
    bench.require_accepted()


def test_several_segments_at_once_on_the_device(tmp_path):
    bench = Bench(tmp_path, device="cuda")
    bench.record(optimizer="adamw")
    assert bench.require_accepted(jobs=2).as_json() == bench.require_accepted().as_json()


def test_a_run_on_the_device_cannot_be_judged_on_a_processor(tmp_path):
    bench = Bench(tmp_path, device="cuda")
    bench.record()
    bench.device = "cpu"
    assert bench.verdict().decision is Decision.INCONCLUSIVE
