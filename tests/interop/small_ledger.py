"""A ledger of a few leaves in memory, with what asking a witness needs of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polstore.wire import merkle
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.keys import SigningKey

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY = SigningKey("example.org/archive", bytes(range(32)))


class SmallLedger:
    def __init__(self, leaves: int, salt: bytes = b"", key: SigningKey = KEY) -> None:
        self.salt, self.key = salt, key
        self.grow(leaves)

    def grow(self, leaves: int) -> None:
        self.hashes = [merkle.leaf_hash(self.salt + bytes([leaf])) for leaf in range(leaves)]
        self._head = sign_root(Checkpoint(KEY.name, leaves, merkle.root(self.hashes)), self.key, 1_700_000_000)

    def head(self) -> bytes:
        return self._head

    def consistency_proof(self, old: int, new: int) -> Sequence[bytes]:
        return merkle.consistency_proof(old, new, merkle.nodes_of(self.hashes[:new]))

    def put_head(self, note: bytes) -> None:
        self._head = note
