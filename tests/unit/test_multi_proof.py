"""Proofs for many leaves against a recursive reference: exhaustive where small, random above."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from polstore.errors import MerkleError, UsageError
from polstore.wire import merkle
from polstore.wire.multi_proof import multi_proof, verify_multi_proof

LEAVES = [merkle.leaf_hash(b"%d" % number) for number in range(200)]
NODE = merkle.nodes_of(LEAVES)


def reference(opened: set[int], start: int, end: int) -> list[bytes]:
    if not any(start <= index < end for index in opened):
        return [merkle.root(LEAVES[start:end])]
    if end - start == 1:
        return []
    middle = 1
    while middle * 2 < end - start:
        middle *= 2
    return reference(opened, start, start + middle) + reference(opened, start + middle, end)


def check(indices: tuple[int, ...], size: int) -> None:
    root = merkle.root(LEAVES[:size])
    proof = multi_proof(indices, size, NODE)
    leaves = [(index, LEAVES[index]) for index in indices]
    assert list(proof) == reference(set(indices), 0, size)
    verify_multi_proof(leaves, size, proof, root)

    other = merkle.leaf_hash(b"another")
    mutants = [(leaves, size, (*proof, other), root), (leaves, size, proof, other), ([], size, proof, root)]
    mutants += [(leaves, 2 * size, proof, root), (leaves, indices[-1], proof, root)]
    for at in range(len(proof)):
        mutants.append((leaves, size, (*proof[:at], *proof[at + 1 :]), root))
        mutants.append((leaves, size, (*proof[:at], other, *proof[at + 1 :]), root))
        mutants.append((leaves, size, (*proof[:at], proof[at][:31], *proof[at + 1 :]), root))
        if at + 1 < len(proof):
            mutants.append((leaves, size, (*proof[:at], proof[at + 1], proof[at], *proof[at + 2 :]), root))
    for at, (index, leaf) in enumerate(leaves):
        for wrong in ((index + 1, leaf), (index - 1, leaf), (index, other), (index, leaf[:31]), (index + size, leaf)):
            mutants.append(([*leaves[:at], wrong, *leaves[at + 1 :]], size, proof, root))
        mutants.append(([*leaves[:at], *leaves[at + 1 :]], size, proof, root))
        mutants.append(([*leaves[:at], leaves[at], *leaves[at:]], size, proof, root))
    if len(leaves) > 1:
        mutants.append((leaves[::-1], size, proof, root))
        swapped = [(leaves[0][0], leaves[1][1]), (leaves[1][0], leaves[0][1]), *leaves[2:]]
        mutants.append((swapped, size, proof, root))
    for mutant in mutants:
        with pytest.raises(MerkleError):
            verify_multi_proof(*mutant)


@pytest.mark.parametrize("size", range(1, 9))
def test_every_subset_of_small_trees(size: int) -> None:
    for count in range(1, size + 1):
        for indices in combinations(range(size), count):
            check(indices, size)


@pytest.mark.parametrize("seed", range(30))
def test_random_subsets_of_larger_trees(seed: int) -> None:
    source = random.Random(seed)
    size = source.randrange(9, 200)
    check(tuple(sorted(source.sample(range(size), source.randrange(1, min(size, 12))))), size)


def test_one_leaf_needs_its_audit_path() -> None:
    for index in range(100):
        assert sorted(multi_proof([index], 100, NODE)) == sorted(merkle.inclusion_proof(index, 100, NODE))


def test_all_leaves_need_no_proof() -> None:
    assert multi_proof(range(100), 100, NODE) == ()


@pytest.mark.parametrize("indices", [[], [1, 1], [2, 1], [-1], [5], [0, 5]])
def test_no_proof_for_senseless_indices(indices: list[int]) -> None:
    with pytest.raises(UsageError):
        multi_proof(indices, 5, NODE)


@pytest.mark.parametrize("size", [0, -1, 2**48 + 1, 2**4000])
def test_sizes_are_checked_first(size: int) -> None:
    with pytest.raises(MerkleError, match="size"):
        verify_multi_proof([(0, LEAVES[0])], size, (), LEAVES[0])


def test_the_deepest_tree_is_walked_without_recursion() -> None:
    with pytest.raises(MerkleError, match="length"):
        verify_multi_proof([(0, LEAVES[0]), (2**48 - 1, LEAVES[1])], 2**48, (), LEAVES[0])
    with pytest.raises(MerkleError, match="another root"):
        verify_multi_proof([(0, LEAVES[0]), (2**48 - 1, LEAVES[1])], 2**48, [LEAVES[2]] * 94, LEAVES[0])
