"""Groups of items to frames, in the thread that made the items or in another one beside it, in order.

Compressing and hashing frames takes as long as making items and hashing values, so two threads finish a large snapshot
in half the time. Does no I/O.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from polstore.codec.framing import Packer

if TYPE_CHECKING:
    from types import TracebackType

    from polstore.codec.snapshot import Array

__all__ = ["Frames", "Packing"]

LARGE = 1 << 19  # bytes of a group that is worth waking another thread
AHEAD = 2  # groups that may wait to be packed: enough that neither thread waits for the other

Frames = list[tuple[bytes, bytes]]  # of one group: the SHA-256 of each frame, and the frame


class Packing:
    """Packs groups one after the other; a context manager, so that no thread is left behind.

    Args:
        beside: whether another thread packs; it starts with the first large group.

    Attributes:
        ahead: how many groups may be begun whose frames nobody has taken.
    """

    def __init__(self, *, beside: bool) -> None:
        self.ahead = AHEAD if beside else 0
        self._packer, self._other = Packer(), Packer()  # each for one thread
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="polstore-pack") if beside else None

    def __enter__(self) -> Packing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def begin(self, items: Array) -> Future[Frames]:
        """Begin to pack a group.

        Args:
            items: 1-D unsigned integers, which must not change before the result is there.

        Returns:
            Its frames, or what `polstore.codec.framing.Packer` raises.
        """
        if self._pool is not None and items.nbytes >= LARGE:
            return self._pool.submit(_packed, self._other, items)
        done: Future[Frames] = Future()
        done.set_result(_packed(self._packer, items))
        return done


def _packed(packer: Packer, items: Array) -> Frames:
    return [(hashlib.sha256(frame).digest(), frame) for frame in packer.pack(items)]
