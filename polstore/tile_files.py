"""Writing a log as tiles: a directory that any web server can serve and any C2SP client can read.

Only tiles that an earlier export lacks are written, full ones are never touched again, and the signed head is replaced
last, so whoever follows the head before finds all that it needs. What is written is checked against the head first.
Implements the writing part of specs/tiles.md. Reads no store: a log is anything with the four members of `Log`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from polstore.errors import DamagedError, ExistsError, MalformedError
from polstore.wire import merkle, note
from polstore.wire.archive_files import HEAD
from polstore.wire.checkpoint import Checkpoint, parse_text
from polstore.wire.fields import DIGEST_SIZE
from polstore.wire.tiles import (
    ENTRIES,
    HEIGHT,
    WIDTH,
    Tile,
    decode_hashes,
    encode_entries,
    encode_hashes,
    node_from_tiles,
    tiles,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from polstore.static_files import StaticFiles
    from polstore.wire.merkle import Node

__all__ = ["Log", "export_log", "export_tree", "exported_size"]


class Log(Protocol):
    """An append-only log with a signed head."""

    def head(self) -> bytes:
        """Return the newest signed head, a checkpoint note."""

    def leaf(self, index: int) -> bytes:
        """Return the bytes of a leaf below the head's size."""

    def node(self, level: int, index: int) -> bytes:
        """Return the hash over the leaves ``[index << level, (index + 1) << level)``, 32 bytes."""


def export_log(log: Log, files: StaticFiles, sizes: Iterable[int] = ()) -> Checkpoint:
    """Bring the tiles and the head in ``files`` up to date and return what the head states.

    Args:
        log: the log; what was exported before must be a part of it.
        files: the directory.
        sizes: older sizes that were signed, so that a reader who holds such a head finds partial tiles of that size.

    Raises:
        ExistsError: the directory holds another log, or a newer state of this one.
        DamagedError: the log's head, leaves and tree contradict each other, or the directory's head cannot be read.
        FullError: no room left on the device.
    """
    signed = log.head()
    head = _parsed(signed)
    done = exported_size(log, files)
    for size in sorted({size for size in sizes if done < size < head.size} | {head.size}):
        export_tree(files, done, size, log.node, log.leaf)
        done = size
    _check_root(files, head)
    files.replace(HEAD, signed)
    return head


def export_tree(
    files: StaticFiles, old_size: int, new_size: int, node: Node, leaf: Callable[[int], bytes] | None = None
) -> None:
    """Write the tiles that a tree of ``new_size`` leaves has and one of ``old_size`` lacks, entries only with ``leaf``.

    Raises:
        DamagedError: a leaf or a node is not what the nodes above it say.
    """
    for tile in tiles(old_size, new_size, entries=leaf is not None):
        if tile.level == ENTRIES and leaf is not None:
            start = tile.index * WIDTH
            data = encode_entries([_checked(leaf(start + i), start + i, node) for i in range(tile.width)])
        else:
            data = encode_hashes(tile, node)
            _check_above(tile, data, new_size, node)
        files.replace(tile.path(), data)  # one may be there from an export that was cut short


def exported_size(log: Log, files: StaticFiles) -> int:
    """Return the size of the log that was exported before, 0 for none, after checking that it is a part of ``log``.

    Raises as `export_log` does.
    """
    data = files.read(HEAD, note.MAX_NOTE)
    if data is None:
        return 0
    head, place = _parsed(log.head()), files.directory / HEAD
    try:
        before = parse_text(note.parse(data).text)
    except MalformedError as error:
        raise DamagedError(f"{place} is no head of a log: {error}") from error
    if before.origin != head.origin:
        raise ExistsError(f"{place} is of another log", expected=head.origin, got=before.origin)
    if before.size > head.size:
        raise ExistsError(f"{place} is ahead of the log", expected=f"at most {head.size} leaves", got=before.size)
    root = merkle.root_from_nodes(before.size, log.node)
    if before.root != root:
        raise ExistsError(f"{place}: its first {before.size} leaves are others", expected=root, got=before.root)
    return before.size


def _parsed(signed: bytes) -> Checkpoint:
    try:
        return parse_text(note.parse(signed).text)
    except MalformedError as error:
        raise DamagedError(f"head of the log is damaged: {error}") from error


def _checked(leaf: bytes, index: int, node: Node) -> bytes:
    expected, got = node(0, index), merkle.leaf_hash(leaf)
    if got != expected:
        raise DamagedError(f"leaf {index} of the log is damaged", expected=expected, got=got)
    return leaf


def _check_above(tile: Tile, data: bytes, size: int, node: Node) -> None:
    """Require that a full tile hashes to the node above it."""
    if tile.width < WIDTH:
        return  # its hashes are on the right edge, which is checked as a whole
    expected, got = node(HEIGHT * (tile.level + 1), tile.index), merkle.root(decode_hashes(tile, data))
    if got != expected:
        raise DamagedError(f"{tile.path()} of a tree of {size} leaves is damaged", expected=expected, got=got)


def _check_root(files: StaticFiles, head: Checkpoint) -> None:
    """Require that the tiles that were written lead to the root that was signed."""

    @lru_cache(maxsize=8)
    def read(tile: Tile) -> tuple[bytes, ...]:
        return decode_hashes(tile, files.read(tile.path(), WIDTH * DIGEST_SIZE) or b"")

    try:
        got = merkle.root_from_nodes(head.size, node_from_tiles(head.size, read))
    except MalformedError as error:
        raise DamagedError(f"exported tiles below {files.directory}: {error}") from error
    if got != head.root:
        raise DamagedError(f"log {head.origin} is not what was signed", expected=head.root, got=got)
