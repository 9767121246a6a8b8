"""What a dishonest trainer has: his own training loop, every byte of his proof, and a valid key to sign it with.

`Trainer` trains as a recorder would, but each part of it can be replaced by a lie. `Evidence` is a proof held in
memory: it can be edited, resealed (digests and tables of the bundle computed anew) and signed anew over other leaves.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polstore.codec import frames
from polstore.codec.live.environment import detect
from polstore.codec.live.randomness import seed_all
from polstore.codec.live.recipe import RecipeFile
from polstore.codec.live.samples import dataset_hashes, load_batch
from polstore.codec.live.state import LiveState, hyperparameters, loss_value
from polstore.codec.norms import distances
from polstore.codec.quantise import base_is_previous, quantise, writes_back
from polstore.codec.snapshot import Snapshot, Tensor
from polstore.recording import run_seed, seed_initial
from polstore.wire import canonical, merkle
from polstore.wire.bundle import MAGIC, Bundle, OpenedSegment, Samples
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.keys import SigningKey
from polstore.wire.manifest import Dataset, Initial, Manifest, Optimizer, Recipe
from polstore.wire.multi_proof import multi_proof
from polstore.wire.randomness import Stream, sample_salt, stream_seed
from polstore.wire.segment import SegmentRecord
from polstore.wire.steps import Microbatch, Step, Steps

RECIPE = RecipeFile.read(Path(__file__).parent / "recipe.py")
KEY = SigningKey("example.com/mallory", bytes(range(32)))
OTHER_KEY = SigningKey("example.com/mallory", bytes(range(1, 33)))
SEED = run_seed(5)
SALT = bytes(31) + b"s"
NOW = 1_760_000_000  # seconds since 1970
RUN = "run"
STEPS, EVERY = 14, 3  # so the last segment has two steps
SEGMENTS = 5


@dataclass(frozen=True)
class Evidence:
    """A signed root and a bundle, with the bundle's blobs."""

    root: bytes
    bundle: Bundle
    blobs: dict[bytes, bytes]

    def data(self) -> bytes:
        """The bundle's bytes."""
        return self.bundle.head() + b"".join(self.blobs[digest] for digest, _ in self.bundle.blobs)

    def head_size(self) -> int:
        return len(self.bundle.head())

    def edited(self, **changes: Any) -> Evidence:
        """The same root with a bundle of which some fields are others; a new table of blobs unless one is given."""
        return replace(self, bundle=replace(self.bundle, **changes))

    def with_blobs(self, blobs: dict[bytes, bytes]) -> Evidence:
        """The same root with other blobs, whose table is made anew."""
        table = tuple((digest, len(blobs[digest])) for digest in sorted(blobs))
        return replace(self, bundle=replace(self.bundle, blobs=table), blobs=blobs)

    def signed(self, leaves: tuple[bytes, ...], *, run: str = RUN, key: SigningKey = KEY) -> Evidence:
        """A root over other leaves, signed with the trainer's own valid key, and a bundle that goes with it."""
        hashes = [merkle.leaf_hash(leaf) for leaf in leaves]
        root, node = merkle.root(hashes), merkle.nodes_of(hashes)
        opened = tuple(
            OpenedSegment(segment.index, merkle.inclusion_proof(segment.index + 1, len(leaves), node))
            for segment in self.bundle.opened
        )
        note = sign_root(Checkpoint(f"{key.name}/{run}", len(leaves), root), key, NOW)
        bundle = replace(self.bundle, size=len(leaves), root=root, leaves=leaves, opened=opened)
        return replace(self, root=note, bundle=bundle)

    def manifest(self) -> Manifest:
        return Manifest.parse(self.bundle.leaves[0])

    def records(self) -> list[SegmentRecord]:
        return [SegmentRecord.parse(leaf) for leaf in self.bundle.leaves[1:]]

    def declaring(self, **changes: Any) -> Evidence:
        """Sign the same run under a manifest of which some fields are others."""
        return self.signed((replace(self.manifest(), **changes).encode(), *self.bundle.leaves[1:]))

    def recording(self, index: int, **changes: Any) -> Evidence:
        """Sign the same run with some fields of one segment record replaced."""
        leaves = list(self.bundle.leaves)
        leaves[index + 1] = replace(self.records()[index], **changes).encode()
        return self.signed(tuple(leaves))


