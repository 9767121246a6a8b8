"""Leaves of the ledger, its heads, and the lines of its consistency proofs: one spelling each, and every cap held."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from polstore.errors import MalformedError, SignatureError, UsageError
from polstore.wire import canonical, merkle
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.keys import SigningKey
from polstore.wire.ledger import (
    MAX_PARENTS,
    LedgerLeaf,
    ParentRoot,
    consistency_lines,
    open_head,
    parse_consistency,
)
from polstore.wire.manifest import Initial, Parent
from tools.vectors import tiny_run

KEY = SigningKey("example.org/archive", bytes(range(32)))
ROOT, OTHER = merkle.leaf_hash(b"root"), merkle.leaf_hash(b"other")
PARENTS = (ParentRoot("example.com/bob/a", 3, ROOT), ParentRoot("example.com/bob/a", 7, OTHER))
LEAF = LedgerLeaf("example.org/archive/r", 5, ROOT, PARENTS, (("x", b"1"),))
HEAD = Checkpoint(KEY.name, 7, ROOT)


def value(leaf: LedgerLeaf = LEAF) -> list[object]:
    decoded = canonical.decode(leaf.encode(), limit=65_535, what="leaf")
    assert isinstance(decoded, tuple)
    return list(decoded)


@pytest.mark.parametrize("leaf", [LEAF, LedgerLeaf("o", 1, ROOT), replace(LEAF, parents=PARENTS[:1], extensions=())])
def test_leaves_come_back(leaf: LedgerLeaf) -> None:
    assert LedgerLeaf.parse(leaf.encode()) == leaf
    assert leaf.leaf_hash() == merkle.leaf_hash(leaf.encode())


def test_a_leaf_is_made_of_signed_root_and_manifest() -> None:
    parent = Parent("example.com/bob/a", 3, ROOT, 40, OTHER, bytes(32))
    manifest = replace(tiny_run.MANIFEST, initial=Initial("parent", OTHER, parent))
    checkpoint = Checkpoint("example.org/archive/r", 5, OTHER)
    leaf = LedgerLeaf.of(checkpoint, manifest)
    assert leaf == LedgerLeaf("example.org/archive/r", 5, OTHER, PARENTS[:1])
    assert LedgerLeaf.of(checkpoint, tiny_run.MANIFEST).parents == ()


FAULTS = {
    "tag": (0, "polstore/ledger/v2"),
    "origin of another type": (1, b"o"),
    "origin empty": (1, ""),
    "origin with a newline": (1, "a\nb"),
    "origin too long": (1, "o" * 1025),
    "size 0": (2, 0),
    "size too large": (2, 2**48),
    "size a float": (2, 5.0),
    "size a boolean": (2, True),
    "root short": (3, ROOT[:31]),
    "root text": (3, "x" * 32),
    "parents nil": (4, None),
    "parents out of order": (4, tuple((p.origin, p.size, p.root) for p in PARENTS[::-1])),
    "a parent twice": (4, (("o", 1, ROOT), ("o", 1, ROOT))),
    "a parent without its root": (4, (("o", 1),)),
    "a parent with a field too many": (4, (("o", 1, ROOT, 2),)),
    "a parent of size 0": (4, (("o", 0, ROOT),)),
    "too many parents": (4, tuple(("o", number, ROOT) for number in range(1, MAX_PARENTS + 2))),
    "extensions out of order": (5, (("b", b""), ("a", b""))),
    "an extension twice": (5, (("a", b""), ("a", b""))),
    "extensions too long": (5, (("a", bytes(32_768)), ("b", bytes(32_768)))),
}


@pytest.mark.parametrize("name", FAULTS)
def test_malformed_leaves_are_refused(name: str) -> None:
    field, fault = FAULTS[name]
    fields = value()
    assert LedgerLeaf.parse(canonical.encode(tuple(fields))) == LEAF
    fields[field] = fault
    with pytest.raises(MalformedError):
        LedgerLeaf.parse(canonical.encode(tuple(fields)))


@pytest.mark.parametrize("count", [5, 7])
def test_a_leaf_has_six_fields(count: int) -> None:
    with pytest.raises(MalformedError, match="fields"):
        LedgerLeaf.parse(canonical.encode(tuple([*value(), ()][:count])))


def test_another_encoding_of_the_same_leaf_is_refused() -> None:
    data = LEAF.encode()
    size = data.index(b"\x05", data.index(b"archive/r"))
    with pytest.raises(MalformedError):
        LedgerLeaf.parse(data[:size] + b"\xcc\x05" + data[size + 1 :])
    with pytest.raises(MalformedError):
        LedgerLeaf.parse(data + b"\xc0")


def test_leaves_that_cannot_be_written() -> None:
    for change in ({"size": 0}, {"root": b""}, {"parents": PARENTS[::-1]}, {"origin": "a\tb"}):
        with pytest.raises(MalformedError):
            replace(LEAF, **change).encode()


def test_a_head_is_signed_under_the_bare_name() -> None:
    assert open_head(sign_root(HEAD, KEY, 5), KEY.verifier_keys()).timestamp == 5


def test_the_signed_root_of_a_run_is_no_head() -> None:
    run = sign_root(replace(HEAD, origin=f"{KEY.name}/r"), KEY, 5)
    with pytest.raises(SignatureError, match="origin of a ledger"):
        open_head(run, KEY.verifier_keys())


def test_a_head_without_extension_lines() -> None:
    extended = sign_root(replace(HEAD, extensions=("more",)), KEY, 5)
    with pytest.raises(SignatureError, match="extension"):
        open_head(extended, KEY.verifier_keys())


@pytest.mark.parametrize("count", [0, 1, 63])
def test_consistency_lines_come_back(count: int) -> None:
    proof = tuple(merkle.leaf_hash(b"%d" % number) for number in range(count))
    lines = consistency_lines(proof)
    assert lines.count("\n") == count
    assert parse_consistency(lines.encode()) == proof


def test_a_proof_has_63_lines_at_most() -> None:
    with pytest.raises(UsageError):
        consistency_lines((ROOT,) * 64)
    with pytest.raises(MalformedError):
        parse_consistency((base64.b64encode(ROOT) + b"\n") * 64)


LINE = base64.b64encode(ROOT).decode()


@pytest.mark.parametrize(
    "text",
    [
        LINE,
        f"{LINE}\n\n",
        f"\n{LINE}\n",
        f"{LINE}\r\n",
        f" {LINE}\n",
        f"{LINE} \n",
        f"{LINE[:-1]}\n",
        f"{LINE}=\n",
        f"{LINE[:-2]}{chr(ord(LINE[-2]) + 1)}=\n",
        f"{LINE.replace('/', '_').replace('+', '-')}!\n",
        base64.b64encode(ROOT[:31]).decode() + "\n",
        base64.b64encode(ROOT + b"x").decode() + "\n",
        "\n",
        "old 5\n",
        "é\n",
    ],
)
def test_malformed_consistency_lines_are_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_consistency(text.encode())
