"""What a replay of one segment is told of its start: whether it was rounded, and against what."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from polstore.codec.quantise import FIDELITIES
from polstore.codec.snapshot import Snapshot, Tensor
from polverify.opened import put_together

SNAPSHOTS = 4  # at steps 0 to 3


class Known(dict):
    """Snapshots by their digest, as `polverify.states.States` gives them."""

    def get(self, digest):
        return self[digest]


def run(moment, bases):
    """A run of one-step segments whose snapshots hold a weight and a moment; ``bases`` gives the ends' base steps."""
    known = Known()
    for step in range(SNAPSHOTS):
        tensors = [Tensor("parameter/w", "float32", (1,), np.array([step], "<f4"))]
        if moment is not None:
            tensors.insert(0, Tensor("optimizer/w/sum", "float32", (1,), np.array([moment], "<f4")))
        known[bytes((step,))] = Snapshot(tuple(tensors), b"")
    records = [
        SimpleNamespace(
            index=index,
            start_step=index,
            end_step=index + 1,
            start_state=bytes((index,)),
            end_state=bytes((index + 1,)),
            base_step=base,
        )
        for index, base in enumerate(bases)
    ]
    return known, records


@pytest.mark.parametrize("moment", [None, 0.0, 0.5])
def test_what_was_rounded(moment):
    """Of the segments of a run: the first, one from a snapshot against the first, and one from a keyframe."""
    known, records = run(moment, (0, None, 2))
    for fidelity in FIDELITIES:
        found = [put_together(record, records, None, known, fidelity) for record in records]
        assert {segment.fidelity for segment in found} == {fidelity}
        if fidelity != "float16":  # a replay begins where training did
            assert [(segment.start_rounded, segment.start_base) for segment in found] == [(False, None)] * 3
            continue
        # Weights were rounded where there was a base; moments everywhere, but zeros stay what they are.
        assert [segment.start_rounded for segment in found] == [moment == 0.5, True, moment == 0.5]
        # A keyframe's weights are its own: no distance from the base, nothing to have rounded.
        assert [segment.start_base for segment in found] == [known[b"\0"], known[b"\0"], known[b"\2"]]


def test_a_base_that_is_not_at_hand():
    known, records = run(0.5, (0, 0, 0))
    del known[b"\0"]
    segment = put_together(SimpleNamespace(**{**vars(records[2]), "base_step": None}), records, None, known, "float16")
    assert (segment.start_rounded, segment.start_base) == (True, None)
