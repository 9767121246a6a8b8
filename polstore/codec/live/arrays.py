"""Torch tensors to host arrays and back, bit for bit, for every dtype that can be committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from polstore.codec.snapshot import BLOCK, CARRIER, Tensor, bits
from polstore.errors import TrainingError
from polstore.wire.state import ITEM_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["dtype_name", "raw_bytes", "same_bits", "to_host", "to_torch"]

TORCH_DTYPE = {name: getattr(torch, name) for name in ITEM_SIZE if hasattr(torch, name)}
NAMES = {dtype: name for name, dtype in TORCH_DTYPE.items()}


def dtype_name(path: str, tensor: torch.Tensor) -> str:
    """Return the committed name of a tensor's dtype; raises `TrainingError` for one that has none."""
    if is_lazy(tensor) or tensor.is_meta:
        raise TrainingError(f"tensor {path} cannot be committed", expected="values", got="none yet")
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.dtype not in NAMES:
        raise TrainingError(
            f"tensor {path} cannot be committed",
            expected="a dense tensor of " + ", ".join(TORCH_DTYPE),
            got=f"{'nested' if tensor.is_nested else tensor.layout}, {tensor.dtype}",
        )
    return NAMES[tensor.dtype]


def raw_bytes(tensor: torch.Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return a private copy of a tensor's elements in row-major order as bytes, shape ``(nbytes,)``."""
    if not tensor.numel():  # an empty tensor may have a stride that no view as bytes allows
        return np.empty(0, np.uint8)
    flat = tensor.detach().to("cpu", copy=True).contiguous().reshape(-1)
    array: np.ndarray[tuple[int], np.dtype[np.uint8]] = flat.view(torch.uint8).numpy()
    return array


def to_host(path: str, tensor: torch.Tensor) -> Tensor:
    """Copy a torch tensor into a snapshot's tensor named ``path``."""
    name = dtype_name(path, tensor)
    return Tensor(path, name, tuple(tensor.shape), raw_bytes(tensor).view(np.dtype(CARRIER[name])))


def same_bits(live: torch.Tensor, tensor: Tensor) -> bool:
    """Say whether a torch tensor has the dtype, the shape and the elements of a snapshot's tensor, bit for bit."""
    if (NAMES.get(live.dtype), tuple(live.shape)) != (tensor.dtype, tensor.shape):
        return False
    if not tensor.data.size:
        return True
    plain = live.detach().to("cpu").resolve_conj().resolve_neg()  # what may only be promised of a conjugate
    flat = plain.contiguous().reshape(-1).view(torch.uint8).numpy()
    ours, theirs = bits(flat.view(tensor.data.dtype)), bits(tensor.data)
    return all(
        np.array_equal(ours[start : start + BLOCK], theirs[start : start + BLOCK])
        for start in range(0, ours.size, BLOCK)
    )


def to_torch(tensor: Tensor) -> torch.Tensor:
    """Copy a snapshot's tensor into a new torch tensor on the CPU."""
    if tensor.dtype not in TORCH_DTYPE:
        raise TrainingError(f"tensor {tensor.name}: this torch has no such dtype", expected=NAMES, got=tensor.dtype)
    shape: Sequence[int] = tensor.shape
    if tensor.data.size == 0:  # an empty array has no stride that torch could view as wider elements
        return torch.empty(shape, dtype=TORCH_DTYPE[tensor.dtype], device="cpu")
    flat = torch.from_numpy(tensor.data.view(np.uint8).copy())
    return flat.view(TORCH_DTYPE[tensor.dtype]).reshape(shape)
