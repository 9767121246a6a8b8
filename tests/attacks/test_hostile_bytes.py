"""Hostile bytes: committed, signed and sealed in good order, so that only strict parsing stands in their way.

The states here are signed ones. The start of segment 2 is hostile and only segment 2 is opened, so the verifier has to
take it in: nothing of it may be executed, allocated beyond reason, or put where the recipe did not ask for it.
"""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from polstore.codec import frames, framing
from polstore.codec.live.state import LiveState
from polstore.codec.snapshot import Snapshot, Tensor
from polstore.errors import MalformedError, TrainingError
from polstore.wire import canonical
from polstore.wire.manifest import Optimizer, Recipe
from polverify.verdict import Decision
from tests.attacks import forge
from tests.attacks.forge import Evidence, Trainer, raw_bundle

WELL_FORMED, MANIFEST, INITIAL, DATA, REPLAY = 0, 4, 5, 9, 10


class Executed:
    """Pickles to a call that would make itself known."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


PICKLE = pickle.dumps(Executed())


@pytest.fixture(scope="module")
def proof() -> Evidence:
    return Trainer().run(opened=(2,))


def starting_from(change: Any, **options: Any) -> Evidence:
    """A signed run whose segment 2, the only one opened, starts from a changed snapshot."""
    trainer = Trainer(**options)
    trainer.commit = lambda index, committed: change(committed) if index == 1 else committed
    return trainer.run(opened=(2,))


def scalars_with(change: Any) -> Any:
    """Change the scalars' (optimizer tree, extras tree)."""

    def changed(snapshot: Snapshot) -> Snapshot:
        tag, step, optimizer, extras = canonical.decode(snapshot.scalars, limit=2**20, what="scalars")
        optimizer, extras = change(optimizer, extras)
        return Snapshot(snapshot.tensors, canonical.encode((tag, step, optimizer, extras)))

    return changed


def in_groups(change: Any) -> Any:
    """Change the (key, value) pairs of the optimizer's only parameter group."""

    def changed(optimizer: Any, extras: Any) -> Any:
        items = dict(optimizer[1:])
        (tag, group) = items["#groups"]
        pairs = change(dict(group[1:]))
        items["#groups"] = (tag, (2, *sorted(pairs.items())))
        return (2, *sorted(items.items())), extras

    return scalars_with(changed)


def in_scheduler(change: Any) -> Any:
    def changed(optimizer: Any, extras: Any) -> Any:
        pairs = change(dict(extras[1][1][1:]))
        return optimizer, (2, ("scheduler", (2, *sorted(pairs.items()))))

    return scalars_with(changed)


def test_the_helpers_change_nothing_by_themselves(judge):
    for same in (in_groups(dict), in_scheduler(dict), scalars_with(lambda optimizer, extras: (optimizer, extras))):
        assert judge(starting_from(same)).decision is Decision.ACCEPT


# Pickles.


def test_pickle_for_a_configuration(rejects, proof):
    config = (("lr", 0.1), ("model", PICKLE))
    value = replace(proof.manifest(), recipe=Recipe("file", forge.RECIPE.digest, config)).encode()
    assert rejects(proof.signed((value, *proof.bundle.leaves[1:]))) == MANIFEST


def test_pickle_for_hyperparameters(rejects, proof):
    optimizer, digest = proof.manifest().optimizer, hashlib.sha256(PICKLE).digest()
    blobs = {key: data for key, data in proof.blobs.items() if key != optimizer.hyperparameters} | {digest: PICKLE}
    forged = proof.with_blobs(blobs).declaring(optimizer=Optimizer(optimizer.name, digest))
    assert rejects(forged) == MANIFEST


def test_pickle_for_step_records(rejects, proof):
    digest, old = hashlib.sha256(PICKLE).digest(), proof.records()[2].steps
    blobs = {key: data for key, data in proof.blobs.items() if key != old} | {digest: PICKLE}
    assert rejects(proof.with_blobs(blobs).recording(2, steps=digest)) == DATA


