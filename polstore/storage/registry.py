"""LMDB environments, each opened at most once in this process and never used across a fork.

LMDB's locks are POSIX locks: a second opening of the same files would share them and its closing would drop them. So
there is one environment per data file, known by device and inode, and its users are counted.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from polstore.storage.environment import Environment
from polstore.storage.opening import DATA_FILE, file_key
from polstore.storage.transaction import check_process

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["acquire", "release", "retain"]

_registry: dict[tuple[int, int], Environment] = {}
_registry_lock = threading.Lock()
_inherited: list[Environment] = []  # of the parent process; kept so that nothing of them is ever finalised here


def acquire(path: Path, *, sync: bool) -> Environment:
    """Return the environment of a store directory, opened at most once per process; the caller must `release` it.

    Whoever opens it first decides about ``sync``.
    """
    with _registry_lock:
        data = path / DATA_FILE
        key = file_key(data) if data.exists() else None
        for inherited in _inherited:
            if inherited.key == key:
                check_process(inherited.process, path)
        environment = _registry.get(key) if key is not None else None
        if environment is None:
            environment = Environment(path, sync=sync)
            _registry[environment.key] = environment
        environment.users += 1
        return environment


def retain(environment: Environment) -> None:
    """Keep an environment open for one more user, a view for instance that outlives its store."""
    with _registry_lock:
        environment.users += 1


def release(environment: Environment) -> None:
    """Give an environment back; the last user closes it. In a forked child nothing happens."""
    if os.getpid() != environment.process:
        return
    with _registry_lock:
        environment.users -= 1
        if not environment.users:
            if _registry.get(environment.key) is environment:
                del _registry[environment.key]
            environment.close()


def _after_fork() -> None:
    """Start the child with an empty registry; a lock held by another thread of the parent would never be freed."""
    global _registry_lock
    _registry_lock = threading.Lock()
    _inherited.extend(_registry.values())
    _registry.clear()


os.register_at_fork(after_in_child=_after_fork)
