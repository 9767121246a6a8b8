"""The Merkle tree against RFC 6962's own recursive definitions, and every mutation of a proof refused."""

from __future__ import annotations

import hashlib
from functools import cache

import pytest

from polstore.errors import MerkleError, UsageError
from polstore.wire import merkle

SIZES = range(1, 131)
DATA = [b"leaf %d" % number for number in range(max(SIZES))]
LEAVES = [merkle.leaf_hash(data) for data in DATA]
NODE = merkle.nodes_of(LEAVES)
STANDARD = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]


def split(count: int) -> int:
    power = 1
    while power * 2 < count:
        power *= 2
    return power


@cache
def mth(start: int, end: int) -> bytes:
    """MTH of RFC 6962, section 2.1."""
    if end == start:
        return hashlib.sha256(b"").digest()
    if end - start == 1:
        return hashlib.sha256(b"\x00" + DATA[start]).digest()
    middle = start + split(end - start)
    return hashlib.sha256(b"\x01" + mth(start, middle) + mth(middle, end)).digest()


def path(index: int, start: int, end: int) -> list[bytes]:
    """PATH of RFC 6962, section 2.1.1."""
    if end - start == 1:
        return []
    k = split(end - start)
    if index < k:
        return [*path(index, start, start + k), mth(start + k, end)]
    return [*path(index - k, start + k, end), mth(start, start + k)]


