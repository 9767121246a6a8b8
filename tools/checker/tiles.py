"""Tiles from specs/tiles.md, over the tree of decimal numbers that the vectors use."""

from __future__ import annotations

from functools import lru_cache

from tools.checker import merkle
from tools.checker.faults import Case, refuse, require, same

__all__ = ["check"]

MAX_SIZE = 2**48 - 1


def _formed(condition: object, message: str) -> None:
    require(condition, "MalformedError", message)


@lru_cache(None)
def _leaf(index: int) -> bytes:
    return merkle.leaf_hash(str(index).encode())


@lru_cache(None)
def _root_at(level: int, index: int) -> bytes:
    """Return the root of 256**level leaves."""
    if level == 0:
        return _leaf(index)
    return merkle.root([_root_at(level - 1, 256 * index + number) for number in range(256)])


def _path(level: int, index: int, width: int) -> str:
    groups: list[str] = []
    rest = index
    while True:
        groups.insert(0, f"{rest % 1000:03}")
        rest //= 1000
        if not rest:
            break
    number = "".join(f"x{group}/" for group in groups[:-1]) + groups[-1]
    name = "entries" if level < 0 else str(level)
    return f"tile/{name}/{number}" + ("" if width == 256 else f".p/{width}")


def _parse(path: str) -> tuple[int, int, int]:
    """Read a path by trying to write it again."""
    parts = path.split("/")
    _formed(len(parts) > 2 and parts[0] == "tile", "not a tile")
    level = {"entries": -1, **{str(number): number for number in range(6)}}.get(parts[1])
    if level is None:
        refuse("MalformedError", "another level")
    width = "256"
    if parts[-2].endswith(".p"):
        width = parts.pop()
        parts[-1] = parts[-1][:-2]
    digits = "".join(part.removeprefix("x") for part in parts[2:])
    _formed(digits and all(each in "0123456789" for each in digits + width) and width, "not numbers")
    place = level, int(digits), int(width)
    _formed(1 <= place[2] <= 256 and _path(*place) == path, "another spelling")
    _formed((place[1] * 256 + place[2]) * 256 ** max(level, 0) <= MAX_SIZE, "beyond the largest tree")
    return place


def _all(size: int) -> list[str]:
    """Return the paths of all tiles of a tree."""
    counts = [(level, size // 256 ** max(level, 0)) for level in range(-1, 6)]
    return [
        _path(level, start // 256, min(256, count - start)) for level, count in counts for start in range(0, count, 256)
    ]


def _cut(data: bytes, width: int) -> list[bytes]:
    _formed(len(data) == 32 * width, "length of a tile")
    return [data[32 * number : 32 * number + 32] for number in range(width)]


def _entries(data: bytes, width: int) -> list[bytes]:
    found = []
    for _ in range(width):
        _formed(len(data) >= 2, "no length")
        length = 256 * data[0] + data[1]
        _formed(len(data) >= 2 + length, "cut short")
        found.append(data[2 : 2 + length])
        data = data[2 + length :]
    _formed(not data, "more after the entries")
    return found


def _hash(start: int, end: int, size: int, tiles: dict[str, str]) -> bytes:
    """Return the root of a range that RFC 6962's splits lead to, from the highest tiles that have it."""
    length = end - start
    if length & (length - 1):
        k = 1
        while 2 * k < length:
            k *= 2
        left, right = _hash(start, start + k, size, tiles), _hash(start + k, end, size, tiles)
        return merkle.root([left, right])
    level = 0
    while 256 ** (level + 1) <= length:
        level += 1
    unit = 256**level
    index = start // unit
    count = size // unit
    width = min(256, count - index // 256 * 256)
    path = _path(level, index // 256, width)
    hashes = _cut(bytes.fromhex(tiles[path]), width)
    return merkle.root(hashes[index % 256 : index % 256 + length // unit])


def _proof(index: int, start: int, end: int, size: int, tiles: dict[str, str]) -> list[bytes]:
    if end - start == 1:
        return []
    k = 1
    while 2 * k < end - start:
        k *= 2
    middle = start + k
    if index < middle:
        return [*_proof(index, start, middle, size, tiles), _hash(middle, end, size, tiles)]
    return [*_proof(index, middle, end, size, tiles), _hash(start, middle, size, tiles)]


def check(case: Case) -> None:
    """Check one case."""
    kind = case["kind"]
    if kind == "path":
        same("place", list(_parse(case["path"])), case["place"])
        same("path", _path(*case["place"]), case["path"])
    elif kind == "tiles":
        before = set(_all(case["old_size"]))
        same("paths", [path for path in _all(case["new_size"]) if path not in before], case["paths"])
    elif kind == "hashes":
        level, index, width = _parse(case["path"])
        got = _cut(bytes.fromhex(case["bytes"]), width)
        same("hashes", got, [_root_at(level, 256 * index + number) for number in range(width)])
    elif kind == "entries":
        _, _, width = _parse(case["path"])
        same("entries", [entry.hex() for entry in _entries(bytes.fromhex(case["bytes"]), width)], case["entries"])
    else:
        same("kind", kind, "inclusion")
        index, size = case["index"], case["size"]
        proof = _proof(index, 0, size, size, case["tiles"])
        merkle.inclusion(_leaf(index), index, size, proof, bytes.fromhex(case["root"]))
