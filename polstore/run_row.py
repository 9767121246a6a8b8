"""What a store keeps of a run beside what is committed: enough to resume it and to open its dataset's leaves.

Private to the store: none of it is signed, and a bundle carries only the salts of opened samples.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from polstore.errors import MalformedError
from polstore.wire import canonical
from polstore.wire.fields import Fields

__all__ = ["RunRow"]

MAX_BYTES = 4096


@dataclass(frozen=True)
class RunRow:
    """A run's private row.

    Attributes:
        salt: secret of the dataset, 32 bytes.
        sample_hashes: digest of the blob that holds the dataset's leaf hashes, 32 bytes each.
        epoch: pass over the data at the last snapshot.
        batch: batches of that pass handed out by then.
        number: batches of the whole run handed out by then.
        complete: whether the recording ended by itself.
    """

    salt: bytes
    sample_hashes: bytes
    epoch: int
    batch: int
    number: int
    complete: bool

    TAG = "polstore/run/v1"

    def encode(self) -> bytes:
        """Return the row's bytes: the fields, and their SHA-256, since nothing else in the store vouches for them."""
        fields = (self.TAG, self.salt, self.sample_hashes, self.epoch, self.batch, self.number, self.complete)
        return canonical.encode((*fields, hashlib.sha256(canonical.encode(fields)).digest()))

    @classmethod
    def parse(cls, data: bytes) -> RunRow:
        """Parse a row; raises `MalformedError`."""
        fields = Fields(canonical.decode(data, limit=MAX_BYTES, what="run's row"), "run's row", 8)
        fields.tag(cls.TAG)
        row = cls(
            fields.digest("salt"),
            fields.digest("sample_hashes"),
            fields.integer("epoch"),
            fields.integer("batch"),
            fields.integer("number"),
            fields.boolean("complete"),
        )
        if row.encode() != data:
            raise MalformedError("run's row is damaged", expected=row.encode()[-32:], got=fields.digest("checksum"))
        return row