def subproof(old: int, start: int, end: int, known: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962, section 2.1.2."""
    if old == end - start:
        return [] if known else [mth(start, end)]
    k = split(end - start)
    if old <= k:
        return [*subproof(old, start, start + k, known), mth(start + k, end)]
    return [*subproof(old - k, start + k, end, False), mth(start, start + k)]


def test_standard_root() -> None:
    leaves = [merkle.leaf_hash(bytes.fromhex(data)) for data in STANDARD]
    assert merkle.root(leaves).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_empty_tree() -> None:
    assert merkle.root([]) == merkle.root_from_nodes(0, NODE) == merkle.EMPTY_ROOT == hashlib.sha256(b"").digest()


@pytest.mark.parametrize("size", SIZES)
def test_roots_and_proofs_are_those_of_the_rfc(size: int) -> None:
    root = mth(0, size)
    assert merkle.root(LEAVES[:size]) == merkle.root_from_nodes(size, NODE) == root
    for index in range(size):
        proof = merkle.inclusion_proof(index, size, NODE)
        assert list(proof) == path(index, 0, size)
        merkle.verify_inclusion(LEAVES[index], index, size, proof, root)
    for old in range(1, size + 1):
        proof = merkle.consistency_proof(old, size, NODE)
        assert list(proof) == subproof(old, 0, size, True)
        merkle.verify_consistency(old, mth(0, old), size, root, proof)


def test_completed_nodes_are_all_that_a_tree_ever_needs() -> None:
    stored: dict[tuple[int, int], bytes] = {}

    def node(level: int, index: int) -> bytes:
        return stored[level, index]

    for size, leaf in enumerate(LEAVES):
        for level, index, value in merkle.completed_nodes(size, leaf, node):
            assert (level, index) not in stored
            assert value == mth(index << level, (index + 1) << level)
            stored[level, index] = value
        assert merkle.root_from_nodes(size + 1, node) == mth(0, size + 1)


def test_leaves_in_bulk_complete_the_same_nodes() -> None:
    assert merkle.leaf_hashes(DATA) == LEAVES
    for before in range(40):
        for after in (before, before + 1, before + 2, before + 7, 64, 65, 130):
            wanted: dict[tuple[int, int], bytes] = {}
            for size in range(before, after):
                wanted |= {(level, at): node for level, at, node in merkle.completed_nodes(size, LEAVES[size], NODE)}
            found = {
                (level, at): node
                for level, first, nodes in merkle.completed_levels(before, LEAVES[before:after], NODE)
                for at, node in enumerate(nodes, first)
            }
            assert found == wanted


def test_a_proof_reads_few_nodes() -> None:
    size = 2**40 + 12345
    reads: list[tuple[int, int]] = []

    def node(level: int, index: int) -> bytes:
        assert (index + 1) << level <= size
        reads.append((level, index))
        return merkle.leaf_hash(b"%d %d" % (level, index))

    for index in (0, 1, size // 2, size - 2, size - 1):
        reads.clear()
        merkle.inclusion_proof(index, size, node)
        merkle.consistency_proof(index + 1, size, node)
        assert len(reads) < 4 * 41


@pytest.mark.parametrize(("level", "index"), [(0, 5), (1, 2), (3, 0), (-1, 0), (0, -1), (60, 0)])
def test_nodes_of_refuses_subtrees_that_are_not_full(level: int, index: int) -> None:
    with pytest.raises(UsageError):
        merkle.nodes_of(LEAVES[:5])(level, index)


def test_nodes_of_an_empty_tree() -> None:
    with pytest.raises(UsageError):
        merkle.nodes_of([])(3, 0)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5), (6, 5)])
def test_no_inclusion_proof_out_of_bounds(index: int, size: int) -> None:
    with pytest.raises(UsageError):
        merkle.inclusion_proof(index, size, NODE)


@pytest.mark.parametrize(("old", "new"), [(-1, 5), (6, 5)])
def test_no_consistency_proof_out_of_bounds(old: int, new: int) -> None:
    with pytest.raises(UsageError):
        merkle.consistency_proof(old, new, NODE)


def test_a_witness_gets_an_empty_proof_for_an_empty_tree() -> None:
    assert merkle.consistency_proof(0, 5, NODE) == ()


@pytest.mark.parametrize("size", range(1, 34))
def test_mutated_inclusion_proofs_are_refused(size: int) -> None:
    root = mth(0, size)
    for index in range(size):
        leaf, proof = LEAVES[index], merkle.inclusion_proof(index, size, NODE)
        mutants = [
            (leaf, index + 1, size, proof),
            (leaf, index - 1, size, proof),
            (leaf, index + size, size, proof),
            (leaf, index, size * 2, proof),
            (leaf, index, index, proof),
            (leaf, index, size, (*proof, root)),
            (leaf, index, size, (root, *proof)),
            (DATA[index].ljust(32), index, size, proof),
            (merkle.leaf_hash(leaf), index, size, proof),
            (leaf[:31], index, size, proof),
        ]
        if proof:
            mutants += [
                (leaf, index, size, proof[:-1]),
                (leaf, index, size, proof[1:]),
                (leaf, index, size, (*proof[:-1], proof[-1][:31])),
                (leaf, index, size, (*proof[:-1], proof[-1] + b"\0")),
                (proof[0], index, size, (leaf, *proof[1:])),
                (merkle.node_hash(leaf, proof[0]), index, size, proof),
                (merkle.node_hash(leaf, proof[0]), index >> 1, size, proof[1:]),
            ]
        mutants += [
            (leaf, index, size, (*proof[:at], proof[at + 1], proof[at], *proof[at + 2 :]))
            for at in range(len(proof) - 1)
        ]
        for mutant in mutants:
            with pytest.raises(MerkleError):
                merkle.verify_inclusion(*mutant, root)
        with pytest.raises(MerkleError):
            merkle.verify_inclusion(leaf, index, size, proof, merkle.EMPTY_ROOT)


def test_a_node_is_not_a_leaf_of_the_halved_tree() -> None:
    # The classic: under the same root, the inner nodes of one level pose as the leaves of a smaller tree.
    inner = [merkle.node_hash(LEAVES[at], LEAVES[at + 1]) for at in range(0, 8, 2)]
    assert merkle.root(inner) == mth(0, 8)
    posing = b"\x01" + LEAVES[0] + LEAVES[1]
    with pytest.raises(MerkleError):
        merkle.verify_inclusion(merkle.leaf_hash(posing[1:]), 0, 4, merkle.inclusion_proof(0, 8, NODE)[1:], mth(0, 8))
    with pytest.raises(MerkleError):
        merkle.verify_inclusion(merkle.leaf_hash(posing), 0, 4, merkle.inclusion_proof(0, 8, NODE)[1:], mth(0, 8))


@pytest.mark.parametrize("size", [1, 3, 5, 7, 11])
def test_a_duplicated_last_leaf_changes_the_root(size: int) -> None:
    doubled = [*LEAVES[:size], LEAVES[size - 1]]
    assert merkle.root(doubled) != mth(0, size)
    with pytest.raises(MerkleError):
        merkle.verify_inclusion(
            LEAVES[size - 1],
            size,
            size + 1,
            merkle.inclusion_proof(size, size + 1, merkle.nodes_of(doubled)),
            mth(0, size),
        )


@pytest.mark.parametrize("new", range(1, 26))
def test_mutated_consistency_proofs_are_refused(new: int) -> None:
    other = merkle.leaf_hash(b"another")
    for old in range(1, new + 1):
        proof = merkle.consistency_proof(old, new, NODE)
        sound = (old, mth(0, old), new, mth(0, new), proof)
        merkle.verify_consistency(*sound)
        mutants = [
            (old, other, new, sound[3], proof),
            (old, sound[1], new, other, proof),
            (old, sound[1], new, sound[3], (*proof, other)),
            (old, sound[1][:31], new, sound[3], proof),
            (old, sound[1], new * 2, sound[3], proof),
            (0, sound[1], new, sound[3], proof),
            (0, merkle.EMPTY_ROOT, new, sound[3], ()),
            (-old, sound[1], new, sound[3], proof),
            (new + 1, sound[1], new, sound[3], proof),
        ]
        if proof:
            mutants += [
                (old, sound[1], new, sound[3], proof[:-1]),
                (old, sound[1], new, sound[3], proof[1:]),
                (old, sound[3], new, sound[1], proof),
                (new, sound[3], old, sound[1], proof),
                (new, sound[1], new, sound[3], ()),
                (old, sound[1], old, sound[3], proof),
                (old, sound[1], new, sound[3], (*proof[:-1], proof[-1][:31])),
            ]
        mutants += [(old, sound[1], new, sound[3], (*proof[:at], other, *proof[at + 1 :])) for at in range(len(proof))]
        mutants += [
            (old, sound[1], new, sound[3], (*proof[:at], proof[at + 1], proof[at], *proof[at + 2 :]))
            for at in range(len(proof) - 1)
        ]
        for mutant in mutants:
            with pytest.raises(MerkleError):
                merkle.verify_consistency(*mutant)


def test_consistency_takes_one_old_and_one_new_size_only() -> None:
    # Nearby sizes may well have proofs of the same length; only one of them leads to the two roots.
    for new in range(2, 20):
        for old in range(1, new):
            proof = merkle.consistency_proof(old, new, NODE)
            for wrong in range(1, new + 1):
                if wrong != old:
                    with pytest.raises(MerkleError):
                        merkle.verify_consistency(wrong, mth(0, old), new, mth(0, new), proof)


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 3), (-1, 3), (4, 3), (1, 2**48 + 1)])
def test_sizes_of_consistency_are_checked_first(old: int, new: int) -> None:
    with pytest.raises(MerkleError, match="sizes"):
        merkle.verify_consistency(old, merkle.EMPTY_ROOT, new, mth(0, 3), ())


def test_huge_sizes_are_refused_before_work() -> None:
    with pytest.raises(MerkleError, match="out of bounds"):
        merkle.verify_inclusion(LEAVES[0], 0, 2**4000, (), LEAVES[0])
    with pytest.raises(MerkleError, match="length"):
        merkle.verify_inclusion(LEAVES[0], 0, 2**48, (LEAVES[1],) * 1000, LEAVES[0])
