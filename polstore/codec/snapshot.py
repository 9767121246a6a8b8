"""Snapshots as values: named tensors in numpy arrays and the scalars as canonical bytes.

Every dtype has a little-endian carrier that numpy knows and that keeps all of its bits, NaN payloads and negative zeros
included. Nothing here interprets the scalars, and nothing copies or changes an array. Implements the conventions of
specs/codec.md and the entries of specs/state-digest.md. Does no I/O and never imports torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from polstore.errors import MissingError, UsageError
from polstore.wire.fields import Fields
from polstore.wire.state import ITEM_SIZE, TensorEntry, check_order, header, state_digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["BLOCK", "CARRIER", "Array", "Snapshot", "Tensor", "bits", "carrier_count"]

Array: TypeAlias = "NDArray[Any]"

BLOCK = 1 << 17  # elements worked on at a time: 512 KiB of float32 stay near a core, and calls cost little beside them

CARRIER = {  # the numpy dtype that holds the elements of a dtype, little-endian on every machine
    "bool": "|u1",  # bytes other than 0 and 1 are kept as they are
    "uint8": "|u1",
    "int8": "|i1",
    "int16": "<i2",
    "uint16": "<u2",
    "int32": "<i4",
    "uint32": "<u4",
    "int64": "<i8",
    "uint64": "<u8",
    "float8_e4m3fn": "|u1",
    "float8_e5m2": "|u1",
    "float16": "<f2",
    "bfloat16": "<u2",
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<u8",  # real part in the low half: bits only, since arithmetic could change a NaN's payload
    "complex128": "<u8",  # two items an element, real part first: numpy has no 16-byte integer
}

_UNSIGNED = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}


def carrier_count(dtype: str, shape: tuple[int, ...]) -> int:
    """Return how many items of the carrier hold a tensor: its elements, or twice as many for complex128."""
    count = ITEM_SIZE[dtype] // np.dtype(CARRIER[dtype]).itemsize
    for size in shape:
        count *= size
    return count


def bits(array: Array) -> Array:
    """Return the same memory as unsigned integers of the same width."""
    return array.view(_UNSIGNED[array.dtype.itemsize])


@dataclass(frozen=True, eq=False)
class Tensor:
    """One named tensor of a snapshot.

    Attributes:
        name: for instance ``parameter/conv1.weight``; 1 to 512 characters, no controls.
        dtype: a key of `CARRIER`.
        shape: sizes, outermost first; empty for a single number.
        data: the elements in row-major order; 1-D, contiguous, of the carrier's dtype. It belongs to the tensor from
            here on and must not change: digests are cached, and other snapshots may share it.

    Raises:
        MalformedError: a name, dtype or shape that no snapshot may hold.
        UsageError: ``data`` is not the carrier array of that dtype and shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Array

    def __post_init__(self) -> None:
        header(Fields((self.name, self.dtype, self.shape), "tensor", 3))
        wanted = np.dtype(CARRIER[self.dtype])
        if self.data.dtype != wanted or self.data.ndim != 1 or not self.data.flags.c_contiguous:
            raise UsageError(
                f"array of tensor {self.name}",
                expected=f"1-D contiguous {wanted.str}",
                got=f"{self.data.ndim}-D {self.data.dtype.str}",
            )
        count = carrier_count(self.dtype, self.shape)
        if self.data.size != count:
            raise UsageError(f"array of tensor {self.name} has the wrong size", expected=count, got=self.data.size)

    @property
    def nbytes(self) -> int:
        """Size of the elements in bytes."""
        return int(self.data.nbytes)

    def blocks(self) -> Iterator[Array]:
        """Yield the elements block by block."""
        for start in range(0, self.data.size, BLOCK):
            yield self.data[start : start + BLOCK]

    def entry(self) -> TensorEntry:
        """Return what is committed of the tensor; hashed on the first call, then kept."""
        found: TensorEntry | None = self.__dict__.get("_entry")
        if found is None:  # no cached_property: in Python 3.11 all tensors would share its lock while they are hashed
            found = TensorEntry(self.name, self.dtype, self.shape, hashlib.sha256(self.data.data).digest())
            self.__dict__["_entry"] = found
        return found


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A whole training state.

    Attributes:
        tensors: sorted by the UTF-8 bytes of their names, no name twice.
        scalars: canonical encoding of everything else; opaque to the codec.

    Raises:
        MalformedError: the tensors are not sorted or not unique.
    """

    tensors: tuple[Tensor, ...]
    scalars: bytes

    def __post_init__(self) -> None:
        check_order(self.names, "tensor names of a snapshot")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in their order."""
        return tuple(tensor.name for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Size of all elements and the scalars in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors) + len(self.scalars)

    def tensor(self, name: str) -> Tensor:
        """Return the tensor of that name; raises `MissingError`."""
        try:
            return self._by_name[name]
        except KeyError as error:
            raise MissingError(f"the snapshot has no tensor {name!r}") from error

    def partner(self, name: str, dtype: str, shape: tuple[int, ...]) -> Tensor | None:
        """Return the tensor of that name if its dtype and shape are those, else None."""
        found = self._by_name.get(name)
        return found if found is not None and (found.dtype, found.shape) == (dtype, shape) else None

    def entries(self) -> tuple[TensorEntry, ...]:
        """Return one entry per tensor, in their order."""
        return tuple(tensor.entry() for tensor in self.tensors)

    def digest(self) -> bytes:
        """Return the state digest, 32 bytes (specs/state-digest.md)."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        return state_digest(self.entries(), self.scalars)

    @cached_property
    def _by_name(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}