def test_pickle_for_scalars_or_a_bundle(rejects, proof):
    assert rejects(starting_from(lambda snapshot: Snapshot(snapshot.tensors, PICKLE))) == REPLAY
    assert rejects(proof, data=PICKLE) == WELL_FORMED
    assert rejects(proof, root=PICKLE) == 1


# Tensors.


def added(name: str, dtype: str = "float32", shape: tuple[int, ...] = (2,)) -> Any:
    def changed(snapshot: Snapshot) -> Snapshot:
        extra = Tensor(name, dtype, shape, np.zeros(int(np.prod(shape)), "<f4"))
        return Snapshot(tuple(sorted([*snapshot.tensors, extra], key=lambda t: t.name.encode())), snapshot.scalars)

    return changed


@pytest.mark.parametrize(
    "name",
    ["parameter/../../../etc/passwd", "/etc/passwd", "parameter/__class__", "buffer/0.__dict__", "extra/x", "zzz"],
)
def test_names_that_lead_elsewhere(rejects, name):
    trainer = Trainer()
    evidence = trainer.run(opened=(2,))
    assert rejects(swapped_start(evidence, trainer, added(name)(trainer.snapshots[6]))) == REPLAY


def reshaped(name: str, shape: tuple[int, ...]) -> Any:
    def changed(snapshot: Snapshot) -> Snapshot:
        count = int(np.prod(shape))
        tensors = tuple(
            Tensor(t.name, t.dtype, shape, np.resize(t.data, count)) if t.name == name else t for t in snapshot.tensors
        )
        return Snapshot(tensors, snapshot.scalars)

    return changed


@pytest.mark.parametrize("shape", [(), (1,), (6, 12), (72,), (12, 6, 1), (0,), (12, 7)])
@pytest.mark.parametrize("name", ["parameter/0.weight", "optimizer/0.weight/momentum_buffer"])
def test_wrong_shapes(rejects, name, shape):
    """No norms can be computed with such a start, so the record keeps the honest ones."""
    trainer = Trainer()
    evidence = trainer.run(opened=(2,))
    hostile = reshaped(name, shape)(trainer.snapshots[6])
    assert rejects(swapped_start(evidence, trainer, hostile)) in {REPLAY, 11}


def swapped_start(evidence: Evidence, trainer: Trainer, hostile: Snapshot) -> Evidence:
    """Let segment 2 start from another snapshot, in the records and in the bundle."""
    record, parts, _ = frames.encode(hostile, None, "lossless")
    old = trainer.snapshots[6].digest()
    leaves = list(evidence.bundle.leaves)
    records = evidence.records()
    leaves[2] = replace(records[1], end_state=hostile.digest()).encode()
    leaves[3] = replace(records[2], start_state=hostile.digest()).encode()
    kept = [frames.StoredSnapshot.parse(data) for data in evidence.bundle.snapshots]
    kept = sorted([*(s for s in kept if s.state_digest != old), record], key=lambda s: s.state_digest)
    of_states = {digest for data in evidence.bundle.snapshots for digest in frames.StoredSnapshot.parse(data).blobs}
    needed = {digest for stored in kept for digest in stored.blobs}
    blobs = {k: v for k, v in (evidence.blobs | parts).items() if k not in of_states - needed}
    changed = evidence.with_blobs(blobs).edited(snapshots=tuple(stored.encode() for stored in kept))
    return changed.signed(tuple(leaves))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_in_a_start(rejects, value):
    """A run may diverge, but segment 2 then has to lead where its record says."""

    class Poisoned(Trainer):
        def commit(self, index: int, committed: Snapshot) -> Snapshot:
            if index != 1:
                return committed
            return forge.edit(committed, "parameter/0.weight", lambda data: np.full_like(data, value))

    assert rejects(Poisoned().run(opened=(2,))) == REPLAY


def test_duplicate_tensor_names(rejects, proof):
    for place, stored in enumerate(proof.bundle.snapshots):
        tag, digest, base, scalars, tensors, groups = canonical.decode(stored, limit=2**20, what="stored snapshot")
        twice = canonical.encode((tag, digest, base, scalars, (tensors[0], *tensors), groups))
        snapshots = (*proof.bundle.snapshots[:place], twice, *proof.bundle.snapshots[place + 1 :])
        assert rejects(proof.edited(snapshots=snapshots)) == WELL_FORMED


