"""Vectors of specs/merkle.md: roots, inclusion, consistency, and proofs for many leaves."""

from __future__ import annotations

from polstore.errors import MerkleError
from polstore.wire import merkle
from polstore.wire.multi_proof import multi_proof, verify_multi_proof
from tools.vectors.cases import Case, File, expect, file, invalid, valid

__all__ = ["run", "vectors"]

# The eight leaves that Certificate Transparency's own tests use.
DATA = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
LEAVES = [merkle.leaf_hash(bytes.fromhex(data)) for data in DATA]
NODE = merkle.nodes_of(LEAVES)
OTHER = merkle.leaf_hash(b"another")


def vectors() -> File:
    """Return the whole file."""
    return file("merkle", "specs/merkle.md", [*_roots(), *_inclusion(), *_consistency(), *_multi()])


def run(case: Case) -> None:
    """Put one case through polstore."""
    proof = [bytes.fromhex(item) for item in case.get("proof", [])]
    match case["kind"]:
        case "root":
            root = merkle.root([merkle.leaf_hash(bytes.fromhex(data)) for data in case["leaves"]])
            expect("root", root.hex(), case["root"])
        case "inclusion":
            leaf, root = bytes.fromhex(case["leaf"]), bytes.fromhex(case["root"])
            merkle.verify_inclusion(leaf, case["index"], case["size"], proof, root)
        case "consistency":
            old_root, new_root = bytes.fromhex(case["old_root"]), bytes.fromhex(case["new_root"])
            merkle.verify_consistency(case["old_size"], old_root, case["new_size"], new_root, proof)
        case "multi":
            leaves = [(index, bytes.fromhex(leaf)) for index, leaf in case["leaves"]]
            verify_multi_proof(leaves, case["size"], proof, bytes.fromhex(case["root"]))
        case kind:
            raise AssertionError(f"unknown kind {kind}")


def _root(size: int) -> bytes:
    return merkle.root(LEAVES[:size])


def _hex(items: tuple[bytes, ...]) -> list[str]:
    return [item.hex() for item in items]


def _roots() -> list[Case]:
    return [
        valid(
            f"root_{size}", f"the first {size} standard leaves", kind="root", leaves=DATA[:size], root=_root(size).hex()
        )
        for size in range(9)
    ]


def _inclusion() -> list[Case]:
    def fields(index: int, size: int) -> Case:
        proof = _hex(merkle.inclusion_proof(index, size, NODE))
        return {
            "kind": "inclusion",
            "leaf": LEAVES[index].hex(),
            "index": index,
            "size": size,
            "proof": proof,
            "root": _root(size).hex(),
        }

    sound = fields(2, 7)
    proof = sound["proof"]
    posing = merkle.node_hash(LEAVES[2], LEAVES[3]).hex()
    doubled = merkle.nodes_of([*LEAVES[:7], LEAVES[6]])
    faults: list[tuple[str, str, Case]] = [
        ("index_plus_1", "the proof of the neighbour on the left", {"index": 3}),
        ("index_minus_1", "the proof of the neighbour on the right", {"index": 1}),
        ("index_is_size", "no such leaf", {"index": 7}),
        ("index_negative", "no such leaf", {"index": -1}),
        ("size_doubled", "a proof of the right form for a smaller tree", {"size": 14}),
        ("size_zero", "nothing is in an empty tree", {"size": 0}),
        ("size_huge", "above 2**48", {"size": 2**48 + 1}),
        ("proof_cut", "the last hash is missing", {"proof": proof[:-1]}),
        ("proof_extended", "one hash too many", {"proof": [*proof, proof[0]]}),
        ("proof_swapped", "two hashes change places", {"proof": [proof[1], proof[0], *proof[2:]]}),
        ("proof_empty", "no hash at all", {"proof": []}),
        ("hash_short", "a hash of 31 bytes", {"proof": [proof[0][:62], *proof[1:]]}),
        ("leaf_short", "a leaf hash of 31 bytes", {"leaf": sound["leaf"][:62]}),
        ("leaf_other", "another leaf", {"leaf": OTHER.hex()}),
        ("root_other", "another root", {"root": OTHER.hex()}),
        ("node_as_leaf", "an inner node in place of a leaf", {"leaf": posing, "index": 1, "proof": proof[1:]}),
        (
            "last_leaf_doubled",
            "a tree that pads with its last leaf has another root",
            {"leaf": LEAVES[6].hex(), "index": 7, "size": 8, "proof": _hex(merkle.inclusion_proof(7, 8, doubled))},
        ),
    ]
    return [
        *(
            valid(f"inclusion_{index}_of_{size}", "an audit path", **fields(index, size))
            for index, size in [(0, 1), (0, 2), (1, 2), (2, 3), (2, 7), (6, 7), (0, 8), (7, 8)]
        ),
        *(
            invalid(f"inclusion_{name}", comment, MerkleError, **(sound | change) | {"kind": "inclusion"})
            for name, comment, change in faults
        ),
    ]


