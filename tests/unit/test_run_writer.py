"""What the writer stores: keyframes where they are due, and nothing that no reader would take."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest

from polstore.codec.frames import Encoding
from polstore.codec.quantise import quantise, quantise_tensors
from polstore.codec.snapshot import Snapshot, Tensor
from polstore.errors import MissingError, TrainingError, UsageError
from polstore.reader import Run
from polstore.run_row import RunRow
from polstore.run_writer import RunWriter
from polstore.storage.store import open_store
from polstore.wire import canonical
from polstore.wire.steps import Microbatch, Step, Steps
from tools.vectors import tiny_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from polstore.storage.store import Store

ROW = RunRow(tiny_run.DATASET_SALT, bytes(32), 0, 0, 0, complete=False)
BLOBS = [tiny_run.HYPERPARAMETERS_BLOB]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store", create=True) as opened:
        yield opened


def leaves(store: Store) -> list[bytes]:
    with store.read() as view:
        return [view.leaf("tiny", number) for number in range(view.leaf_count("tiny"))]


def test_the_tiny_run_is_written_byte_for_byte(store: Store) -> None:
    writer = RunWriter.create(store, tiny_run.MANIFEST, ROW, tiny_run.LIVE[0][1], BLOBS)
    for (step, live), steps in zip(tiny_run.LIVE[1:], tiny_run.STEPS, strict=True):
        writer.add_segment(step, live, steps, tiny_run.ENVIRONMENT, ROW)
    assert leaves(store) == list(tiny_run.LEAVES)


def test_a_manifest_that_no_reader_takes(store: Store) -> None:
    for manifest in (
        replace(tiny_run.MANIFEST, environment=replace(tiny_run.ENVIRONMENT, device_name="a\nb")),
        replace(tiny_run.MANIFEST, extensions=(("a", bytes(32_768)), ("b", bytes(32_768)))),
    ):
        with pytest.raises(TrainingError, match="cannot be recorded"):
            RunWriter.create(store, manifest, ROW, tiny_run.LIVE[0][1], BLOBS)
    with pytest.raises(MissingError):
        leaves(store)


def test_an_initial_snapshot_that_is_not_the_manifests(store: Store) -> None:
    with pytest.raises(UsageError, match="snapshot 0"):
        RunWriter.create(store, tiny_run.MANIFEST, ROW, snapshot(0), BLOBS)
    with pytest.raises(MissingError):
        leaves(store)


@pytest.mark.parametrize("index", [-1, 2**48 + 1])
def test_step_records_that_no_reader_takes(store: Store, index: int) -> None:
    writer = RunWriter.create(store, tiny_run.MANIFEST, ROW, tiny_run.LIVE[0][1], BLOBS)
    steps = Steps(0, (Step((Microbatch(0, ((index,),)),), (), None),))
    with pytest.raises(TrainingError, match="sample indices"):
        writer.add_segment(1, tiny_run.LIVE[1][1], steps, tiny_run.ENVIRONMENT, ROW)
    assert leaves(store) == list(tiny_run.LEAVES[:1])


def snapshot(step: int) -> Snapshot:
    """A state in which the optimizer keeps a moment from step 2 on."""
    values = np.linspace(1, 2, 64, dtype="<f4") * np.float32(1 + step / 100)
    names = ("optimizer/w/exp_avg", "parameter/w") if step >= 2 else ("parameter/w",)
    return Snapshot(tuple(Tensor(name, "float32", (64,), values) for name in names), canonical.encode((step,)))


def record(store: Store, first: int, last: int) -> None:
    """Write a run of one-step segments, or go on with it."""
    if first == 0:
        initial = replace(tiny_run.MANIFEST.initial, state=snapshot(0).digest())
        writer = RunWriter.create(store, replace(tiny_run.MANIFEST, initial=initial), ROW, snapshot(0), BLOBS)
    else:
        writer, _, step = RunWriter.resume(store, "tiny")
        assert step == first
    for step in range(first + 1, last + 1):
        steps = Steps(step - 1, (Step((Microbatch(step, ((0,),)),), (), None),))
        writer.add_segment(step, snapshot(step), steps, tiny_run.ENVIRONMENT, ROW)


@pytest.mark.parametrize("stops", [(), (1,), (2,), (3, 40), (65, 66)])
def test_keyframes_come_with_new_tensors_and_then_every_64th(store: Store, stops: tuple[int, ...]) -> None:
    for first, last in pairwise((0, *stops, 70)):
        record(store, first, last)
    run = Run(store, "tiny")
    assert [record.base_step for record in run.segments] == [0, None, *[2] * 63, None, *[66] * 4]
    late = run.stored_snapshots(run.segment(9).end_state)[0]
    assert {row.encoding for row in late.tensors} == {Encoding.SCALED_DELTA, Encoding.BFLOAT16}


@pytest.mark.parametrize(
    ("fidelity", "kept"),
    [
        ("float16-writeback", ("parameter/w",)),
        ("compact-writeback", ("optimizer/w/exp_avg_sq", "parameter/w")),
        ("lossless", ("optimizer/w/exp_avg", "optimizer/w/exp_avg_sq", "parameter/w")),
    ],
)
def test_of_a_base_is_kept_what_others_are_quantised_against(
    store: Store, fidelity: str, kept: tuple[str, ...]
) -> None:
    """Moments that are stored by themselves are half of a state, and nobody needs them again."""
    names = ("optimizer/w/exp_avg", "optimizer/w/exp_avg_sq", "parameter/w")

    def state(step: int) -> Snapshot:
        values = np.linspace(1, 2, 64, dtype="<f4") * np.float32(1 + step / 100)
        whole = Snapshot(tuple(Tensor(name, "float32", (64,), values) for name in names), canonical.encode((step,)))
        return quantise(whole, None, fidelity) if step == 0 else whole

    manifest = replace(
        tiny_run.MANIFEST, fidelity=fidelity, initial=replace(tiny_run.MANIFEST.initial, state=state(0).digest())
    )
    writer = RunWriter.create(store, manifest, ROW, state(0), BLOBS)
    for step in range(1, 4):
        if step == 2:
            writer, _, _ = RunWriter.resume(store, "tiny")
        plan = writer.plan(step, names)
        assert plan.base is not None
        assert plan.base.names == kept
        steps = Steps(step - 1, (Step((Microbatch(step, ((0,),)),), (), None),))
        parts = tuple(quantise_tensors(state(step), plan.base, fidelity))
        writer.write(plan, lambda parts=parts: parts, state(step).scalars, steps, tiny_run.ENVIRONMENT, ROW)
    run = Run(store, "tiny")
    before = state(0)
    for step in range(1, 4):  # as if the whole base had been at hand
        wanted = quantise(state(step), before, fidelity)
        assert run.state(step).digest() == wanted.digest()
        before = wanted if fidelity == "compact-writeback" else before