# Sizes.


def test_state_that_would_not_fit_into_memory(rejects, proof):
    """48 GiB of zeros: consistent with their own digest as far as can be told without decoding them."""
    trainer = Trainer()
    evidence = trainer.run(opened=(2,))
    stored = frames.StoredSnapshot.parse(evidence.bundle.snapshots[0])
    tag, _, base, scalars, tensors, groups = canonical.decode(stored.encode(), limit=2**20, what="stored snapshot")
    huge = ((0, "zzz", "float32", (3 * 2**32,), bytes(32)), 1, 0)
    lying = canonical.encode((tag, stored.state_digest, base, scalars, (*tensors, huge), groups))
    assert rejects(evidence.edited(snapshots=(lying, *evidence.bundle.snapshots[1:]))) == WELL_FORMED


def test_state_far_larger_than_the_recipe_has(rejects, monkeypatch):
    """Consistent, signed, and 80 MiB where the recipe has a few kilobytes: refused before anything is decompressed."""
    fetched: list[int] = []
    original = framing.Unpacker._plane
    monkeypatch.setattr(framing.Unpacker, "_plane", lambda *a: (fetched.append(a[3]), original(*a))[1])
    trainer = Trainer()
    evidence = trainer.run(opened=(2,))
    hostile = added("zzz", shape=(20 * 2**20,))(trainer.snapshots[6])
    forged = swapped_start(evidence, trainer, hostile)
    assert len(forged.data()) < 2**17  # a bomb: the zeros take next to nothing
    fetched.clear()
    assert rejects(forged) == REPLAY
    assert max(fetched, default=0) < 2**20


@pytest.mark.parametrize("count", [2**31, 2**32 - 1])
def test_counts_that_nothing_stands_behind(rejects, proof, count):
    """An array that claims billions of items, many deep."""
    for index in (b"\xdd" + count.to_bytes(4, "big"), (b"\xdd" + count.to_bytes(4, "big")) * 400):
        sealed = forge.MAGIC + hashlib.sha256(index).digest() + len(index).to_bytes(8, "big") + index
        assert rejects(proof, data=sealed) == WELL_FORMED


@pytest.mark.parametrize("depth", [40, 600, 100_000])
def test_deep_nesting(rejects, proof, depth):
    index = b"\x91" * depth + b"\xc0"
    sealed = forge.MAGIC + hashlib.sha256(index).digest() + len(index).to_bytes(8, "big") + index
    assert rejects(proof, data=sealed) == WELL_FORMED
    digest, old = hashlib.sha256(index).digest(), proof.records()[2].steps
    blobs = {key: data for key, data in proof.blobs.items() if key != old} | {digest: index}
    assert rejects(proof.with_blobs(blobs).recording(2, steps=digest)) == DATA
    assert rejects(starting_from(lambda snapshot: Snapshot(snapshot.tensors, index))) == REPLAY


@pytest.mark.parametrize(
    "value", [None, 0, "", b"", (), (1, 2, 3), ("polstore/bundle/v1",), ("polstore/bundle/v2",) * 8]
)
def test_index_of_another_shape(rejects, proof, value):
    assert rejects(proof, data=raw_bundle(value, b"")) == WELL_FORMED


# State trees.


@pytest.mark.parametrize(
    "change",
    [
        lambda pairs: pairs | {"closure": "evil"},
        lambda pairs: {key: value for key, value in pairs.items() if key != "nesterov"},
        lambda pairs: pairs | {"lr": "0.1"},
        lambda pairs: pairs | {"lr": (0, 0.1)},
        lambda pairs: pairs | {"lr": (3, "parameter/0.weight")},
        lambda pairs: pairs | {"lr": 2**63},
        lambda pairs: pairs | {"momentum": None},
        lambda pairs: pairs | {"params": (0, "4.weight", "0.weight")},
        lambda pairs: pairs | {"params": ()},
        lambda pairs: pairs | {"maximize": True},
        lambda pairs: pairs | {"fused": True},
        lambda pairs: pairs | {"foreach": True},
        lambda pairs: pairs | {"differentiable": True},
    ],
)
def test_hyperparameters_smuggled_into_a_state(rejects, change):
    """Unknown names, missing ones, values of other types, and switches that choose another kernel or direction."""
    assert rejects(starting_from(in_groups(change))) == REPLAY


