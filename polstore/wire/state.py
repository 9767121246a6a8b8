"""The state digest: what a snapshot is, for everybody who signs or checks one.

The digest is the RFC 6962 root over one entry per tensor, sorted by name, and one last entry for the scalars. An entry
binds a tensor's name, dtype, shape and the SHA-256 of its little-endian contiguous bytes, so one tensor can be opened
alone. It is computed over the logical state, after all quantisation: how a snapshot is stored is no part of it.
Implements specs/state-digest.md. Does no I/O and knows nothing of numpy or torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from polstore.errors import MalformedError
from polstore.wire import canonical, merkle
from polstore.wire.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from polstore.wire.canonical import Value

__all__ = [
    "ITEM_SIZE",
    "MAX_DIMENSIONS",
    "MAX_NAME",
    "MAX_SCALARS",
    "MAX_TENSORS",
    "TensorEntry",
    "entries_root",
    "scalars_entry",
    "state_digest",
]

ITEM_SIZE = {  # bytes of one element, by the name that torch and safetensors users know it under
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
MAX_NAME = 512  # characters; module paths of large models stay under 200
MAX_DIMENSIONS = 16
MAX_TENSORS = 1_000_000
MAX_SCALARS = 16 * 2**20  # bytes; hyperparameters and the states of schedulers take kilobytes
MAX_ELEMENTS = 2**40  # of one tensor: 4 TiB of float32


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a snapshot, by what is committed of it.

    Attributes:
        name: path of the tensor, for instance ``parameter/conv1.weight``.
        dtype: a key of `ITEM_SIZE`.
        shape: sizes, outermost first; empty for a single number.
        digest: SHA-256 of the elements' little-endian bytes in row-major order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: bytes

    def value(self) -> Value:
        """Return the entry as a canonical value."""
        return (0, self.name, self.dtype, self.shape, self.digest)

    @cached_property
    def leaf(self) -> bytes:
        """The entry's leaf in the tree whose root is the state digest, 32 bytes."""
        return merkle.leaf_hash(canonical.encode(self.value()))

    @classmethod
    def from_value(cls, value: Value, what: str = "tensor entry") -> TensorEntry:
        """Parse an entry; raises `MalformedError`."""
        fields = Fields(value, what, 5)
        fields.integer("kind", 0, 0)
        return cls(*header(fields), digest=fields.digest("digest"))


def header(fields: Fields) -> tuple[str, str, tuple[int, ...]]:
    """Read name, dtype and shape of a tensor, each within its cap; raises `MalformedError`."""
    name, dtype, shape = fields.text("name", MAX_NAME), fields.value(), fields.array("shape", MAX_DIMENSIONS)
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise MalformedError(f"{fields.what} {name} has an unknown dtype", expected=", ".join(ITEM_SIZE), got=dtype)
    sizes = []
    count = 1
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_ELEMENTS:
            raise MalformedError(f"{fields.what} {name}, size in its shape", expected=f"0 to {MAX_ELEMENTS}", got=size)
        sizes.append(size)
        count *= size
    if count > MAX_ELEMENTS:
        raise MalformedError(f"{fields.what} {name} is too large", expected=f"at most {MAX_ELEMENTS}", got=count)
    return name, dtype, tuple(sizes)


def scalars_entry(scalars: bytes) -> Value:
    """Return the last entry: the SHA-256 of the canonically encoded scalars."""
    return (1, hashlib.sha256(scalars).digest())


def check_order(names: Iterable[str], what: str) -> None:
    """Require names in strictly ascending order of their UTF-8 bytes, so without duplicates."""
    last: str | None = None
    for name in names:
        if last is not None and not last.encode() < name.encode():
            raise MalformedError(f"{what} are not sorted or not unique", expected=f"a name after {last!r}", got=name)
        last = name


def state_digest(entries: Sequence[TensorEntry], scalars: bytes) -> bytes:
    """Return the state digest, 32 bytes.

    Args:
        entries: one entry per tensor, sorted by the UTF-8 bytes of their names.
        scalars: the canonical encoding of the scalars.

    Raises:
        MalformedError: the entries are not sorted, not unique, or too many.
    """
    if len(entries) > MAX_TENSORS:
        raise MalformedError("snapshot has too many tensors", expected=f"at most {MAX_TENSORS}", got=len(entries))
    return entries_root(entries, hashlib.sha256(scalars).digest())


def entries_root(entries: Sequence[TensorEntry], scalars: bytes) -> bytes:
    """Return the state digest of a snapshot from its entries and the SHA-256 of its scalars.

    Raises:
        MalformedError: the entries are not sorted or not unique.
    """
    check_order((entry.name for entry in entries), "tensor names of a snapshot")
    leaves = [entry.leaf for entry in entries]
    leaves.append(merkle.leaf_hash(canonical.encode((1, scalars))))
    return merkle.root(leaves)
