"""Vectors of specs/ledger.md: leaves, heads, entries of signed roots, and logs that a verifier follows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from polstore.errors import LedgerError, MalformedError, MerkleError, SignatureError
from polstore.wire import canonical, merkle, note
from polstore.wire.checkpoint import Checkpoint, run_origin, sign_root
from polstore.wire.keys import SigningKey, VerifierKey
from polstore.wire.ledger import LedgerLeaf, ParentRoot, consistency_lines, open_head
from polstore.wire.manifest import Initial, Manifest, Parent
from polstore.wire.tlog_proof import TlogProof
from polverify.log import Kept, check_entry, check_extension
from tools.vectors import signed_root, tiny_run
from tools.vectors.cases import Case, File, expect, file, invalid, valid

if TYPE_CHECKING:
    from polstore.errors import PolstoreError
    from polstore.wire.canonical import Value

__all__ = ["CONSISTENCY", "HEAD", "LEAVES", "PROOF", "run", "vectors"]

KEY, KEYS, TIME = signed_root.KEY, signed_root.KEYS, signed_root.TIME
OLD_KEY = SigningKey(KEY.name, bytes(32))  # of the same name
PARENT = Parent(run_origin(KEY.name, "mnist-1"), 5, signed_root.CHECKPOINT.root, 40, bytes(32), bytes(32))
CHILD = replace(tiny_run.MANIFEST, run="mnist-2", initial=Initial("parent", bytes(32), PARENT))
CHILD_ROOT = Checkpoint(run_origin(KEY.name, "mnist-2"), 3, merkle.leaf_hash(b"mnist-2"))
LEAVES = (LedgerLeaf.of(signed_root.CHECKPOINT, tiny_run.MANIFEST), LedgerLeaf.of(CHILD_ROOT, CHILD))


def _leaf(number: int) -> LedgerLeaf:
    return LedgerLeaf(run_origin(KEY.name, f"run-{number}"), number, merkle.leaf_hash(b"%d" % number))


ALL = (*LEAVES, *(_leaf(number) for number in range(2, 7)))
HASHES = [leaf.leaf_hash() for leaf in ALL]
NODE = merkle.nodes_of(HASHES)


def _head(leaves: int, time: int = TIME + 1, key: SigningKey = KEY, **changes: Any) -> bytes:
    """Return the head over the first leaves, or one of which some fields are others."""
    return sign_root(replace(Checkpoint(key.name, leaves, merkle.root(HASHES[:leaves])), **changes), key, time)


HEAD = _head(2)
PROOF = TlogProof(1, merkle.inclusion_proof(1, 2, NODE), HEAD)
CONSISTENCY = consistency_lines(merkle.consistency_proof(1, 2, NODE))


def vectors() -> File:
    """Return the whole file."""
    return file("ledger", "specs/ledger.md", [*_leaves(), *_heads(), *_entries(), *_logs()])


def run(case: Case) -> None:
    """Put one case through polstore and polverify."""
    keys = [VerifierKey.parse(line) for line in case.get("keys", [])]
    if case["kind"] == "leaf":
        leaf = LedgerLeaf.parse(bytes.fromhex(case["bytes"]))
        expect("leaf", _fields(leaf), {name: case[name] for name in _fields(leaf)})
        expect("bytes", leaf.encode().hex(), case["bytes"])
        expect("leaf hash", leaf.leaf_hash().hex(), case["leaf_hash"])
    elif case["kind"] == "head":
        opened = open_head(case["text"].encode(), keys)
        got = (opened.checkpoint.origin, opened.checkpoint.size, opened.checkpoint.root.hex(), opened.timestamp)
        expect("head", got, (case["origin"], case["size"], case["root"], case["timestamp"]))
    elif case["kind"] == "entry":
        signed = Checkpoint(case["origin"], case["size"], bytes.fromhex(case["root"]))
        manifest = Manifest.parse(bytes.fromhex(case["manifest"]))
        entered = check_entry(case["text"].encode(), keys, signed, manifest, case["timestamp"])
        expect("entry", (entered.index, entered.head.checkpoint.size), (case["index"], case["ledger_size"]))
    else:
        expect("kind", case["kind"], "log")
        kept = Kept.parse(case["kept"].encode())
        check_extension(kept, open_head(case["text"].encode(), keys), keys, case["consistency"].encode())


def _fields(leaf: LedgerLeaf) -> Case:
    return {
        "origin": leaf.origin,
        "size": leaf.size,
        "root": leaf.root.hex(),
        "parents": [[parent.origin, parent.size, parent.root.hex()] for parent in leaf.parents],
        "extensions": [[name, data.hex()] for name, data in leaf.extensions],
    }


def _leaves() -> list[Case]:
    def sound(name: str, comment: str, leaf: LedgerLeaf) -> Case:
        fields = {"bytes": leaf.encode().hex(), "leaf_hash": leaf.leaf_hash().hex()}
        return valid(f"leaf_{name}", comment, kind="leaf", **fields, **_fields(leaf))

    parents = (ParentRoot("a", 3, HASHES[0]), ParentRoot("a", 4, HASHES[1]), ParentRoot("b", 1, HASHES[0]))
    whole = replace(LEAVES[1], parents=parents, extensions=(("a", b""), ("b", b"data")))
    fields: list[Value] = [
        whole.TAG,
        whole.origin,
        whole.size,
        whole.root,
        tuple((parent.origin, parent.size, parent.root) for parent in parents),
        whole.extensions,
    ]

    def changed(at: int, value: Value) -> bytes:
        return canonical.encode((*fields[:at], value, *fields[at + 1 :]))

    faults = {
        "tag": ("another version", changed(0, "polstore/ledger/v2")),
        "origin_empty": ("no origin", changed(1, "")),
        "origin_long": ("1025 characters", changed(1, "o" * 1025)),
        "origin_control": ("a newline in the origin", changed(1, "a\nb")),
        "size_zero": ("a tree without leaves", changed(2, 0)),
        "size_huge": ("2**48", changed(2, 2**48)),
        "root_short": ("31 bytes", changed(3, bytes(31))),
        "parents_nil": ("nil for no parents", changed(4, None)),
        "parents_descending": ("out of order", changed(4, (("b", 1, bytes(32)), ("a", 1, bytes(32))))),
        "parents_twice": ("one parent twice", changed(4, (("a", 1, bytes(32)),) * 2)),
        "parent_size_zero": ("a parent of no leaves", changed(4, (("a", 0, bytes(32)),))),
        "parent_fields": ("a parent without its root", changed(4, (("a", 1),))),
        "parents_65": ("one more than allowed", changed(4, tuple(("a", size, bytes(32)) for size in range(1, 66)))),
        "extensions_descending": ("out of order", changed(5, (("b", b""), ("a", b"")))),
        "fields_5": ("no extensions", canonical.encode(tuple(fields[:5]))),
        "fields_7": ("a field too many", canonical.encode((*fields, 0))),
        "trailing": ("a byte after the end", whole.encode() + b"\xc0"),
        "not_canonical": ("an integer longer than needed", LEAVES[0].encode().replace(b"\x05\xc4", b"\xcc\x05\xc4")),
    }
    return [
        sound("example", "no parents", LEAVES[0]),
        sound("child", "of a run that started from another", LEAVES[1]),
        sound("whole", "several parents, and extensions", whole),
        *(
            invalid(f"leaf_{name}", comment, MalformedError, kind="leaf", bytes=data.hex())
            for name, (comment, data) in faults.items()
        ),
    ]


def _heads() -> list[Case]:
    parsed = note.parse(HEAD)
    first, second = parsed.signatures
    false = replace(first, blob=bytes([first.blob[0] ^ 1]) + first.blob[1:])
    refused = {
        "of_a_run": ("the signed root of a run", signed_root.SIGNED),
        "extension": ("an extension line", _head(2, extensions=("x",))),
        "other_key": ("another key of the same name", _head(2, key=OLD_KEY)),
        "no_cosignature": ("a given key has not signed", note.Note(parsed.text, (first,)).encode()),
        "false": ("a false signature", note.Note(parsed.text, (false, second)).encode()),
    }
    stated = {"origin": KEY.name, "timestamp": TIME + 1}
    empty = {"size": 0, "root": merkle.EMPTY_ROOT.hex()}
    two = {"size": 2, "root": merkle.root(HASHES[:2]).hex()}
    return [
        valid("head", "two leaves", kind="head", text=HEAD.decode(), keys=KEYS, **stated, **two),
        valid("head_empty", "no leaf yet", kind="head", text=_head(0).decode(), keys=KEYS, **stated, **empty),
        *(
            invalid(f"head_{name}", comment, SignatureError, kind="head", text=text.decode(), keys=KEYS)
            for name, (comment, text) in refused.items()
        ),
    ]


def _entries() -> list[Case]:
    head = _head(7)
    sound = TlogProof(1, merkle.inclusion_proof(1, 7, NODE), head)
    path = sound.proof
    signed = {"origin": CHILD_ROOT.origin, "size": CHILD_ROOT.size, "root": CHILD_ROOT.root.hex(), "timestamp": TIME}
    fields: Case = {"kind": "entry", "keys": KEYS, "manifest": CHILD.encode().hex(), **signed}
    extended = replace(LEAVES[1], extensions=(("later", b"data"),))
    pair = [LEAVES[0].leaf_hash(), extended.leaf_hash()]
    with_extension = TlogProof(
        1, (pair[0],), sign_root(Checkpoint(KEY.name, 2, merkle.root(pair)), KEY, TIME), extended.encode()
    )

    def text(of: TlogProof, **changes: Any) -> str:
        return replace(of, **changes).encode().decode()

    refused: list[tuple[str, str, type[PolstoreError], Case]] = [
        ("index_plus_1", "the neighbour's index", MerkleError, {"text": text(sound, index=2)}),
        ("index_is_size", "no such leaf", MerkleError, {"text": text(sound, index=7)}),
        ("truncated", "the last hash is missing", MerkleError, {"text": text(sound, proof=path[:-1])}),
        ("extended", "one hash too many", MerkleError, {"text": text(sound, proof=(*path, path[0]))}),
        ("swapped", "two hashes change places", MerkleError, {"text": text(sound, proof=(path[1], path[0], path[2]))}),
        ("size_doubled", "another size is signed", MerkleError, {"text": text(sound, signed_root=_head(7, size=14))}),
        (
            "node_as_leaf",
            "a proof from one level up",
            MerkleError,
            {"text": text(sound, index=0, proof=path[1:], signed_root=_head(4))},
        ),
        ("origin", "the root of another run", MerkleError, {"origin": run_origin(KEY.name, "mnist-3")}),
        ("size", "a root over more leaves", MerkleError, {"size": 4}),
        ("root", "another root", MerkleError, {"root": HASHES[0].hex()}),
        ("parents", "the manifest names no parent", MerkleError, {"manifest": tiny_run.MANIFEST.encode().hex()}),
        ("without_extra", "the extensions are not told", MerkleError, {"text": text(with_extension, extra=None)}),
        (
            "extra_other",
            "extra data of another signed root",
            LedgerError,
            {"text": text(with_extension, extra=replace(extended, size=9).encode())},
        ),
        ("extra_no_leaf", "extra data that is no leaf", MalformedError, {"text": text(sound, extra=b"data")}),
        ("head_of_a_run", "no ledger", SignatureError, {"text": text(sound, signed_root=signed_root.SIGNED)}),
        ("head_other_key", "another key", SignatureError, {"text": text(sound, signed_root=_head(7, key=OLD_KEY))}),
        ("head_older", "older than the root in it", LedgerError, {"text": text(sound, signed_root=_head(7, TIME - 1))}),
        ("header", "another version", MalformedError, {"text": text(sound).replace("@v1", "@v2")}),
    ]
    return [
        valid("entry", "a signed root in the ledger", text=text(sound), index=1, ledger_size=7, **fields),
        valid(
            "entry_extensions",
            "a leaf with extensions, shown whole",
            text=text(with_extension),
            index=1,
            ledger_size=2,
            **fields,
        ),
        *(
            invalid(f"entry_{name}", comment, error, **{"text": text(sound), **fields, **change})
            for name, comment, error, change in refused
        ),
    ]


def _logs() -> list[Case]:
    def lines(old: int, new: int) -> str:
        return consistency_lines(merkle.consistency_proof(old, new, NODE))

    def case(kept: bytes, head: bytes, proof: str) -> Case:
        return {"kind": "log", "keys": KEYS, "kept": kept.decode(), "text": head.decode(), "consistency": proof}

    three, seven = _head(3), _head(7)
    parts = lines(3, 7).splitlines(keepends=True)
    fork = merkle.leaf_hash(b"fork")
    refused: list[tuple[str, str, type[PolstoreError], Case]] = [
        ("rollback", "a smaller head", LedgerError, case(seven, three, "")),
        ("rollback_proof", "also with a sound proof of the reverse", LedgerError, case(seven, three, lines(3, 7))),
        ("rollback_empty", "a log that was emptied", LedgerError, case(three, _head(0), "")),
        ("split_view", "another root of the same size", LedgerError, case(three, _head(3, root=fork), "")),
        ("fork", "another root of a larger size", MerkleError, case(three, _head(7, root=fork), lines(3, 7))),
        ("fork_kept", "the kept root is bound", MerkleError, case(_head(3, root=fork), seven, lines(3, 7))),
        ("proof_missing", "no proof", MerkleError, case(three, seven, "")),
        ("proof_cut", "the last hash is missing", MerkleError, case(three, seven, "".join(parts[:-1]))),
        ("proof_extended", "one hash too many", MerkleError, case(three, seven, "".join([*parts, parts[0]]))),
        (
            "proof_swapped",
            "two hashes change places",
            MerkleError,
            case(three, seven, "".join([parts[1], parts[0], *parts[2:]])),
        ),
        ("proof_line_end", "CRLF", MalformedError, case(three, seven, lines(3, 7).replace("\n", "\r\n"))),
        ("proof_no_line_end", "no final newline", MalformedError, case(three, seven, lines(3, 7)[:-1])),
        ("proof_64", "one more than allowed", MalformedError, case(three, seven, parts[0] * 64)),
        ("backdated", "a larger head with an earlier time", LedgerError, case(three, _head(7, TIME), lines(3, 7))),
        ("unsigned", "another key", SignatureError, case(three, _head(7, key=OLD_KEY), lines(3, 7))),
    ]
    return [
        valid("log_grown", "a larger head", **case(three, seven, lines(3, 7))),
        valid("log_later", "a larger head with a later time", **case(three, _head(7, TIME + 99), lines(3, 7))),
        valid("log_power", "from a size that is a power of two", **case(_head(4), seven, lines(4, 7))),
        valid("log_from_empty", "an empty log binds nothing", **case(_head(0), seven, "")),
        valid("log_rotated", "the kept head is of an older key", **case(_head(3, key=OLD_KEY), seven, lines(3, 7))),
        *(invalid(f"log_{name}", comment, error, **fields) for name, comment, error, fields in refused),
    ]