def _consistency() -> list[Case]:
    def fields(old: int, new: int) -> Case:
        return {
            "kind": "consistency",
            "old_size": old,
            "old_root": _root(old).hex(),
            "new_size": new,
            "new_root": _root(new).hex(),
            "proof": _hex(merkle.consistency_proof(old, new, NODE)),
        }

    sound, power = fields(3, 7), fields(4, 7)
    proof = sound["proof"]
    empty = merkle.EMPTY_ROOT.hex()
    faults: list[tuple[str, str, Case]] = [
        ("old_root_other", "the old root is bound", sound | {"old_root": OTHER.hex()}),
        ("old_root_other_power", "also where it is itself part of the path", power | {"old_root": OTHER.hex()}),
        ("new_root_other", "the new root is bound", sound | {"new_root": OTHER.hex()}),
        ("roots_swapped", "old and new", sound | {"old_root": sound["new_root"], "new_root": sound["old_root"]}),
        ("sizes_swapped", "a log never shrinks", sound | {"old_size": 7, "new_size": 3}),
        ("old_size_zero", "nothing is bound by an empty tree", fields(0, 7)),
        ("old_size_zero_root", "size 0 with the root of a tree", sound | {"old_size": 0, "proof": []}),
        ("both_zero", "two empty trees", fields(0, 0) | {"new_root": empty}),
        ("size_negative", "no such tree", sound | {"old_size": -3}),
        ("size_huge", "above 2**48", sound | {"new_size": 2**48 + 1}),
        ("size_doubled", "another tree", sound | {"new_size": 14}),
        ("old_size_minus_1", "another old tree", sound | {"old_size": 2}),
        ("proof_cut", "the last hash is missing", sound | {"proof": proof[:-1]}),
        ("proof_extended", "one hash too many", sound | {"proof": [*proof, proof[0]]}),
        ("proof_swapped", "two hashes change places", sound | {"proof": [proof[1], proof[0], *proof[2:]]}),
        ("hash_short", "a hash of 31 bytes", sound | {"proof": [proof[0][:62], *proof[1:]]}),
        ("equal_sizes_proof", "equal sizes need no proof", fields(7, 7) | {"proof": proof[:1]}),
        ("equal_sizes_roots", "one size, two roots: a split view", fields(7, 7) | {"new_root": OTHER.hex()}),
    ]
    return [
        *(
            valid(f"consistency_{old}_to_{new}", "the old tree is a prefix of the new one", **fields(old, new))
            for old, new in [(1, 1), (1, 8), (2, 5), (3, 7), (4, 7), (4, 8), (6, 8), (7, 8), (8, 8)]
        ),
        *(invalid(f"consistency_{name}", comment, MerkleError, **change) for name, comment, change in faults),
    ]


def _multi() -> list[Case]:
    def fields(indices: list[int], size: int) -> Case:
        return {
            "kind": "multi",
            "leaves": [[index, LEAVES[index].hex()] for index in indices],
            "size": size,
            "proof": _hex(multi_proof(indices, size, NODE)),
            "root": _root(size).hex(),
        }

    sound = fields([1, 4], 7)
    leaves, proof = sound["leaves"], sound["proof"]
    faults: list[tuple[str, str, Case]] = [
        ("no_leaf", "nothing opened", {"leaves": []}),
        ("descending", "leaves out of order", {"leaves": leaves[::-1]}),
        ("doubled", "one leaf twice", {"leaves": [leaves[0], leaves[0], leaves[1]]}),
        ("index_plus_1", "another position", {"leaves": [leaves[0], [5, leaves[1][1]]]}),
        ("index_is_size", "no such leaf", {"leaves": [leaves[0], [7, leaves[1][1]]]}),
        ("index_negative", "no such leaf", {"leaves": [[-1, leaves[0][1]], leaves[1]]}),
        ("leaf_left_out", "the proof has no hash for it", {"leaves": leaves[:1]}),
        ("leaves_swapped", "two leaf hashes change places", {"leaves": [[1, leaves[1][1]], [4, leaves[0][1]]]}),
        ("leaf_other", "another leaf", {"leaves": [leaves[0], [4, OTHER.hex()]]}),
        ("size_doubled", "another tree", {"size": 14}),
        ("size_huge", "above 2**48", {"size": 2**48 + 1}),
        ("proof_cut", "the last hash is missing", {"proof": proof[:-1]}),
        ("proof_extended", "one hash too many", {"proof": [*proof, proof[0]]}),
        ("proof_swapped", "two hashes change places", {"proof": [proof[1], proof[0], *proof[2:]]}),
        ("hash_short", "a hash of 31 bytes", {"proof": [proof[0][:62], *proof[1:]]}),
        ("root_other", "another root", {"root": OTHER.hex()}),
    ]
    return [
        *(
            valid(
                "multi_" + "_".join(map(str, indices)) + f"_of_{size}",
                "leaves opened together",
                **fields(indices, size),
            )
            for indices, size in [([0], 1), ([2], 7), ([1, 4], 7), ([0, 6], 7), ([2, 3, 5], 8), (list(range(7)), 7)]
        ),
        *(invalid(f"multi_{name}", comment, MerkleError, **sound | change) for name, comment, change in faults),
    ]