def raw_bundle(value: Any, blobs: bytes) -> bytes:
    """Seal any index value, well-formed or not, as a bundle."""
    index = canonical.encode(value)
    return MAGIC + hashlib.sha256(index).digest() + len(index).to_bytes(8, "big") + index + blobs


def edit(snapshot: Snapshot, name: str, change: Any) -> Snapshot:
    """A snapshot of which one tensor's elements were replaced by ``change(copy of the elements)``."""
    tensors = tuple(
        Tensor(t.name, t.dtype, t.shape, np.ascontiguousarray(change(t.data.copy()), t.data.dtype))
        if t.name == name
        else t
        for t in snapshot.tensors
    )
    return Snapshot(tensors, snapshot.scalars)


def map_weights(snapshot: Snapshot, change: Any) -> Snapshot:
    """A snapshot whose parameters were replaced by ``change(name, copy of the elements)``."""
    for tensor in snapshot.tensors:
        if tensor.name.startswith("parameter/"):
            snapshot = edit(snapshot, tensor.name, lambda data, name=tensor.name: change(name, data))
    return snapshot


def between(start: Snapshot, end: Snapshot, part: float) -> Snapshot:
    """The snapshot ``start`` with its parameters a part of the way to those of ``end``."""
    return map_weights(
        start, lambda name, data: data + np.float32(part) * (end.tensor(name).data - data).astype(np.float32)
    )


