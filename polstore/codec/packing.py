"""Groups of items to frames, in the thread that made the items or in another one beside it, in order.

Compressing and hashing frames takes as long as making items and hashing values, so two threads finish a large snapshot
in half the time. Does no I/O.
"""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from polstore.codec.framing import Packer

if TYPE_CHECKING:
    from types import TracebackType

    from polstore.codec.snapshot import Array

__all__ = ["Packing"]

LARGE = 1 << 19  # bytes of a group that is worth waking another thread
AHEAD = 2  # groups that may wait to be packed: enough that neither thread waits for the other

Frames = list[tuple[bytes, bytes]]  # of one group: the SHA-256 of each frame, and the frame


class Packing:
    """Packs groups one after the other; a context manager, so that no thread is left behind.

    Args:
        beside: whether another thread packs; it starts with the first large group.
    """

    def __init__(self, *, beside: bool) -> None:
        self._packer, self._other = Packer(), Packer()  # each for one thread
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="polstore-pack") if beside else None
        self._begun: deque[Future[Frames]] = deque()

    def __enter__(self) -> Packing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def begin(self, items: Array) -> None:
        """Begin to pack a group.

        Args:
            items: 1-D unsigned integers, which must not change until `take` has returned their frames.
        """
        if self._pool is not None and items.nbytes >= LARGE:
            self._begun.append(self._pool.submit(_packed, self._other, items))
            return
        done: Future[Frames] = Future()
        done.set_result(_packed(self._packer, items))
        self._begun.append(done)

    def due(self) -> bool:
        """Whether so many groups are begun that one is to be taken."""
        return len(self._begun) > (0 if self._pool is None else AHEAD)

    def take(self) -> Frames:
        """Return the frames of the first group not yet taken; raises what `polstore.codec.framing.Packer` raises."""
        return self._begun.popleft().result()


def _packed(packer: Packer, items: Array) -> Frames:
    return [(hashlib.sha256(frame).digest(), frame) for frame in packer.pack(items)]
