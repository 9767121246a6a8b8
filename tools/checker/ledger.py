"""The ledger's leaves, heads, entries and consistency from specs/ledger.md."""

from __future__ import annotations

from base64 import b64decode, b64encode

from tools.checker import canonical, merkle, records, signed_root
from tools.checker.faults import Case, refuse, require, same

__all__ = ["check"]


def _formed(condition: object, message: str) -> None:
    require(condition, "MalformedError", message)


def _head(text: str, lines: list[str]) -> tuple[int, bytes, int | None]:
    """Return size, root and time of a head that all of these keys have signed."""
    keys = [signed_root.parse_key(line) for line in lines]
    origin, size, root, time = signed_root.open_root(text.encode(), keys)
    require(all(key.name == origin for key in keys), "SignatureError", "not the origin of a ledger")
    extended = len(text.rpartition("\n\n")[0].split("\n")) != 3
    require(not extended, "SignatureError", "extension lines")
    return size, root, time


def _entry(case: Case) -> None:
    parent = records.manifest(bytes.fromhex(case["manifest"]))[7][2]
    expected = [case["origin"], case["size"], bytes.fromhex(case["root"]), [parent[:3]] if parent else []]
    index, proof, note, extra = signed_root.parse_proof(case["text"].encode())
    size, root, time = _head(note.decode(), case["keys"])
    leaf = canonical.encode(["polstore/ledger/v1", *expected, []])
    if extra is not None:
        require(records.ledger_leaf(extra)[1:5] == expected, "LedgerError", "extra data of another signed root")
        leaf = extra
    merkle.inclusion(merkle.leaf_hash(leaf), index, size, proof, root)
    late = time is None or case["timestamp"] is None or time >= case["timestamp"]
    require(late, "LedgerError", "the head is older than the root that it has")
    same("entry", (index, size), (case["index"], case["ledger_size"]))


def _lines(text: str) -> list[bytes]:
    _formed(text == "" or text.endswith("\n"), "the last line has no end")
    lines = text.split("\n")[:-1]
    _formed(len(lines) <= 63, "number of hashes")
    hashes = []
    for line in lines:
        try:
            hashes.append(b64decode(line, validate=True))
        except ValueError:
            refuse("MalformedError", "base64")
        _formed(len(hashes[-1]) == 32 and b64encode(hashes[-1]).decode() == line, "hash")
    return hashes


def _log(case: Case) -> None:
    size, root, time = _head(case["text"], case["keys"])
    kept_text, signatures = signed_root.parse_note(case["kept"].encode())
    _, kept_size, kept_root = signed_root.parse_checkpoint(kept_text)
    require(size >= kept_size, "LedgerError", "rollback")
    require(size > kept_size or root == kept_root, "LedgerError", "split view")
    if kept_size:
        merkle.consistency(kept_size, kept_root, size, root, _lines(case["consistency"]))
    keys = [signed_root.parse_key(line) for line in case["keys"]]
    known = [key for key in keys if any((key.name, key.key_id) == (name, blob[:4]) for name, blob in signatures)]
    times = [stated for _, stated in signed_root.verify(kept_text, signatures, known)] if known else []
    kept_time = max((stated for stated in times if stated is not None), default=None)
    forward = time is None or kept_time is None or time >= kept_time
    require(forward, "LedgerError", "backdated")


def check(case: Case) -> None:
    """Check one case."""
    if case["kind"] == "leaf":
        data = bytes.fromhex(case["bytes"])
        value = records.ledger_leaf(data)
        _, origin, size, root, parents, extensions = value
        got = [origin, size, root.hex(), [[*parent[:2], parent[2].hex()] for parent in parents]]
        same("leaf", got, [case[name] for name in ("origin", "size", "root", "parents")])
        same("extensions", [[name, data.hex()] for name, data in extensions], case["extensions"])
        same("leaf hash", merkle.leaf_hash(data).hex(), case["leaf_hash"])
        same("encoding", canonical.encode(value), data)
    elif case["kind"] == "head":
        size, root, time = _head(case["text"], case["keys"])
        same("head", (size, root.hex(), time), (case["size"], case["root"], case["timestamp"]))
    elif case["kind"] == "entry":
        _entry(case)
    else:
        same("kind", case["kind"], "log")
        _log(case)
