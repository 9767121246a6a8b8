"""A run small enough to print: two segments of training three weights on four samples, all of it made by hand.

The examples and vectors of specs/run-records.md, specs/challenge.md and specs/bundle.md are cut from it. Every number
in it is exact in float32, and every plane too short to compress, so it comes out the same on any machine.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from polstore.codec import frames
from polstore.codec.norms import distances
from polstore.codec.snapshot import Snapshot, Tensor
from polstore.wire import canonical, merkle
from polstore.wire.bundle import Bundle, OpenedSegment, Samples
from polstore.wire.environment import Environment
from polstore.wire.manifest import Dataset, Initial, Manifest, Optimizer, Recipe
from polstore.wire.multi_proof import multi_proof
from polstore.wire.randomness import sample_salt
from polstore.wire.sample import sample_leaf
from polstore.wire.segment import SegmentRecord
from polstore.wire.steps import Microbatch, Step, Steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.wire.canonical import Value

__all__ = [
    "BLOBS",
    "CONTENTS",
    "DATASET_SALT",
    "ENVIRONMENT",
    "HYPERPARAMETERS",
    "HYPERPARAMETERS_BLOB",
    "LEAVES",
    "LIVE",
    "MANIFEST",
    "ORIGIN",
    "RECORDS",
    "ROOT",
    "SEED",
    "SNAPSHOTS",
    "STEPS",
    "bundle",
    "bundle_file",
]

ORIGIN = "example.org/archive/tiny"
SEED = bytes(range(32))
DATASET_SALT = bytes(range(32, 64))
FIDELITY = "float16-writeback"


def _content(value: float, label: int) -> Value:
    """Return what is committed of the sample ``(tensor([value]), label)``: a tuple of a tensor and an integer."""
    return (1, (3, ("float32", (1,), sha256(struct.pack("<f", value)).digest())), label)


CONTENTS = (_content(0.5, 0), _content(1.5, 1), _content(-0.5, 0), _content(2.0, 1))
HASHES = [
    merkle.leaf_hash(sample_leaf(sample_salt(DATASET_SALT, index), content)) for index, content in enumerate(CONTENTS)
]
ENVIRONMENT = Environment("cpu", "Example CPU", "2.5.0", "AVX2", 2, (("autocast", "off"), ("onednn", "true")))
HYPERPARAMETERS = ((("lr", 0.5),),)
HYPERPARAMETERS_BLOB = canonical.encode(HYPERPARAMETERS)


def _snapshot(step: int, weights: Sequence[float]) -> Snapshot:
    group: Value = (2, ("lr", 0.5), ("params", (0, "w")))
    scalars = canonical.encode(("polstore/scalars/v1", step, (2, ("#groups", (0, group))), (2,)))
    return Snapshot((Tensor("parameter/w", "float32", (3,), np.array(weights, "<f4")),), scalars)


LIVE = ((0, _snapshot(0, (1, -2, 0.5))), (2, _snapshot(2, (1.25, -2, 0.5))), (3, _snapshot(3, (1.5, -2, 0.5))))
_STORED = [frames.encode(live, LIVE[0][1] if step else None, FIDELITY) for step, live in LIVE]
SNAPSHOTS = tuple(record for record, _, _ in _STORED)  # at steps 0, 2 and 3
MANIFEST = Manifest(
    run="tiny",
    recipe=Recipe("file", sha256(b"# a recipe\n").digest(), (("width", 3),)),
    dataset=Dataset(merkle.root(HASHES), len(HASHES)),
    optimizer=Optimizer("torch.optim.sgd.SGD", sha256(HYPERPARAMETERS_BLOB).digest()),
    seed=SEED,
    sampler="seed",
    initial=Initial("seed", SNAPSHOTS[0].state_digest),
    environment=ENVIRONMENT,
    fidelity=FIDELITY,
    every=2,
)
STEPS = (
    Steps(
        0,
        (
            Step((Microbatch(0, ((2, 0),)),), HYPERPARAMETERS, 0.75),
            Step((Microbatch(1, ((1,),)), Microbatch(2, ((0,),))), HYPERPARAMETERS, None),
        ),
    ),
    Steps(2, (Step((Microbatch(3, ((3, 1),)),), HYPERPARAMETERS, 0.5),)),
)
RECORDS = tuple(
    SegmentRecord(
        index=index,
        start_step=steps.start_step,
        end_step=steps.start_step + len(steps.steps),
        start_state=SNAPSHOTS[index].state_digest,
        end_state=SNAPSHOTS[index + 1].state_digest,
        base_step=0,
        steps=sha256(steps.encode()).digest(),
        environment=ENVIRONMENT,
        norms=distances(_STORED[index][2], _STORED[index + 1][2]),
    )
    for index, steps in enumerate(STEPS)
)
LEAVES = (MANIFEST.encode(), *(record.encode() for record in RECORDS))
NODE = merkle.nodes_of([merkle.leaf_hash(leaf) for leaf in LEAVES])
ROOT = merkle.root([merkle.leaf_hash(leaf) for leaf in LEAVES])
BLOBS = {
    sha256(blob).digest(): blob
    for blob in (
        HYPERPARAMETERS_BLOB,
        *(steps.encode() for steps in STEPS),
        *(frame for _, found, _ in _STORED for frame in found.values()),
    )
}
assert all(blob[0] == 0 for _, found, _ in _STORED for blob in found.values()), "a frame is not raw"


def bundle(*opened: int, audit: bool = False) -> Bundle:
    """Return the bundle that opens these segments; for an audit, with every snapshot."""
    used = sorted(set().union(*(STEPS[index].samples() for index in opened)))
    states = {number for index in opened for number in (0, index, index + 1)}
    states |= set(range(len(SNAPSHOTS))) if audit else set()
    stored = sorted((SNAPSHOTS[number] for number in states), key=lambda record: record.state_digest)
    digests = {RECORDS[index].steps for index in opened} | {MANIFEST.optimizer.hyperparameters}
    digests |= {digest for record in stored for digest in record.blobs}
    return Bundle(
        size=len(LEAVES),
        root=ROOT,
        leaves=LEAVES,
        opened=tuple(
            OpenedSegment(index, merkle.inclusion_proof(index + 1, len(LEAVES), NODE)) for index in sorted(opened)
        ),
        snapshots=tuple(record.encode() for record in stored),
        samples=Samples(
            tuple((index, sample_salt(DATASET_SALT, index)) for index in used),
            multi_proof(used, len(HASHES), merkle.nodes_of(HASHES)) if used else (),
        ),
        blobs=tuple((digest, len(BLOBS[digest])) for digest in sorted(digests)),
    )


def bundle_file(index: Bundle) -> bytes:
    """Return a bundle file's bytes."""
    return index.head() + b"".join(BLOBS[digest] for digest, _ in index.blobs)
