"""Streams of randomness, salts, and which generator gets which bits."""

from __future__ import annotations

import hashlib
import hmac
import random

import msgpack
import numpy as np
import pytest
import torch

from polstore.codec.live.randomness import Generators, seed_all
from polstore.codec.live.tree import flatten, unflatten
from polstore.errors import MalformedError, TrainingError
from polstore.wire.randomness import Stream, sample_salt, stream_seed

SEED = hashlib.sha256(b"seed").digest()


def drawn() -> tuple[object, ...]:
    return random.getrandbits(64), int(np.random.randint(1 << 30)), int(torch.randint(1 << 30, ()))


def test_a_stream_is_a_hash_of_its_place() -> None:
    place = msgpack.packb(["polstore/randomness/v1", SEED, "step", [3, 1, 0]], use_bin_type=True)
    assert stream_seed(SEED, Stream.STEP, 3, 1, 0) == hashlib.sha256(place).digest()
    names = (Stream.INITIAL, Stream.EPOCH, Stream.FETCH, Stream.STEP, Stream.SAMPLE)
    seeds = [stream_seed(SEED, name, *numbers) for name in names for numbers in ((), (0,), (0, 0), (0, 0, 0), (1,))]
    assert len(set(seeds)) == len(seeds)


def test_salts() -> None:
    assert sample_salt(SEED, 258) == hmac.new(SEED, b"\0\0\0\0\0\0\1\2", hashlib.sha256).digest()
    assert len({sample_salt(SEED, index) for index in range(100)}) == 100


def test_generators_get_these_bits() -> None:
    seed_all(SEED)
    got = drawn()
    random.seed(SEED, version=2)
    np.random.seed([int.from_bytes(SEED[at : at + 4], "big") for at in range(0, 32, 4)])
    torch.manual_seed(int.from_bytes(SEED[:8], "big"))
    assert got == drawn()


def test_torch_uses_32_bits_on_the_cpu() -> None:
    seed_all(SEED)
    got = int(torch.randint(1 << 30, ()))
    torch.manual_seed(int.from_bytes(SEED[4:8], "big"))
    assert int(torch.randint(1 << 30, ())) == got


def test_a_private_state_is_in_force_inside_only() -> None:
    seed_all(SEED)
    outer = [drawn(), drawn()]
    inner = Generators(SEED[::-1])
    seed_all(SEED)
    first = drawn()
    with inner.active():
        one = drawn()
    second = drawn()
    with inner.active():
        two = drawn()
    assert [first, second] == outer
    seed_all(SEED[::-1])
    assert [one, two] == [drawn(), drawn()]


def name_of(path: str, _: torch.Tensor) -> str:
    return path


def test_a_tree_comes_back() -> None:
    state = {"b": [1, 1.0, (True, None)], 3: {"x": torch.ones(2)}, -1: "é", "a": b"\0"}
    tree = flatten(state, "p", name_of)
    assert tree == (2, (-1, "é"), (3, (2, ("x", (3, "p/3/x")))), ("a", b"\0"), ("b", (0, 1, 1.0, (1, True, None))))
    names = []

    def tensor(name: object) -> torch.Tensor:
        names.append(name)
        return torch.zeros(1)

    again = unflatten(tree, tensor)
    assert names == ["p/3/x"]
    assert again["b"] == [1, 1.0, (True, None)]
    assert set(again) == set(state)


@pytest.mark.parametrize(
    "tree",
    [
        (),
        ("a",),
        (4,),
        (-1,),
        (False, 1),
        (True, 1),
        (3,),
        (3, "a", "b"),
        (2, "a"),
        (2, ("a",)),
        (2, (True, 1)),
        (2, (1.0, 1)),
        (2, (None, 1)),
        (2, ("a", 1), ("a", 1)),
        (2, ("b", 1), ("a", 1)),
        (2, ("a", 1), (0, 1)),
        (2, (1, 1), (0, 1)),
        (0, (0, (9,))),
    ],
)
def test_a_tree_that_flatten_does_not_make_is_refused(tree: tuple[object, ...]) -> None:
    with pytest.raises(MalformedError):
        unflatten(tree, lambda _: torch.zeros(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("state", [{1, 2}, {"a": object()}, {True: 1}, {1.5: 1}, {(1, 2): 3}, lambda: 0])
def test_state_that_cannot_be_committed(state: object) -> None:
    with pytest.raises(TrainingError):
        flatten(state, "p", name_of)
