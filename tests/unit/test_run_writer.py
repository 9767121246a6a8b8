"""A record that no reader would take is refused before anything of it is stored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from polstore.errors import MissingError, TrainingError
from polstore.run_row import RunRow
from polstore.run_writer import RunWriter
from polstore.storage.store import open_store
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


@pytest.mark.parametrize("index", [-1, 2**48 + 1])
def test_step_records_that_no_reader_takes(store: Store, index: int) -> None:
    writer = RunWriter.create(store, tiny_run.MANIFEST, ROW, tiny_run.LIVE[0][1], BLOBS)
    steps = Steps(0, (Step((Microbatch(0, ((index,),)),), (), None),))
    with pytest.raises(TrainingError, match="sample indices"):
        writer.add_segment(1, tiny_run.LIVE[1][1], steps, tiny_run.ENVIRONMENT, ROW)
    assert leaves(store) == list(tiny_run.LEAVES[:1])
