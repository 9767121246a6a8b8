"""Evidence for a link from specs/lineage.md; what a signed root is, `tools.checker.signed_root` knows."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from tools.checker import canonical, merkle, records, signed_root
from tools.checker.faults import Case, require, same

__all__ = ["check"]


def _formed(condition: object, message: str) -> None:
    require(condition, "MalformedError", message)


def _leaf(value: Any) -> None:
    _formed(isinstance(value, list) and len(value) == 2, "not a leaf and its proof")
    records.blob(0, 65_535)(value[0])
    records.items(records.digest, 48)(value[1])


def _parse(data: bytes) -> Any:
    value = canonical.decode(data)
    _formed(isinstance(value, list) and len(value) == 11, "not an array of 11")
    tag, child_root, child, parent_root, parent, record, entries, scalars, size, inherited, proof = value
    _formed(isinstance(tag, str) and tag == "polstore/lineage/v1", "another tag")
    for note in (child_root, parent_root):
        _formed(isinstance(note, bytes), "a note")
    for leaf in (child, parent, record):
        _leaf(leaf)
    _formed(isinstance(entries, list), "entries")
    for entry in entries:
        _formed(isinstance(entry, list) and len(entry) == 5 and entry[0] == 0, "an entry")
        records.text(512)(entry[1])
        records.digest(entry[4])
    records.ascending([entry[1].encode() for entry in entries])
    records.digest(scalars)
    records.integer(2, 1_000_001)(size)
    _formed(isinstance(inherited, list) and inherited and len(inherited) <= len(entries), "inherited tensors")
    for item in inherited:
        _formed(isinstance(item, list) and len(item) == 2, "an inherited tensor")
        records.integer(0, size - 2)(item[0])
        records.text(512)(item[1])
    records.ascending([number for number, _ in inherited])
    records.ascending([name.encode() for _, name in inherited])
    records.items(records.digest, 1_000_000)(proof)
    return value


def _first(leaf: Any, root: tuple[str, int, bytes]) -> Any:
    """Return the manifest that is leaf 0 under a root, and completes its origin."""
    origin, size, head = root
    merkle.inclusion(merkle.leaf_hash(leaf[0]), 0, size, leaf[1], head)
    manifest = records.manifest(leaf[0])
    _formed(origin.endswith("/" + manifest[1]), "another run than the origin's")
    return manifest


def check(case: Case) -> None:
    """Check one case."""
    _, child_root, child, parent_root, parent, record, entries, scalars, size, inherited, proof = _parse(
        bytes.fromhex(case["bytes"])
    )
    keys = [signed_root.parse_key(line) for line in case["keys"]]
    first = signed_root.open_root(child_root, keys)[:3]
    initial = _first(child, first)[7]
    _formed(initial[2] is not None, "no parent")
    origin, leaves, head, step, state, names = initial[2]
    root = signed_root.open_root(parent_root, keys)[:3]
    require(root == (origin, leaves, head), "MerkleError", "another root than the child names")
    _first(parent, root)
    require(leaves > 1, "ContinuityError", "a parent without segments")
    merkle.inclusion(merkle.leaf_hash(record[0]), leaves - 1, leaves, record[1], head)
    segment = records.segment(record[0])
    last = (segment[1], segment[3], segment[5])
    require(last == (leaves - 2, step, state), "ContinuityError", "another snapshot than the child names")
    own = [merkle.leaf_hash(canonical.encode(entry)) for entry in entries]
    whole = merkle.root([*own, merkle.leaf_hash(canonical.encode([1, scalars]))])
    require(whole == initial[1], "MerkleError", "another initial state")
    listed = [name for _, name in inherited]
    _formed(sha256(canonical.encode(listed)).digest() == names, "another list of names")
    by_name = {entry[1]: leaf for entry, leaf in zip(entries, own, strict=True)}
    _formed(by_name.keys() >= set(listed), "a name that the child lacks")
    merkle.multi([(number, by_name[name]) for number, name in inherited], size, proof, state)
    same("inherited", listed, case["inherited"])
    same("others", [name for name in by_name if name not in listed], case["others"])
    same("parent", {"origin": origin, "size": leaves, "root": head.hex()}, case["parent"])
