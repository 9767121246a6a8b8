"""One state of a store read without LMDB, for finding out what is wrong with it.

Nothing on a damaged page can end the process or make it run forever, and what is not damaged can be read as ever.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from contextlib import contextmanager
from typing import TYPE_CHECKING

from polstore.errors import LockedError
from polstore.storage import keys
from polstore.storage.opening import DATA_FILE
from polstore.storage.pages import read_tree
from polstore.storage.reader import Reader
from polstore.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from polstore.storage.environment import Environment
    from polstore.storage.pages import PageTree

__all__ = ["Survey", "survey"]

ATTEMPTS = 100  # until a state is caught before two more have been committed, which takes microseconds


class Survey(Store):
    """A store that shows one state, and only what its sound pages hold.

    Attributes:
        damages: (number of a page of the data file, what is wrong with it).
        foreign: keys that no store has, of which nothing else is shown.
        lost: names of runs of which there is something, but not the row without which they are not listed.
    """

    def __init__(self, path: Path, environment: Environment, descriptor: int, tree: PageTree) -> None:
        super().__init__(path, environment, readonly=True)
        self.damages = tuple(tree.damages)
        rows: set[str] = set()
        named: set[str] = set()
        foreign = []
        for key in tree.places:
            try:
                run = keys.check_key(key)
            except ValueError:
                foreign.append(key)
                continue
            if run is not None:
                (rows if key.startswith(keys.RUN) else named).add(run)
        self.foreign = tuple(foreign)
        self.lost = tuple(sorted(named - rows))
        for key in foreign:
            del tree.places[key]
        self._lookup = _Lookup(path, descriptor, tree)

    def faults(self) -> Iterator[tuple[str, str, str]]:
        """Yield what is wrong before any value is looked at: what, why, and what that may cost."""
        for page, error in self.damages:
            yield f"page {page} of the data file", error, "what is named below, or whole runs"
        for key in self.foreign:
            yield f"key {key.hex()}", "none that a store has", "what is named below, or a whole run"
        for name in self.lost:
            yield f"run {name}", "its row is lost", "the whole run"

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """Open a view: always of the same state."""
        yield Reader(self._lookup)


@contextmanager
def survey(store: Store) -> Iterator[Survey]:
    """Read the newest state of a store without LMDB, which keeps its pages from being used again meanwhile.

    Raises:
        LockedError: it is written to so fast that no state can be caught.
        CallerError: a layout that is not known here, or a file that cannot be read.
    """
    descriptor = os.open(store.path / DATA_FILE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(ATTEMPTS):
            with store._used() as environment, environment.view() as handle:
                tree = read_tree(descriptor, handle.number())
                if tree is not None:
                    yield Survey(store.path, environment, descriptor, tree)
                    return
        raise LockedError(f"store {store.path} is being written to too fast to be checked")
    finally:
        os.close(descriptor)


class _Lookup:
    """Finds values in the data file."""

    def __init__(self, path: Path, descriptor: int, tree: PageTree) -> None:
        self.path = path
        self._descriptor = descriptor
        self._places = tree.places
        self._keys = sorted(tree.places)

    def get(self, key: bytes) -> bytes | None:
        place = self._places.get(key)
        return None if place is None else os.pread(self._descriptor, place.length, place.offset)

    def get_many(self, keys: Iterable[bytes]) -> list[bytes]:
        values: list[bytes] = []
        for key in keys:
            value = self.get(key)
            if value is None:
                break
            values.append(value)
        return values

    def size(self, key: bytes) -> int | None:
        place = self._places.get(key)
        return None if place is None else place.length

    def last(self, prefix: bytes) -> bytes | None:
        return self.last_before(prefix + b"\xff", prefix)

    def last_before(self, end: bytes, prefix: bytes) -> bytes | None:
        index = bisect_left(self._keys, end)
        found = self._keys[index - 1] if index else b""
        return found if found.startswith(prefix) else None

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        for index in range(bisect_left(self._keys, prefix), len(self._keys)):
            if not self._keys[index].startswith(prefix):
                return
            yield self._keys[index]
