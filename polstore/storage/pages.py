"""LMDB's data file read without LMDB: every page in use, checked before anything on it is believed.

LMDB trusts its file. On a damaged page it may follow a pointer out of the map, which ends the process, or miss what is
there. This reads the same file by plain reads, visits each page once, and lists what is wrong. Where that is nothing,
LMDB finds every key and gives away no page that is in use. Knows the layout of LMDB 0.9 (data version 1, on 64-bit
machines, in the machine's byte order) with one unnamed database. Looks into no value of a store.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from polstore.errors import CallerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["PageTree", "Place", "read_tree"]

HEADER = struct.Struct("=QHHHH")  # page number, padding, kind, end of the pointers, beginning of the nodes
META = struct.Struct("=IIQQ48s48sQQ")  # magic, version, address, map size, free list, main tree, last page, transaction
TREE = struct.Struct("=IHHQQQQQ")  # padding, flags, depth, branch pages, leaf pages, overflow pages, entries, root
NODE = struct.Struct("=HHHH")  # low half of a number, its high half, flags, length of the key
NUMBER = struct.Struct("=Q")
MAGIC, VERSION = 0xBEEFC0DE, 1
BRANCH, LEAF, OVERFLOW, META_PAGE = 1, 2, 4, 8  # kinds of pages
BIG = 1  # flag of a node whose value has pages of its own
INTEGER_KEYS = 8  # flag of the free list's tree
NO_PAGE = 2**64 - 1
MAX_DEPTH = 32  # LMDB's own limit
METAS = 2


class Place(NamedTuple):
    """Where a value lies in the data file, in bytes."""

    offset: int
    length: int


@dataclass
class PageTree:
    """What the pages of one state of a store hold.

    Attributes:
        places: key -> where its value lies; what damaged pages held is missing.
        damages: (number of a page, what is wrong with it), in the order of finding.
    """

    places: dict[bytes, Place] = field(default_factory=dict)
    damages: list[tuple[int, str]] = field(default_factory=list)


def read_tree(descriptor: int, transaction: int) -> PageTree | None:
    """Read the pages of the state that ``transaction`` committed; a view of it must be open meanwhile.

    Args:
        descriptor: of the data file.
        transaction: number of the view's transaction.

    Returns:
        What was found, or None if neither meta page tells of that state any more: open another view.

    Raises:
        CallerError: a layout that is not known here.
    """
    metas = [_Meta.read(descriptor, page) for page in range(METAS)]
    number = next((number for number, meta in enumerate(metas) if meta.transaction == transaction), None)
    if number is None:
        return None
    walk = _Walk(descriptor, metas[number])
    walk.check_metas(metas, number)
    walk.out.places.update(walk.entries(metas[number].main, number))
    walk.check_free_pages([place for _, place in walk.entries(metas[number].free, number)])
    return walk.out


class _Tree(NamedTuple):
    """What a meta page says of a tree."""

    padding: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


class _Meta(NamedTuple):
    """A meta page."""

    number: int
    kind: int
    page_size: int
    free: _Tree
    main: _Tree
    last_page: int
    transaction: int

    @classmethod
    def read(cls, descriptor: int, page: int) -> _Meta:
        size = 0
        if page:  # the first one is at the beginning, whatever a page's size
            size = TREE.unpack_from(os.pread(descriptor, TREE.size, HEADER.size + 24))[0]
        data = os.pread(descriptor, HEADER.size + META.size, page * size)
        if len(data) < HEADER.size + META.size:
            raise CallerError("data file is cut short within its meta pages")
        number, _, kind, _, _ = HEADER.unpack_from(data)
        magic, version, _, _, free, main, last, transaction = META.unpack_from(data, HEADER.size)
        if (magic, version) != (MAGIC, VERSION):
            expected, got = f"magic {MAGIC:x}, version {VERSION}", f"magic {magic:x}, version {version}"
            raise CallerError("data file of a layout that cannot be checked here", expected=expected, got=got)
        free_tree, main_tree = _Tree._make(TREE.unpack(free)), _Tree._make(TREE.unpack(main))
        return cls(number, kind, free_tree.padding, free_tree, main_tree, last, transaction)


class _Walk:
    """Goes through the trees of one state and notes the pages that it has met."""

    def __init__(self, descriptor: int, meta: _Meta) -> None:
        self.out = PageTree()
        self._descriptor = descriptor
        self._page_size = meta.page_size
        self._last = meta.last_page
        self._used = set(range(METAS))
        self._counts = {BRANCH: 0, LEAF: 0, OVERFLOW: 0}  # pages of the tree under way
        self._integers = False  # whether its keys are numbers
        self._low = b""  # the next key is this or comes after it
        self._above = False  # only after it

    def check_metas(self, metas: Sequence[_Meta], current: int) -> None:
        """Check what both meta pages say; every transaction replaces the older of them."""
        for page, meta in enumerate(metas):
            if (meta.number, meta.kind) != (page, META_PAGE):
                self._damage(page, "is no meta page")
            if meta.free.flags != INTEGER_KEYS or meta.main.flags or meta.page_size != metas[current].page_size:
                self._damage(page, "does not describe the two trees of a store")
        numbers = [meta.transaction for meta in metas]
        if numbers != [0, 0] and (numbers[0] % METAS, abs(numbers[0] - numbers[1])) != (0, 1):
            self._damage(1 - current, f"transactions {numbers[0]} and {numbers[1]} do not follow one another")

    def entries(self, tree: _Tree, meta: int) -> Iterator[tuple[bytes, Place]]:
        """Yield the entries of a tree in order, as far as its pages are sound; ``meta`` is the page that names it."""
        self._counts = dict.fromkeys(self._counts, 0)
        self._integers = bool(tree.flags & INTEGER_KEYS)
        self._low, self._above = b"", False
        damages, count = len(self.out.damages), 0
        if tree.root != NO_PAGE:
            for entry in self._below(meta, tree.root, tree.depth):
                count += 1
                yield entry
        expected = (tree.branch_pages, tree.leaf_pages, tree.overflow_pages, tree.entries)
        got = (*self._counts.values(), count)
        if expected != got and len(self.out.damages) == damages:
            self._damage(meta, f"branch, leaf and overflow pages and entries: expected {expected}, got {got}")

    def check_free_pages(self, records: Sequence[Place]) -> None:
        """Check that no page is to be given away that is in use, or twice: writing would destroy what is on it."""
        for offset, length in records:
            page = offset // self._page_size
            numbers = memoryview(self._read(offset, length)).cast("Q").tolist() if length % 8 == 0 else []
            if not numbers or numbers[0] >= len(numbers):
                self._damage(page, "is no list of free pages")
                continue
            free = numbers[1 : numbers[0] + 1]
            wrong = [number for number in free if number > self._last or number in self._used]
            if wrong or len(set(free)) != len(free):
                self._damage(page, f"lists pages as free that are not: {wrong[:5] or 'one twice'}")
            self._used.update(free)

    def _below(self, parent: int, page: int, depth: int) -> Iterator[tuple[bytes, Place]]:
        """Yield the entries under a page that is ``depth`` pages above the values, itself included."""
        kind = LEAF if depth == 1 else BRANCH
        if not 1 <= depth <= MAX_DEPTH or not self._take(parent, page, 1):
            return
        data = self._read(page * self._page_size, self._page_size)
        try:
            nodes = self._nodes(data, page, kind)
        except ValueError as error:
            self._damage(page, str(error))
            return
        self._counts[kind] += 1
        for number, (offset, low, high, flags, key) in enumerate(nodes):
            if kind == BRANCH:
                if number and len(key) != NUMBER.size and self._integers:
                    self._damage(page, f"key {key.hex()} is no number")
                elif number:  # LMDB does not look at the first one's key
                    self._follow(page, key, above=False)
                yield from self._below(page, low | high << 16 | flags << 32, depth - 1)
                continue
            place = Place(page * self._page_size + offset + NODE.size + len(key), low | high << 16)
            if self._integers and len(key) != NUMBER.size:
                self._damage(page, f"key {key.hex()} is no number")
                continue
            self._follow(page, key, above=True)
            if flags & BIG:
                found = self._big(page, NUMBER.unpack_from(data, place.offset % self._page_size)[0], place.length)
                if found is None:
                    continue
                place = found
            yield key, place

    def _nodes(self, data: bytes, page: int, kind: int) -> list[tuple[int, int, int, int, bytes]]:
        """Return offset, halves, flags and key of each node of a page; raises ValueError where they do not add up."""
        number, _, got, lower, upper = HEADER.unpack_from(data)
        if (number, got) != (page, kind):
            raise ValueError(f"expected page {page} of kind {kind}, got page {number} of kind {got}")
        count = (lower - HEADER.size) // 2
        if lower % 2 or not HEADER.size < lower <= upper <= self._page_size or (kind == BRANCH and count < 2):
            raise ValueError("the bounds of its nodes are wrong")
        offsets = struct.unpack_from(f"={count}H", data, HEADER.size)
        ends = {}
        nodes = []
        for offset in offsets:
            if not upper <= offset <= self._page_size - NODE.size or offset % 2:
                raise ValueError("a node lies outside of it")
            low, high, flags, length = NODE.unpack_from(data, offset)
            end = offset + NODE.size + length
            if kind == LEAF:
                if flags not in (0, BIG):
                    raise ValueError("a node has unknown flags")
                end += NUMBER.size if flags & BIG else low | high << 16
            end += end % 2
            if end > self._page_size:
                raise ValueError("a node reaches beyond it")
            ends[offset] = end
            nodes.append((offset, low, high, flags, data[offset + NODE.size : offset + NODE.size + length]))
        place = upper
        for _ in offsets:  # LMDB keeps them without gaps
            place = ends.get(place, -1)
        if len(ends) != count or place != self._page_size:
            raise ValueError("its nodes overlap or leave gaps")
        return nodes

    def _big(self, parent: int, page: int, length: int) -> Place | None:
        """Return where a value lies that has pages of its own; None if they are not sound."""
        count = -(-(HEADER.size + length) // self._page_size)
        if not self._take(parent, page, count):
            return None
        number, _, kind, low, high = HEADER.unpack(self._read(page * self._page_size, HEADER.size))
        if (number, kind, low | high << 16) != (page, OVERFLOW, count):
            expected = f"page {page} of kind {OVERFLOW}, the first of {count}"
            self._damage(page, f"expected {expected}, got page {number} of kind {kind}, of {low | high << 16}")
            return None
        self._counts[OVERFLOW] += count
        return Place(page * self._page_size + HEADER.size, length)

    def _follow(self, page: int, key: bytes, *, above: bool) -> None:
        """Check that a key does not come before ``self._low``, and raise that to it."""
        order = NUMBER.unpack(key)[0].to_bytes(NUMBER.size, "big") if self._integers else key
        if order < self._low or (self._above and order == self._low):
            self._damage(page, f"key {key.hex()} is out of order")
        self._low, self._above = order, above

    def _take(self, parent: int, page: int, count: int) -> bool:
        """Note pages as used; complain of ``parent``, which names them, if they are not there or used already."""
        wanted = range(page, page + count)
        if page + count - 1 > self._last or not self._used.isdisjoint(wanted):
            self._damage(parent, f"names page {page}, which does not exist or is in use elsewhere")
            return False
        self._used.update(wanted)
        return True

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        return data + bytes(length - len(data))  # a file that was cut short while it was open

    def _damage(self, page: int, what: str) -> None:
        self.out.damages.append((page, what))