@pytest.mark.parametrize(
    "change",
    [
        lambda pairs: pairs | {"step": "evil"},
        lambda pairs: pairs | {"__class__": "evil"},
        lambda pairs: pairs | {"optimizer": None},
        lambda pairs: {key: value for key, value in pairs.items() if key != "last_epoch"},
        lambda pairs: pairs | {"gamma": "0.5"},
        lambda pairs: pairs | {"step_size": 0},
        lambda pairs: pairs | {"last_epoch": (0, 1)},
        lambda pairs: pairs | {"_step_count": 2**64 - 1},
        lambda pairs: pairs | {"base_lrs": (3, "parameter/0.weight")},
    ],
)
def test_attributes_smuggled_into_the_scheduler(rejects, change):
    assert rejects(starting_from(in_scheduler(change))) == REPLAY


def test_learning_rate_that_outgrows_every_integer(rejects):
    """A state that is well-formed and becomes one that nothing can hold is the proof's fault, not the verifier's."""
    grow = in_scheduler(lambda pairs: pairs | {"gamma": 4, "step_size": 1})
    large = in_groups(lambda pairs: pairs | {"lr": 2**62})
    assert rejects(starting_from(lambda snapshot: grow(large(snapshot)))) == REPLAY


@pytest.mark.parametrize(
    "change",
    [
        lambda optimizer, extras: (optimizer, (2,)),
        lambda optimizer, extras: (optimizer, (2, *extras[1:], ("zzz", (2,)))),
        lambda optimizer, extras: (None, extras),
        lambda optimizer, extras: ((2,), extras),
        lambda optimizer, extras: ((0, *optimizer[1:]), extras),
        lambda optimizer, extras: ((9, *optimizer[1:]), extras),
        lambda optimizer, extras: ((2, *optimizer[1:], *optimizer[1:]), extras),
        lambda optimizer, extras: ((2, *optimizer[1:], ("zzz", (2,))), extras),
        lambda optimizer, extras: ((2, *optimizer[1:], ("zzz", (3, "no/such/tensor"))), extras),
        lambda optimizer, extras: (optimizer, (2, ("scheduler", (0, 1, 2)))),
        lambda optimizer, extras: ((2, optimizer[1], *((name, 5) for name, _ in optimizer[2:])), extras),
        lambda optimizer, extras: ((True, *optimizer[1:]), extras),
    ],
)
def test_state_tree_of_the_wrong_types(rejects, change):
    assert rejects(starting_from(scalars_with(change))) == REPLAY


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fused_kernel_is_never_given_state_of_another_shape(optimizer):
    """Fused kernels do not check the shapes of their state: torch would write past the end of one element."""
    kinds = {"sgd": (torch.optim.SGD, {"momentum": 0.9}), "adam": (torch.optim.Adam, {})}
    kind, options = kinds[optimizer]
    model = torch.nn.Linear(64, 64)
    live = LiveState(model, kind(model.parameters(), lr=0.1, fused=True, **options), {})
    model(torch.ones(1, 64)).sum().backward()
    live.optimizer.step()
    snapshot = live.capture(1)
    assert live.restore(snapshot) == 1
    key = next(t.name for t in snapshot.tensors if t.name.startswith("optimizer/weight/") and t.shape)
    with pytest.raises(TrainingError, match="does not fit a fused kernel"):
        live.restore(reshaped(key, (1,))(snapshot))
    plain = LiveState(model, kind(model.parameters(), lr=0.1, **options), {})
    with pytest.raises(TrainingError, match="hyperparameter fused"):
        plain.restore(snapshot)


def test_manifests_that_are_none(proof):
    for value in (None, PICKLE, (1, 2)):
        with pytest.raises(MalformedError):
            type(proof.manifest()).parse(canonical.encode(value))
