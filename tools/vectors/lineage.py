"""Vectors of specs/lineage.md: a run `tuned` that begins with the weights of the run `tiny` and a bias of its own."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from polstore.codec.snapshot import Snapshot, Tensor
from polstore.errors import ContinuityError, MalformedError, MerkleError, PolstoreError, SignatureError
from polstore.wire import canonical, merkle
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.keys import SigningKey, VerifierKey
from polstore.wire.lineage import Lineage, ProvenLeaf, names_blob
from polstore.wire.manifest import Initial, Manifest, Parent
from polstore.wire.multi_proof import multi_proof
from polstore.wire.segment import SegmentRecord
from polstore.wire.state import scalars_entry
from polverify.lineage import check_link_alone
from tools.vectors import tiny_run
from tools.vectors.cases import Case, File, expect, file, invalid, valid
from tools.vectors.run_records import REMOVE, replaced

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = ["EXAMPLE", "KEY", "run", "vectors"]

KEY = SigningKey("example.org/archive", bytes(range(64, 96)))
OTHER = SigningKey("example.org/archive", bytes(range(65, 97)))
TIME = 1_760_000_000  # seconds since 1970
NAMES = ("parameter/w",)
STATE = tiny_run.LIVE[2][1]  # the parent's last snapshot
INITIAL = Snapshot(
    (Tensor("parameter/b", "float32", (1,), np.array([0.25], "<f4")), STATE.tensor("parameter/w")),
    tiny_run.LIVE[0][1].scalars,
)
PARENT = Parent(tiny_run.ORIGIN, 3, tiny_run.ROOT, 3, STATE.digest(), sha256(names_blob(NAMES)).digest())
CHILD = replace(tiny_run.MANIFEST, run="tuned", initial=Initial("parent", INITIAL.digest(), PARENT))


def _signed(origin: str, leaves: tuple[bytes, ...], key: SigningKey = KEY) -> bytes:
    root = merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])
    return sign_root(Checkpoint(origin, len(leaves), root), key, TIME)


def _leaf(leaves: tuple[bytes, ...], index: int) -> ProvenLeaf:
    node = merkle.nodes_of([merkle.leaf_hash(leaf) for leaf in leaves])
    return ProvenLeaf(leaves[index], merkle.inclusion_proof(index, len(leaves), node))


def _state_hashes(state: Snapshot) -> list[bytes]:
    values: list[Value] = [entry.value() for entry in state.entries()]
    return [merkle.leaf_hash(canonical.encode(value)) for value in (*values, scalars_entry(state.scalars))]


def _made(child: Manifest = CHILD, parent: tuple[bytes, ...] = tiny_run.LEAVES, key: SigningKey = KEY) -> Lineage:
    """Return the evidence for a child, and for a parent with other leaves."""
    leaves, hashes = (child.encode(),), _state_hashes(STATE)
    return Lineage(
        child_root=_signed(f"{KEY.name}/{child.run}", leaves),
        child_manifest=_leaf(leaves, 0),
        parent_root=_signed(tiny_run.ORIGIN, parent, key),
        parent_manifest=_leaf(parent, 0),
        parent_record=_leaf(parent, len(parent) - 1),
        entries=INITIAL.entries(),
        scalars=sha256(INITIAL.scalars).digest(),
        parent_size=len(hashes),
        inherited=((0, NAMES[0]),),
        proof=multi_proof([0], len(hashes), merkle.nodes_of(hashes)),
    )


EXAMPLE = _made()


def _child(**changes: Any) -> Lineage:
    """Return the evidence for a child that names its parent otherwise."""
    return _made(replace(CHILD, initial=Initial("parent", INITIAL.digest(), replace(PARENT, **changes))))


def _other_end() -> Lineage:
    """Return evidence whose parent ended in another state, and whose child names that parent's root."""
    record = replace(tiny_run.RECORDS[1], end_state=bytes(32))
    leaves = (*tiny_run.LEAVES[:2], record.encode())
    root = merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])
    return _made(replace(CHILD, initial=Initial("parent", INITIAL.digest(), replace(PARENT, root=root))), leaves)


