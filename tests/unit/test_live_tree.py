"""Nested state to canonical values and back; samples and generators, which the same modules serve."""

from __future__ import annotations

import enum
import hashlib
import random

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from polstore.codec.live.randomness import Generators, preserved, seed_all
from polstore.codec.live.samples import dataset_hashes, load_samples, sample_content, sample_hash
from polstore.codec.live.tree import flatten, unflatten
from polstore.errors import MalformedError, TrainingError
from polstore.wire import canonical
from polstore.wire.merkle import leaf_hash
from polstore.wire.randomness import sample_salt

SEED = bytes(range(32))

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.binary(max_size=8)
    | st.builds(lambda values: torch.tensor(values), st.lists(st.integers(0, 9), max_size=3))
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.integers(-5, 5) | st.text("abc#", max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(first, second):
    """Compare two trees, types included."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@settings(deadline=None, max_examples=150)
@given(trees)
def test_every_tree_comes_back(tree):
    tensors = []

    def keep(path, tensor):
        tensors.append(tensor)
        return len(tensors) - 1

    value = flatten(tree, "t", keep)
    decoded = canonical.decode(canonical.encode(value), limit=2**20, what="tree")
    assert same(unflatten(decoded, lambda number: tensors[number]), tree)


def test_paths_name_tensors():
    paths = []
    flatten({"b": [torch.ones(1), (torch.ones(1),)], 3: torch.ones(1)}, "x", lambda path, _: paths.append(path))
    assert paths == ["x/3", "x/b/0", "x/b/1/0"]


class Colour(enum.Enum):
    RED = 1


REFUSED = {
    "a set": {1},
    "an object": object(),
    "a function": len,
    "an enumeration": Colour.RED,
    "a complex number": 1j,
    "a key that is no text": {1.5: 0},
    "a key that is a boolean": {True: 0},
    "an integer of more than 64 bits": 2**64,
    "a negative one": -(2**63) - 1,
    "text that has no encoding": "\ud800",
    "an array of objects": np.array([object()]),
    "an array of text": np.array(["a"]),
    "an array of dates": np.array(["2020-01-01"], "datetime64[D]"),
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_committed_is_refused_by_its_path(value):
    with pytest.raises(TrainingError, match="here/1/k"):
        flatten([0, {"k": value}], "here", lambda path, _: path)


@pytest.mark.parametrize(
    "value", [(), ("x",), (9, 1), (2, 1), (2, (1, 2, 3)), (2, (1.0, 2)), (2, ((), 2)), (3,), (3, 1, 2), (-1,), (None,)]
)
def test_values_that_flatten_does_not_make_are_refused(value):
    with pytest.raises(MalformedError):
        unflatten(value, lambda _: torch.ones(1))


def test_arrays_are_committed_as_tensors_whatever_their_memory():
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    read_only = array.copy()
    read_only.setflags(write=False)
    expected = sample_content(torch.from_numpy(array))
    for variant in (array, read_only, np.asfortranarray(array), array[:, ::-1][:, ::-1]):
        assert sample_content(variant) == expected
    assert sample_content(np.array(5)) == sample_content(torch.tensor(5))
    assert sample_content(np.float32(1.5)) == 1.5


class Noisy:
    """Draws from all generators, so that two loadings differ unless they are seeded alike."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(2)


def state():
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()


def test_sample_hashes_are_those_of_single_samples_and_leave_no_trace():
    before = state()
    hashes = dataset_hashes(Noisy(), SEED, lambda done, total: random.random())
    assert state() == before
    random.random(), torch.rand(1)
    assert hashes == [sample_hash(Noisy(), index, sample_salt(SEED, index)) for index in range(40)]
    assert len(set(hashes)) == 40


def test_a_sample_hash_is_what_the_definition_says():
    """Written out once more, slowly: canonical encoding of tag, salt and content, under RFC 6962's leaf prefix."""
    inputs, label = torch.tensor([1.0, 2.0]), 7
    bytes_of_inputs = hashlib.sha256(inputs.numpy().tobytes()).digest()
    leaf = canonical.encode(
        ("polstore/sample/v1", SEED, (1, (3, ("float32", (2,), bytes_of_inputs)), label)),
    )
    assert sample_hash([(inputs, label)], 0, SEED) == leaf_hash(leaf)


def test_progress_ends_with_all_samples():
    told = []
    dataset_hashes([1] * 300, SEED, lambda done, total: told.append((done, total)))
    assert told == [(1, 300), (257, 300), (300, 300)]


def test_a_failing_sample_leaves_the_generators_as_they_were():
    before = state()
    with pytest.raises(IndexError):
        dataset_hashes(Short(), SEED, lambda *_: None)
    with pytest.raises(IndexError):
        load_samples(Short(), [9], SEED)
    assert state() == before


class Short(Noisy):
    def __getitem__(self, index):
        torch.rand(1)
        raise IndexError(index)


def test_private_generators_go_on_and_leak_nothing():
    generators, before = Generators(SEED), state()
    drawn = []
    for _ in range(3):
        with generators.active():
            drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
        assert state() == before
    seed_all(SEED)
    assert drawn == [(random.random(), np.random.rand(), torch.rand(()).item()) for _ in range(3)]


def test_they_nest():
    before = state()
    outer, inner = Generators(SEED), Generators(SEED[::-1])
    with outer.active():
        first = torch.rand(1)
        with inner.active(), preserved():
            torch.rand(5)
        second = torch.rand(1)
    assert state() == before
    seed_all(SEED)
    assert torch.equal(torch.rand(1), first)
    assert torch.equal(torch.rand(1), second)


def test_seeding_depends_on_every_byte_it_should():
    draws = set()
    for position in (0, 7):
        seed = bytearray(SEED)
        seed[position] ^= 1
        seed_all(bytes(seed))
        draws.add((random.random(), np.random.rand(), torch.rand(()).item()))
    assert len(draws) == 2


def test_a_sample_that_no_leaf_can_hold_is_the_trainings_fault():
    sample = [1]
    sample.append(sample)
    with pytest.raises(TrainingError, match="sample 1 cannot be committed"):
        dataset_hashes([[1], sample], SEED, lambda *_: None)
