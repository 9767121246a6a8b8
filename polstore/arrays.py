"""A snapshot's tensors as arrays of numpy with their shapes, for whoever reads an archive.

Copies nothing. What numpy has no dtype for (bfloat16, float8) comes as unsigned integers that hold the bits. Tensors of
torch are made by `polstore.codec.live.arrays`, since nothing here may need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polstore.codec.snapshot import Array, Tensor

__all__ = ["to_numpy"]

OWN_DTYPE = {"bool": "?", "complex64": "<c8", "complex128": "<c16"}  # where the carrier is not what numpy would take


def to_numpy(tensor: Tensor) -> Array:
    """Return a tensor's elements in its shape, read-only and without a copy; little-endian on every machine."""
    own = OWN_DTYPE.get(tensor.dtype)
    array = (tensor.data if own is None else tensor.data.view(own)).reshape(tensor.shape)
    array.flags.writeable = False  # of this view: the snapshot may share the memory with others
    return array
