"""Policies, evidence, a witness's request and answer from specs/time.md."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from typing import Any

from tools.checker.faults import Case, refuse, require, same
from tools.checker.signed_root import Key, parse_checkpoint, parse_key, parse_note, verify

__all__ = ["check"]


def _formed(condition: object, message: str) -> None:
    require(condition, "MalformedError", message)


def _policy(data: bytes) -> dict[str, Any]:
    """Return witnesses by name, groups in order, and the quorum."""
    _formed(len(data) <= 2**18, "size")
    _formed(all(octet in b"\t\n" or 0x20 <= octet != 0x7F for octet in data), "control character")
    _formed(data.endswith(b"\n"), "no end of the last line")
    witnesses: dict[bytes, Key] = {}
    logs: list[Key] = []
    groups: list[tuple[bytes, int, list[bytes]]] = []
    quorum: bytes | None = None
    used: set[bytes] = set()

    def defined(name: bytes) -> bool:
        return name in witnesses or name in [group[0] for group in groups]

    def key_of(field: bytes, kind: int, others: list[Key]) -> Key:
        try:
            key = parse_key(field.decode())
        except UnicodeDecodeError:
            refuse("MalformedError", "key")
        _formed(key.type == kind, "type of a key")
        _formed(all(other.public != key.public for other in others), "key twice")
        return key

    for line in data.split(b"\n"):
        fields = [field for field in re.split(rb"[ \t]+", line) if field]
        if not fields or fields[0].startswith(b"#"):
            continue
        word, rest = fields[0], fields[1:]
        if word == b"log" and len(rest) in (1, 2):
            logs.append(key_of(rest[0], 1, logs))
        elif word == b"witness" and len(rest) in (2, 3):
            _formed(rest[0] != b"none" and not defined(rest[0]), "name")
            witnesses[rest[0]] = key_of(rest[1], 4, list(witnesses.values()))
        elif word == b"group" and len(rest) >= 3:
            name, threshold, members = rest[0], rest[1], rest[2:]
            for member in members:
                _formed(defined(member) and member not in used, "member")
                used.add(member)
            needed = {b"any": 1, b"all": len(members)}.get(threshold, 0)
            if not needed:
                _formed(re.fullmatch(rb"[1-9][0-9]{0,3}", threshold), "threshold")
                needed = int(threshold)
            _formed(1 <= needed <= len(members), "threshold")
            _formed(name != b"none" and not defined(name), "name")
            groups.append((name, needed, members))
        elif word == b"quorum" and len(rest) == 1:
            _formed(quorum is None and (rest[0] == b"none" or defined(rest[0])), "quorum")
            quorum = rest[0]
        else:
            refuse("MalformedError", "line")
    _formed(quorum is not None, "no quorum")
    _formed(max(len(logs), len(witnesses), len(groups)) <= 256, "lines")
    return {"witnesses": witnesses, "groups": groups, "quorum": quorum}


def _met(policy: dict[str, Any], name: bytes, cosigners: set[bytes]) -> bool:
    """Say whether a witness or group has witnessed, from the top down."""
    if name == b"none":
        return True
    for group, needed, members in policy["groups"]:
        if group == name:
            return bool(sum(_met(policy, member, cosigners) for member in members) >= needed)
    return name in cosigners


def _evidence(case: Case) -> None:
    policy = _policy(case["policy"].encode())
    text, signatures = parse_note(case["note"].encode())
    keys: dict[bytes, Key] = policy["witnesses"]
    known = [(key.name, key.key_id) for key in keys.values()]
    found: list[tuple[int, bytes]] = []
    if any((name, blob[:4]) in known for name, blob in signatures):
        for line, time in verify(text, signatures, list(keys.values())):
            found.append((time or 0, next(name for name, key in keys.items() if key.line == line)))
    found.sort()
    names = {name for _, name in found}
    same("cosigned", [[name.decode(), time] for time, name in found], case["cosigned"])
    same("missing", [name.decode() for name in keys if name not in names], case["missing"])
    same("quorum", _met(policy, policy["quorum"], names), case["quorum_met"])
    by, after = None, None
    if policy["quorum"] != b"none":
        reached = [t for t, _ in found if _met(policy, policy["quorum"], {n for time, n in found if time <= t})]
        by = min(reached, default=None)
        lasting = [t for t, _ in found if _met(policy, policy["quorum"], {n for time, n in found if time >= t})]
        after = max(lasting, default=None)
    same("bounds", (by, after), (case["existed_by"], case["not_before"]))


def _request(case: Case) -> None:
    parse_checkpoint(parse_note(case["note"].encode())[0])
    hashes = "".join(b64encode(bytes.fromhex(item)).decode() + "\n" for item in case["proof"])
    same("body", f"old {case['old']}\n{hashes}\n{case['note']}", case["body"])


def _answer(case: Case) -> None:
    text, _ = parse_note(case["note"].encode())
    whole, returned = parse_note((text + "\n" + case["answer"]).encode())
    _formed(whole == text, "more text")
    keys = [parse_key(line) for line in case["keys"]]
    times = dict(verify(text, returned, keys))
    lines = {}
    for line in case["answer"].splitlines(keepends=True):
        for key in keys:
            _, blobs = parse_note((text + "\n" + line).encode())
            if (key.name, key.key_id) == (blobs[0][0], blobs[0][1][:4]):
                lines[key.line] = line
    kept = []
    for line in case["note"].removeprefix(text + "\n").splitlines(keepends=True):
        _, blobs = parse_note((text + "\n" + line).encode())
        owner = [key for key in keys if (key.name, key.key_id) == (blobs[0][0], blobs[0][1][:4])]
        if owner and owner[0].line in lines:
            ((_, before),) = verify(text, blobs, owner)
            offered = lines.pop(owner[0].line)
            kept.append(offered if (times[owner[0].line] or 0) < (before or 0) else line)
        else:
            kept.append(line)
    same("merged", text + "\n" + "".join([*kept, *lines.values()]), case["merged"])


def check(case: Case) -> None:
    """Check one case."""
    if case["kind"] == "policy":
        policy = _policy(bytes.fromhex(case["hex"]) if "hex" in case else case["policy"].encode())
        for cosigners, met in case["met"]:
            known = {name.encode() for name in cosigners} & policy["witnesses"].keys()
            same(f"quorum of {cosigners}", _met(policy, policy["quorum"], known), met)
    elif case["kind"] == "evidence":
        _evidence(case)
    elif case["kind"] == "witness_request":
        _request(case)
    elif case["kind"] == "witness_answer":
        _answer(case)
    else:
        same("kind", case["kind"], "imprint")
        same("imprint", sha256(parse_note(case["note"].encode())[0].encode()).hexdigest(), case["sha256"])
