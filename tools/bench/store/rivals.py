"""Rivals that save the live state from inside the training process, and compressors of what they save.

Each is given the very state that our snapshot is about to be taken of. `torch.save` and the rest write files into a
folder; only the files of torch.save are kept, for the backup programs (`tools.bench.store.repositories`).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import shutil
import warnings
from collections import defaultdict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
import zstandard
from safetensors.torch import save_file
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from tools.bench.store.clock import measured
from tools.bench.store.files import report, room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from polstore.codec.live.recipe import Training
    from tools.bench.store.clock import Cost

__all__ = [
    "DCP",
    "FLAT",
    "SAFETENSORS",
    "TORCH",
    "ZIPNN",
    "ZSTD",
    "AsyncSave",
    "FlatCopy",
    "Savers",
    "flat_state",
    "whole_state",
]

TORCH = "torch.save"
ZSTD = "torch.save + zstd"
DCP = "torch.distributed.checkpoint async_save"
SAFETENSORS = "safetensors"
ZIPNN = "ZipNN"
FLAT = "one flat copy of the state"
ZSTD_LEVEL = 3  # the zstd program's own default


class Savers:
    """Saves the state of one training by every rival, and keeps what that cost."""

    def __init__(self, training: Training, folder: Path, *, only: frozenset[str] | None = None) -> None:
        folder.mkdir()
        self.files: list[Path] = []  # of torch.save, in order
        self.costs: dict[str, list[Cost]] = defaultdict(list)
        self.sizes: dict[str, list[int]] = defaultdict(list)
        self._training = training
        self._folder = folder
        self._only = only
        self._flat: FlatCopy | None = None
        self._async_save = AsyncSave()
        self._zipnn = None if only is not None and ZIPNN not in only else _zipnn()

    def save(self, *, warm: bool = False) -> None:
        """Save the state by every rival; costs and sizes are kept unless this is only to warm up."""
        number = len(self.files)
        kept = self._folder / f"state-{number:03}.pt"
        self.files.append(kept)
        flat = flat_state(self._training)
        if self._flat is None or not self._flat.fits(flat):
            self._flat = FlatCopy(flat)
        outcomes: dict[str, tuple[Cost | None, int]] = {}
        for name, work in self._work(flat):
            path = kept if name == TORCH else self._folder / "other"
            cost, _ = measured(lambda: work(path))  # noqa: B023 # called at once
            outcomes[name] = cost, room(path) if path.exists() else 0
            if path != kept:
                _remove(path)
        for name, size in self._compressed(kept):
            outcomes[name] = None, size
        if not warm:
            for name, (spent, size) in outcomes.items():
                if spent is not None:
                    self.costs[name].append(spent)
                if size:
                    self.sizes[name].append(size)

    def _work(self, flat: dict[str, torch.Tensor]) -> Iterator[tuple[str, Callable[[Path], object]]]:
        """Yield the rivals; each is a function that saves to a path."""
        assert self._flat is not None
        copy = self._flat.copy
        yield TORCH, lambda path: torch.save(whole_state(self._training), path)
        yield FLAT, lambda _path: copy()  # always: ZipNN is given what it leaves
        if self._wanted(SAFETENSORS):
            yield SAFETENSORS, lambda path: save_file(flat, path)
        if self._wanted(DCP):
            yield DCP, lambda path: self._async_save(flat, path)

    def _compressed(self, file: Path) -> Iterator[tuple[str, int]]:
        if self._wanted(ZSTD):
            yield ZSTD, len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(file.read_bytes()))
        if self._zipnn is not None and self._flat is not None:
            yield ZIPNN, self._zipnn(self._flat)

    def _wanted(self, name: str) -> bool:
        return self._only is None or name in self._only


class AsyncSave:
    """Saves by ``torch.distributed.checkpoint.async_save``, into staging buffers that are used again every time."""

    def __init__(self) -> None:
        self._stager = DefaultStager(
            StagingOptions(  # there is nothing to pin and nothing to overlap with where there is no GPU
                use_pinned_memory=False,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=False,
            )
        )
        self._pending: Future[Any] | None = None

    def __call__(self, state: dict[str, torch.Tensor], path: Path) -> Future[Any]:
        """Begin to save ``state`` as the directory ``path``, once the save before has ended."""
        if self._pending is not None:
            self._pending.result()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            begun = dcp.async_save(  # type: ignore[attr-defined]
                state, checkpoint_id=path, async_stager=self._stager, no_dist=True
            )
        assert isinstance(begun, Future)
        self._pending = begun
        return begun


class FlatCopy:
    """One preallocated buffer per dtype, filled by one call: the least that any asynchronous snapshot has to do."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = list(tensors.values())
        self.buffers: dict[torch.dtype, torch.Tensor] = {}
        self._views: list[torch.Tensor] = []
        sizes: dict[torch.dtype, int] = defaultdict(int)
        for tensor in self._tensors:
            sizes[tensor.dtype] += tensor.numel()
        filled: dict[torch.dtype, int] = defaultdict(int)
        for dtype, size in sizes.items():
            self.buffers[dtype] = torch.zeros(size, dtype=dtype)
        for tensor in self._tensors:
            start = filled[tensor.dtype]
            filled[tensor.dtype] = start + tensor.numel()
            self._views.append(self.buffers[tensor.dtype][start : start + tensor.numel()].view(tensor.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def fits(self, tensors: dict[str, torch.Tensor]) -> bool:
        """Say whether these are the very tensors that this copies."""
        places = [tensor.data_ptr() for tensor in tensors.values()]
        return places == [tensor.data_ptr() for tensor in self._tensors]

    def copy(self) -> None:
        """Copy the state as it is now."""
        torch._foreach_copy_(self._views, self._tensors)


def whole_state(training: Training) -> dict[str, Any]:
    """Return what a training script hands to torch.save."""
    return {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "extras": {name: extra.state_dict() for name, extra in training.extras.items()},
    }


def flat_state(training: Training) -> dict[str, torch.Tensor]:
    """Return the tensors of model and optimizer by name, not copied."""
    tensors = {f"model.{name}": tensor.detach() for name, tensor in training.model.state_dict().items()}
    for index, state in training.optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
    return tensors


def _zipnn() -> Callable[[FlatCopy], int] | None:
    """Return a function that says how many bytes ZipNN makes of a state, or None where it is not installed."""
    if importlib.util.find_spec("zipnn") is None:
        report("skipped: ZipNN (no package zipnn; install the extra bench)")
        return None
    zipnn: Any = importlib.import_module("zipnn")

    def size(state: FlatCopy) -> int:
        total = 0
        for dtype, buffer in state.buffers.items():
            data = bytearray(buffer.numpy().tobytes())  # a copy, which ZipNN may change and does
            with contextlib.redirect_stdout(None):
                floats = dtype is torch.float32
                total += len(zipnn.ZipNN(bytearray_dtype="float32").compress(data)) if floats else len(data)
        return total

    return size


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