@dataclass
class Trainer:
    """A trainer who may lie everywhere. Override a method, or set a field, to tell one lie."""

    config: dict[str, Any] = field(default_factory=dict)
    fidelity: str = "float16-writeback"
    initial_kind: str = "seed"
    steps: int = STEPS
    every: int = EVERY
    recipe_file: RecipeFile = RECIPE
    audit: bool = False  # whether the bundle carries every snapshot
    base: int | None = 0  # step of the snapshot that all are quantised against, as a recorder has it for short runs
    environment: Any = None  # the class that is claimed; this machine's if None

    def __post_init__(self) -> None:
        seed_initial(SEED)
        self.recipe = self.recipe_file.load()
        self.training = self.recipe.build("cpu", self.config)
        self.live = LiveState(self.training.model, self.training.optimizer, self.training.extras)
        self.hyperparameters = canonical.encode(hyperparameters(self.training.optimizer))
        self.dataset = self.training.loader.dataset
        self.order = np.random.default_rng(3)

    # What a lie replaces.

    def begin(self) -> None:
        """Change the live state before snapshot 0 is taken."""

    def draw(self, number: int) -> tuple[int, ...]:
        """Choose the samples of a step."""
        return tuple(
            int(index) for index in self.order.choice(len(self.dataset), self.training.loader.batch_size, replace=False)
        )

    def used(self, number: int, indices: tuple[int, ...]) -> tuple[int, ...]:
        """What the step is trained on; the record says ``indices``."""
        return indices

    def train(self, batches: Any, number: int) -> Any:
        """One step; returns the loss."""
        return self.recipe.step(self.training, batches)

    def end(self, index: int) -> None:
        """Change the live state at the end of segment ``index``, before its snapshot is taken."""

    def commit(self, index: int, committed: Snapshot) -> Snapshot:
        """Replace the snapshot that is committed as the end of segment ``index``."""
        return committed

    def commit_dataset(self) -> Any:
        """The dataset whose root is declared."""
        return self.dataset

    def base_of(self, start: int) -> int | None:
        """The step of the snapshot that the end of the segment from ``start`` is quantised against."""
        if self.base is None or self.fidelity == "lossless":
            return None
        return start if base_is_previous(self.fidelity) else self.base

    # The honest rest.

    def run(self, opened: tuple[int, ...] | None = None) -> Evidence:
        """Train and sign; the bundle opens ``opened``, or everything."""
        self.begin()
        snapshots = {0: self.live.capture(0)}
        all_steps: list[Steps] = []
        edges = [*range(0, self.steps, self.every), self.steps]
        for index in range(len(edges) - 1):
            start, end = edges[index], edges[index + 1]
            all_steps.append(Steps(start, tuple(self.step(number) for number in range(start, end))))
            self.end(index)
            base = self.base_of(start)
            against = None if base is None else snapshots[base]
            committed = quantise(self.live.capture(end), against, self.fidelity)
            if writes_back(self.fidelity):
                self.live.restore(committed)
            snapshots[end] = self.commit(index, committed)
        self.snapshots = snapshots
        return self.assemble(all_steps, edges, opened)

    def step(self, number: int) -> Step:
        seen: list[Any] = []
        hook = self.training.optimizer.register_step_pre_hook(lambda opt, *_: seen.append(hyperparameters(opt)))
        indices = self.draw(number)
        seed_all(stream_seed(SEED, Stream.STEP, number, 0, 0))
        loader = copy.copy(self.training.loader)
        loader.__dict__["dataset"] = self.dataset
        batch = load_batch(loader, self.used(number, indices), SEED, number)
        loss = loss_value(self.train(iter([batch]), number))
        hook.remove()
        return Step((Microbatch(number, (indices,)),), seen[-1], loss)

    def assemble(self, all_steps: list[Steps], edges: list[int], opened: tuple[int, ...] | None) -> Evidence:
        hashes = dataset_hashes(self.commit_dataset(), SALT, lambda _done, _all: None)
        kind = type(self.training.optimizer)
        environment = self.environment or detect("cpu")
        blobs = {hashlib.sha256(data).digest(): data for data in (self.hyperparameters,)}
        manifest = Manifest(
            run=RUN,
            recipe=Recipe("file", self.recipe_file.digest, tuple(sorted(self.config.items()))),
            dataset=Dataset(merkle.root(hashes), len(hashes)),
            optimizer=Optimizer(f"{kind.__module__}.{kind.__qualname__}", next(iter(blobs))),
            seed=SEED,
            sampler="free",
            initial=Initial(self.initial_kind, self.snapshots[0].digest()),
            environment=environment,
            fidelity=self.fidelity,
            every=self.every,
        )
        leaves = [manifest.encode()]
        for index, steps in enumerate(all_steps):
            start, end = edges[index], edges[index + 1]
            data = steps.encode()
            record = SegmentRecord(
                index=index,
                start_step=start,
                end_step=end,
                start_state=self.snapshots[start].digest(),
                end_state=self.snapshots[end].digest(),
                base_step=self.base_of(start),
                steps=hashlib.sha256(data).digest(),
                environment=environment,
                norms=distances(self.snapshots[start], self.snapshots[end]),
            )
            leaves.append(record.encode())
        wanted = tuple(range(len(all_steps))) if opened is None else opened
        needed = set(edges) if self.audit else {edge for index in wanted for edge in edges[index : index + 2]}
        needed |= set() if self.initial_kind == "seed" else {0}
        needed |= {base for index in wanted if (base := self.base_of(edges[index])) is not None}
        stored: dict[bytes, bytes] = {}
        for edge in needed:  # a snapshot may be stored in any way, so exactly: then nothing is rounded away
            record, parts, _ = frames.encode(self.snapshots[edge], None, "lossless")
            stored[record.state_digest] = record.encode()
            blobs |= parts
        used: set[int] = set()
        for index in wanted:
            blobs |= {hashlib.sha256(all_steps[index].encode()).digest(): all_steps[index].encode()}
            used |= all_steps[index].samples()
        salts = tuple((index, sample_salt(SALT, index)) for index in sorted(used))
        inside = [index for index in sorted(used) if index < len(hashes)]
        bundle = Bundle(
            size=len(leaves),
            root=bytes(32),
            leaves=tuple(leaves),
            opened=tuple(OpenedSegment(index, ()) for index in wanted),
            snapshots=tuple(stored[digest] for digest in sorted(stored)),
            samples=Samples(salts, multi_proof(inside, len(hashes), merkle.nodes_of(hashes)) if used else ()),
            blobs=(),
        )
        return Evidence(b"", bundle, {}).with_blobs(blobs).signed(tuple(leaves))


def tampered(dataset: Any, change: Any) -> Any:
    """A copy of the dataset whose (inputs, labels) were changed in place by ``change``."""
    inputs, labels = (tensor.clone() for tensor in dataset.tensors)
    change(inputs, labels)
    return torch.utils.data.TensorDataset(inputs, labels)