def vectors() -> File:
    """Return the whole file."""
    value = canonical.decode(EXAMPLE.encode(), limit=2**16, what="lineage")
    seeded = replace(CHILD, initial=Initial("seed", INITIAL.digest()))
    earlier = SegmentRecord.parse(tiny_run.LEAVES[1])
    wrong: list[tuple[str, str, type[PolstoreError], bytes]] = [
        (name, comment, MalformedError, canonical.encode(replaced(value, path, new)))
        for name, comment, path, new in (
            ("short", "a field less", (10,), REMOVE),
            ("tag", "another tag", (0,), "polstore/lineage/v2"),
            ("nothing_inherited", "no inherited tensor", (9,), ()),
            ("number_scalars", "the number of the scalars' leaf", (9, 0, 0), 1),
            ("number_negative", "a negative number", (9, 0, 0), -1),
            ("name_empty", "an empty name", (9, 0, 1), ""),
            ("name_unknown", "a name that the child lacks", (9, 0, 1), "parameter/v"),
            ("name_own", "the child's own tensor as inherited", (9, 0, 1), "parameter/b"),
            ("parent_size_one", "a parent without tensors", (8,), 1),
            ("entries_order", "entries out of order", (6,), tuple(reversed(_items(value, 6)))),
            ("scalars_short", "31 bytes", (7,), bytes(31)),
            ("hash_short", "31 bytes in a proof", (10, 0), bytes(31)),
            ("manifest_tag", "a record in place of the parent's manifest", (4,), _leaf(tiny_run.LEAVES, 2).value()),
        )
    ]
    wrong[-1] = (wrong[-1][0], wrong[-1][1], MerkleError, wrong[-1][3])
    edits: list[tuple[str, str, type[PolstoreError], Lineage]] = [
        ("seeded", "a child that names no parent", MalformedError, _made(seeded)),
        ("names_other", "another list of names declared", MalformedError, _child(inherited=bytes(32))),
        ("root_other", "the child names another root", MerkleError, _child(root=bytes(32))),
        ("size_other", "the child names another size", MerkleError, _child(size=2)),
        ("origin_other", "the child names another run", MerkleError, _child(origin="example.org/archive/small")),
        ("step_other", "the child names another step", ContinuityError, _child(step=2)),
        ("end_other", "the parent ended in another state", ContinuityError, _other_end()),
        ("state_other", "the child names another snapshot", ContinuityError, _child(state=bytes(32))),
        (
            "record_earlier",
            "the record before the last",
            MerkleError,
            replace(EXAMPLE, parent_record=replace(EXAMPLE.parent_record, leaf=earlier.encode())),
        ),
        ("entry_other", "an entry that was changed", MerkleError, _entry(1)),
        ("entry_own_other", "an entry that is not inherited was changed", MerkleError, _entry(0)),
        ("scalars_other", "other scalars", MerkleError, replace(EXAMPLE, scalars=bytes(32))),
        ("proof_other", "another hash beside the inherited tensor", MerkleError, replace(EXAMPLE, proof=(bytes(32),))),
        ("proof_long", "a hash too many", MerkleError, replace(EXAMPLE, proof=(*EXAMPLE.proof, bytes(32)))),
        ("parent_size_other", "another size of the parent's state", MerkleError, replace(EXAMPLE, parent_size=3)),
        ("parent_signer", "another key signed the parent's root", SignatureError, _made(key=OTHER)),
        (
            "child_signer",
            "another key signed the child's root",
            SignatureError,
            replace(EXAMPLE, child_root=_signed(f"{KEY.name}/tuned", (CHILD.encode(),), OTHER)),
        ),
    ]
    wrong += [(name, comment, error, lineage.encode()) for name, comment, error, lineage in edits]
    keys = [key.line() for key in KEY.verifier_keys()]
    cases = [
        valid(
            "example",
            "the worked example",
            bytes=EXAMPLE.encode().hex(),
            keys=keys,
            inherited=list(NAMES),
            others=["parameter/b"],
            parent={"origin": PARENT.origin, "size": PARENT.size, "root": PARENT.root.hex()},
        )
    ]
    cases += [invalid(name, comment, error, bytes=data.hex(), keys=keys) for name, comment, error, data in wrong]
    return file("lineage", "specs/lineage.md", cases)


def _items(value: Value, place: int) -> tuple[Value, ...]:
    assert isinstance(value, tuple)
    found = value[place]
    assert isinstance(found, tuple)
    return found


def _entry(place: int) -> Lineage:
    entries = list(EXAMPLE.entries)
    entries[place] = replace(entries[place], digest=bytes(32))
    return replace(EXAMPLE, entries=tuple(entries))


def run(case: Case) -> None:
    """Check one case with polstore itself."""
    keys = [VerifierKey.parse(line) for line in case["keys"]]
    link, _ = check_link_alone(Lineage.parse(bytes.fromhex(case["bytes"])), keys)
    expect("inherited", list(link.inherited), case["inherited"])
    expect("others", list(link.others), case["others"])
    root = link.root.checkpoint
    expect("parent", {"origin": root.origin, "size": root.size, "root": root.root.hex()}, case["parent"])
