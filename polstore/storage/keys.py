"""Keys of the LMDB store: one byte for the table, then a digest, or a run's name, a zero byte and big-endian numbers.

One key space serves all tables, so LMDB iterates each in the order of its numbers, and no database has to be opened
by name (which in LMDB takes the write lock). A run's name holds no zero byte, so no key is a prefix of another run's.
Keys stay under LMDB's limit of 511 bytes: the longest takes 1 + 64 + 1 + 1 + 8. There is one ledger, so its keys
name no run.
"""

from __future__ import annotations

import re
import struct
from hashlib import sha256
from typing import TYPE_CHECKING

from polstore.errors import UsageError
from polstore.wire.fields import DIGEST_SIZE, MAX_INDEX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "BLOB",
    "LEAF",
    "LEDGER_ENTRY",
    "LEDGER_HEAD",
    "LEDGER_LEAF",
    "LEDGER_NODE",
    "NODE",
    "NUMBER_SIZE",
    "ROOT",
    "RUN",
    "SNAPSHOT",
    "STORED_SNAPSHOT",
    "check_key",
    "check_run_name",
    "digest_key",
    "is_run_name",
    "last_number",
    "ledger_entries",
    "ledger_entry_key",
    "ledger_leaves",
    "ledger_nodes",
    "node_key",
    "number_key",
    "numbered",
    "numbered_all",
    "run_key",
    "run_prefix",
    "subtree",
]

BLOB = b"b"  # digest of the blob -> the blob
RUN = b"r"  # run -> its metadata
LEAF = b"l"  # run, index -> the leaf's bytes
NODE = b"n"  # run, level, index -> hash of a full subtree
SNAPSHOT = b"s"  # run, step -> state digest
STORED_SNAPSHOT = b"d"  # state digest -> how the snapshot is stored
ROOT = b"t"  # run, tree size -> the signed root's text
LEDGER_LEAF = b"L"  # index -> the leaf's bytes
LEDGER_NODE = b"N"  # level, index -> hash of a full subtree
LEDGER_HEAD = b"H"  # size -> the signed head's text
LEDGER_ENTRY = b"E"  # SHA-256 of an origin, tree size -> index of the leaf that enters this signed root

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
MAX_LEVEL = MAX_INDEX.bit_length()
NUMBER_SIZE = 8  # bytes of a number at the end of a key, or of an index in a value
_LEDGER_SIZES = {  # bytes of a key after the table's
    LEDGER_LEAF: NUMBER_SIZE,
    LEDGER_NODE: 1 + NUMBER_SIZE,
    LEDGER_HEAD: NUMBER_SIZE,
    LEDGER_ENTRY: DIGEST_SIZE + NUMBER_SIZE,
}
_RUN_SIZES = {RUN: 0, LEAF: NUMBER_SIZE, NODE: 1 + NUMBER_SIZE, SNAPSHOT: NUMBER_SIZE, ROOT: NUMBER_SIZE}  # after "\0"
_NUMBER = struct.Struct(">Q").pack
_LEVEL_AND_NUMBER = struct.Struct(">BQ").pack


def check_run_name(name: str) -> str:
    """Return ``name``, which must be 1 to 64 of ``A-Z a-z 0-9 . _ -``, a letter or digit first.

    Raises:
        UsageError: it is anything else.
    """
    if not isinstance(name, str) or RUN_NAME.fullmatch(name) is None:
        raise UsageError(
            "not a name for a run", expected="1 to 64 of A-Z a-z 0-9 . _ -, a letter or digit first", got=name
        )
    return name


def is_run_name(name: str) -> bool:
    """Return whether a run may have that name."""
    return RUN_NAME.fullmatch(name) is not None


