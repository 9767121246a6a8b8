"""Tiles: an RFC 6962 tree cut into small files, as C2SP tlog-tiles lays them out.

A hash tile holds up to 256 neighbouring hashes of one level in eight: level 0 the leaf hashes, level l the roots of the
full tiles at level l - 1. An entry bundle holds the leaves themselves. A full tile never changes; where a tree ends in
the middle of one, there is a partial tile under a name of its own. Cuts any tree that is given as a
`polstore.wire.merkle.Node`, and makes a `Node` of tiles again. Implements specs/tiles.md. Reads and writes no file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.errors import MalformedError, UsageError
from polstore.wire import merkle
from polstore.wire.checkpoint import MAX_SIZE
from polstore.wire.fields import DIGEST_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from polstore.wire.merkle import Node

__all__ = [
    "ENTRIES",
    "HEIGHT",
    "MAX_ENTRY",
    "WIDTH",
    "Tile",
    "decode_entries",
    "decode_hashes",
    "encode_entries",
    "encode_hashes",
    "node_from_tiles",
    "tile_of",
    "tiles",
]

HEIGHT = 8  # levels of the tree that one level of tiles spans
WIDTH = 1 << HEIGHT  # hashes of a full tile
MAX_LEVEL = 5  # of a tile: 256**6 is the first size above `MAX_SIZE` of a checkpoint
ENTRIES = -1  # "level" of an entry bundle
MAX_ENTRY = 65_535  # bytes of one entry: its length takes two bytes
_LENGTH_SIZE = 2  # bytes, big-endian, in front of an entry
_PATH = re.compile(
    r"tile/(entries|[0-5])/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Tile:
    """The place of a tile.

    Attributes:
        level: 0 to `MAX_LEVEL`, or `ENTRIES` for the leaves themselves.
        index: number of the tile in its level, from the left.
        width: hashes or entries that it holds; `WIDTH` for a full one.

    Raises:
        UsageError: a place that no tree within `MAX_SIZE` has.
    """

    level: int
    index: int
    width: int = WIDTH

    def __post_init__(self) -> None:
        if not ENTRIES <= self.level <= MAX_LEVEL or not 1 <= self.width <= WIDTH or self.index < 0:
            raise UsageError("tile", expected=f"level {ENTRIES} to {MAX_LEVEL}, width 1 to {WIDTH}", got=self)
        end = self.index * WIDTH + self.width << HEIGHT * max(self.level, 0)
        if end > MAX_SIZE:
            raise UsageError("tile", expected=f"leaves below {MAX_SIZE}", got=f"leaves up to {end}")

    @property
    def full(self) -> Tile:
        """The full tile that a partial one grows into."""
        return Tile(self.level, self.index)

    def path(self) -> str:
        """Return the tile's path below the tree's directory, for instance ``tile/0/x001/x234/067.p/44``."""
        level = "entries" if self.level == ENTRIES else str(self.level)
        digits = str(self.index)
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[start : start + 3] for start in range(0, len(digits), 3)]
        number = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
        return f"tile/{level}/{number}" + ("" if self.width == WIDTH else f".p/{self.width}")

    @classmethod
    def parse(cls, path: str) -> Tile:
        """Parse a path; raises `MalformedError` for any but the one spelling of a place that a tree can have."""
        match = _PATH.fullmatch(path) if len(path) <= 64 else None
        if match is None:
            raise MalformedError("path of a tile", expected="tile/<level>/<number>[.p/<width>]", got=path)
        level = ENTRIES if match[1] == "entries" else int(match[1])
        try:
            tile = cls(level, int(re.sub("[x/]", "", match[2])), int(match[3] or WIDTH))
        except UsageError as error:
            raise MalformedError(f"path of a tile: {error}") from error
        if tile.path() != path:
            raise MalformedError("path of a tile is not in canonical form", expected=tile.path(), got=path)
        return tile


def tiles(old_size: int, new_size: int, *, entries: bool = True) -> Iterator[Tile]:
    """Yield the tiles of a tree of ``new_size`` leaves that the tree of its first ``old_size`` leaves does not have.

    They come level by level, the entry bundles first, and each level from the left.

    Raises:
        UsageError: not ``0 <= old_size <= new_size <= MAX_SIZE``.
    """
    if not 0 <= old_size <= new_size <= MAX_SIZE:
        raise UsageError("sizes of a tiled tree", expected=f"0 <= old <= new <= {MAX_SIZE}", got=(old_size, new_size))
    for level in range(ENTRIES if entries else 0, MAX_LEVEL + 1):
        old, new = (size >> HEIGHT * max(level, 0) for size in (old_size, new_size))
        if old == new:
            continue
        for index in range(old >> HEIGHT, -(-new >> HEIGHT)):
            yield Tile(level, index, min(new - index * WIDTH, WIDTH))


def tile_of(level: int, index: int, size: int) -> Tile:
    """Return tile ``index`` of a level as wide as it is in a tree of ``size`` leaves; raises `UsageError`."""
    return Tile(level, index, min((size >> HEIGHT * max(level, 0)) - index * WIDTH, WIDTH))


def encode_hashes(tile: Tile, node: Node) -> bytes:
    """Return the bytes of a hash tile, 32 for each hash."""
    start = tile.index * WIDTH
    return b"".join(node(HEIGHT * tile.level, start + number) for number in range(tile.width))


def decode_hashes(tile: Tile, data: bytes) -> tuple[bytes, ...]:
    """Parse a hash tile; raises `MalformedError` for another length than its width implies."""
    if len(data) != tile.width * DIGEST_SIZE:
        raise MalformedError(f"length of {tile.path()}", expected=tile.width * DIGEST_SIZE, got=len(data))
    return tuple(data[start : start + DIGEST_SIZE] for start in range(0, len(data), DIGEST_SIZE))


def encode_entries(leaves: Sequence[bytes]) -> bytes:
    """Return the bytes of an entry bundle; raises `UsageError` for too many leaves, none, or one that is too long."""
    if not 1 <= len(leaves) <= WIDTH:
        raise UsageError("entries of a bundle", expected=f"1 to {WIDTH}", got=len(leaves))
    longest = max(map(len, leaves))
    if longest > MAX_ENTRY:
        raise UsageError("length of an entry", expected=f"at most {MAX_ENTRY} bytes", got=longest)
    return b"".join(len(leaf).to_bytes(_LENGTH_SIZE, "big") + leaf for leaf in leaves)


def decode_entries(tile: Tile, data: bytes) -> tuple[bytes, ...]:
    """Parse an entry bundle; raises `MalformedError` unless it holds just as many entries as its width says."""
    entries: list[bytes] = []
    start = 0
    while start < len(data) and len(entries) < tile.width:
        begin = start + _LENGTH_SIZE
        end = begin + int.from_bytes(data[start:begin], "big")
        if end > len(data) or begin > len(data):
            raise MalformedError(f"{tile.path()} is cut short", expected=f"{max(begin, end)} bytes", got=len(data))
        entries.append(data[begin:end])
        start = end
    if len(entries) != tile.width or start != len(data):
        raise MalformedError(
            f"entries of {tile.path()}",
            expected=f"{tile.width} and nothing after them",
            got=f"{len(entries)} and {len(data) - start} bytes",
        )
    return tuple(entries)


def node_from_tiles(size: int, read: Callable[[Tile], Sequence[bytes]]) -> Node:
    """Return the `Node` of a tree of ``size`` leaves whose tiles ``read`` returns.

    Tiles vouch for nothing: what is proven with such a node holds once it leads to a root that is trusted.

    Args:
        size: number of leaves; only tiles of a tree of this size are asked for.
        read: returns the hashes of a tile, as `decode_hashes` does; worth a cache, neighbours share their tile.
    """

    def node(level: int, index: int) -> bytes:
        if level < 0 or index < 0 or (index + 1) << level > size:
            raise UsageError(f"no full subtree {index} at level {level} in a tree of {size} leaves")
        tile_level, height = divmod(level, HEIGHT)
        start = index << height
        tile = tile_of(tile_level, start >> HEIGHT, size)
        start &= WIDTH - 1
        return merkle.root(read(tile)[start : start + (1 << height)])

    return node