def check_key(key: bytes) -> str | None:
    """Return the run that a key belongs to, if any; raises ValueError for one that no function here makes."""
    table, rest = key[:1], key[1:]
    if table in (BLOB, STORED_SNAPSHOT):
        if len(rest) != DIGEST_SIZE:
            raise ValueError
        return None
    if table in _LEDGER_SIZES:
        if len(rest) != _LEDGER_SIZES[table] or last_number(rest) > MAX_INDEX:
            raise ValueError
        return None
    name, zero, numbers = rest.partition(b"\0")
    run = name.decode("ascii")
    wrong = len(numbers) != _RUN_SIZES.get(table) or bool(zero) != bool(numbers) or not is_run_name(run)
    if wrong or (numbers and last_number(numbers) > MAX_INDEX):
        raise ValueError
    return run


def digest_key(table: bytes, digest: bytes) -> bytes:
    """Return the key of a digest of 32 bytes."""
    if not isinstance(digest, bytes) or len(digest) != DIGEST_SIZE:
        raise UsageError("not a digest", expected=f"{DIGEST_SIZE} bytes", got=digest)
    return table + digest


def run_key(name: str) -> bytes:
    """Return the key of a run's metadata."""
    return RUN + check_run_name(name).encode("ascii")


def run_prefix(table: bytes, name: str) -> bytes:
    """Return what all keys of a run in a table begin with."""
    return table + check_run_name(name).encode("ascii") + b"\0"


def numbered(prefix: bytes, number: int) -> bytes:
    """Return the key of a step, index or size among those that begin with ``prefix``."""
    return prefix + _NUMBER(_checked(number, MAX_INDEX))


def numbered_all(prefix: bytes, count: int) -> Iterator[bytes]:
    """Yield the keys of the first ``count`` numbers in order; the fast form of `numbered`."""
    return (prefix + _NUMBER(number) for number in range(_checked(count, MAX_INDEX)))


def subtree(prefix: bytes, level: int, index: int) -> bytes:
    """Return the key, beginning with ``prefix``, of the node over leaves ``[index << level, (index + 1) << level)``."""
    if not (0 <= level <= MAX_LEVEL and 0 <= index <= MAX_INDEX):
        _checked(level, MAX_LEVEL)
        _checked(index, MAX_INDEX)
    return prefix + _LEVEL_AND_NUMBER(level, index)


def number_key(table: bytes, name: str, number: int) -> bytes:
    """Return the key of a step, index or size of a run."""
    return numbered(run_prefix(table, name), number)


def node_key(name: str, level: int, index: int) -> bytes:
    """Return the key of a node of a run's tree."""
    return subtree(run_prefix(NODE, name), level, index)


def ledger_leaves(first: int, leaves: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield neighbouring leaves of the ledger with their keys; the fast form of `numbered`."""
    return ((LEDGER_LEAF + _NUMBER(index), leaf) for index, leaf in enumerate(leaves, first))


def ledger_nodes(level: int, first: int, nodes: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield neighbours of one level of the ledger with their keys; the fast form of `subtree`."""
    prefix = subtree(LEDGER_NODE, level, first)[:-NUMBER_SIZE]
    return ((prefix + _NUMBER(index), node) for index, node in enumerate(nodes, first))


def ledger_entry_key(origin: str, size: int) -> bytes:
    """Return the key under which the ledger is searched for a signed root; hashed, as an origin may be too long."""
    return LEDGER_ENTRY + sha256(origin.encode()).digest() + _NUMBER(_checked(size, MAX_INDEX))


def ledger_entries(first: int, roots: Iterable[tuple[str, int]]) -> list[tuple[bytes, bytes]]:
    """Return keys and values for the signed roots that neighbouring leaves enter, sorted by key."""
    prefixes: dict[str, bytes] = {}
    pairs = []
    for index, (origin, size) in enumerate(roots, first):
        prefix = prefixes.get(origin)
        if prefix is None:
            prefix = prefixes[origin] = ledger_entry_key(origin, size)[:-NUMBER_SIZE]
        pairs.append((prefix + _NUMBER(size), _NUMBER(index)))
    pairs.sort()
    return pairs


def last_number(key: bytes) -> int:
    """Return the step, index or size that a key made by `number_key` ends in."""
    return int.from_bytes(key[-NUMBER_SIZE:], "big")


def _checked(number: int, maximum: int) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= maximum:
        raise UsageError("number out of bounds", expected=f"an integer from 0 to {maximum}", got=number)
    return number
