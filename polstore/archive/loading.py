"""Reading saved trainings: torch.save files, Hugging Face folders, Lightning files, safetensors.

torch.load is called with ``weights_only=True`` and never otherwise: a file that needs more could run its author's
code, and is refused. torch checks no checksum of its files, so that is done here. Of a folder the model,
``optimizer.pt``, ``scheduler.pt``, ``scaler.pt`` and ``trainer_state.json`` without its log are read; RNG states and
arguments need more than ``weights_only=True``. What is read is sorted into the model's tensors, the optimizers' states
and the rest; nothing is renamed.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from polstore.archive.sources import MAX_DIGITS
from polstore.errors import MalformedError, MissingError, TrainingError
from polstore.files import file_error, read_file

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Loaded", "load", "peek_step"]

MODEL_KEYS = ("net", "model", "state_dict", "model_state_dict", "model_state", "module")
OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim", "optimizer_state")
STEP_KEYS = ("global_step", "step")
MAX_JSON = 256 << 20  # bytes of a trainer_state.json: it holds the log of the whole run
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")
_SHARD = re.compile(r"(model|pytorch_model)-(\d{1,9})-of-(\d{1,9})\.(safetensors|bin)", re.ASCII)
_EXTRAS = {"scheduler": "scheduler.pt", "scaler": "scaler.pt"}


@dataclass
class Loaded:
    """One saved snapshot.

    Attributes:
        model: the model's tensors under their own names, in the order of the file.
        optimizers: ``state_dict``s of optimizers.
        extras: everything else: schedulers, counters, settings.
        step: the step that the content states, or None.
    """

    model: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizers: list[Mapping[str, Any]] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)
    step: int | None = None


def load(path: Path) -> Loaded:
    """Read a saved snapshot.

    Args:
        path: a file, or a folder as Hugging Face's Trainer writes it.

    Raises:
        TrainingError: a file that is damaged, needs more than ``weights_only=True`` permits, or holds no model.
        MissingError: no such file.
    """
    if path.is_dir():
        return _load_folder(path)
    if path.suffix.lower() == ".safetensors":
        tensors, metadata = _load_safetensors(path)
        return Loaded(tensors, step=_step_of(metadata))
    return _sorted(_load_torch(path), path)


def peek_step(path: Path) -> int | None:
    """Return the step that a saved snapshot states inside, reading as little of it as possible; raises as `load`."""
    if path.is_dir():
        state = path / "trainer_state.json"
        return _step(_load_json(state)) if state.is_file() else None
    if path.suffix.lower() == ".safetensors":
        return _step_of(_load_safetensors(path, metadata_only=True)[1])
    content = _load_torch(path, lazy=True)
    return _step(content) if isinstance(content, Mapping) else None


def _load_torch(path: Path, *, lazy: bool = False) -> Any:
    """Load a file of torch.save; with ``lazy`` its tensors stay on disk, where it can be, and are not checked."""
    if not path.is_file():
        raise MissingError(f"no file {path}")
    try:
        mapped = False
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                mapped = lazy and all(member.compress_type == zipfile.ZIP_STORED for member in file.infolist())
                if not lazy:
                    _check_sums(file)
        # Mapped, torch takes whatever lies at a tensor's place: compressed bytes, or those after one that is too short.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}") from error
    except OSError as error:
        raise file_error(error, f"{path} cannot be read") from error
    except Exception as error:  # torch raises anything at all on bytes that are not what it wrote
        reason = " ".join(str(error).split())
        raise TrainingError(
            f"{path} cannot be loaded with weights_only=True, and nothing else is safe: "
            f"{type(error).__name__}: {reason[:300]}"
        ) from error


def _check_sums(file: zipfile.ZipFile) -> None:
    """Compare every member with its CRC-32, which torch writes and never looks at; it may have been told to write 0."""
    damaged = file.testzip() if any(member.CRC for member in file.infolist()) else None
    if damaged is not None:
        raise TrainingError("a part of it is damaged", expected="its checksum", got=damaged)


def _load_safetensors(path: Path, *, metadata_only: bool = False) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not path.is_file():
        raise MissingError(f"no file {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = [] if metadata_only else file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, AttributeError) as error:  # AttributeError: a dtype that this torch does not have
        raise TrainingError(f"{path} is not a safetensors file that can be read: {error}") from error


def _load_folder(path: Path) -> Loaded:
    loaded = Loaded()
    for file in _model_files(path):
        part = _load_safetensors(file)[0] if file.suffix == ".safetensors" else _load_torch(file)
        if not isinstance(part, Mapping) or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in part.items()
        ):
            raise TrainingError(f"{file} holds no model", expected="tensors by name", got=type(part).__name__)
        if twice := part.keys() & loaded.model.keys():
            raise TrainingError(f"{file} has a tensor that another part has, too: {min(twice)}")
        loaded.model |= part
    if (path / "optimizer.pt").is_file():
        _add_optimizers(loaded, _load_torch(path / "optimizer.pt"), "optimizer")
    for name, file_name in _EXTRAS.items():
        if (path / file_name).is_file():
            loaded.extras[name] = _load_torch(path / file_name)
    if (path / "trainer_state.json").is_file():
        state = _load_json(path / "trainer_state.json")
        state.pop("log_history", None)  # of the whole run so far: no state, and it would grow with every snapshot
        loaded.extras["trainer_state"] = state
        loaded.step = _step(state)
    return loaded


def _model_files(path: Path) -> list[Path]:
    """Return the file that holds a folder's model, or all of its parts; an incomplete set is refused."""
    for name in _WEIGHTS:
        if (path / name).is_file():
            return [path / name]
    sets: dict[tuple[str, ...], dict[int, Path]] = {}
    for file in sorted(path.iterdir()):
        if found := _SHARD.fullmatch(file.name):
            stem, number, count, suffix = found.groups()
            sets.setdefault((suffix, stem, count), {})[int(number)] = file
    if not sets:
        raise MissingError(f"{path} holds no model: neither {' nor '.join(_WEIGHTS)}, nor parts of one")
    *_, count = wanted = max(sets)  # safetensors before pickles, as above
    parts = sets[wanted]
    if sorted(parts) != list(range(1, int(count) + 1)):
        raise MissingError(f"{path} lacks parts of its model", expected=f"1 to {int(count)}", got=sorted(parts))
    return [parts[number] for number in sorted(parts)]


def _load_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_file(path, MAX_JSON))
    except (ValueError, RecursionError, MalformedError) as error:
        raise TrainingError(f"{path} is not JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise TrainingError(f"{path} is no state of a trainer", expected="a JSON object", got=type(value).__name__)
    return value


def _sorted(content: Any, path: Path) -> Loaded:
    """Sort the content of one file into model, optimizers and the rest."""
    if not isinstance(content, Mapping):
        raise TrainingError(f"{path} holds no snapshot", expected="a dictionary", got=type(content).__name__)
    loaded = Loaded(step=_step(content))
    model_key = next((key for key in MODEL_KEYS if isinstance(content.get(key), Mapping)), None)
    model = content if model_key is None else content[model_key]
    for name, value in model.items():
        if isinstance(value, torch.Tensor) and isinstance(name, str):
            loaded.model[name] = value
        elif model_key is not None:
            loaded.extras.setdefault(model_key, {})[name] = value
    if not loaded.model:
        raise TrainingError(f"{path} holds no model: neither tensors by name nor any under {', '.join(MODEL_KEYS)}")
    for key, value in content.items():
        if key == model_key or (model_key is None and key in loaded.model):
            continue
        if key in OPTIMIZER_KEYS:
            _add_optimizers(loaded, value, key)
        else:
            loaded.extras[key] = value
    return loaded


def _add_optimizers(loaded: Loaded, value: Any, key: str) -> None:
    """Take note of one optimizer's state or a list of several; anything else is kept as it is."""
    states = list(value) if isinstance(value, (list, tuple)) else [value]
    if all(map(_is_optimizer, states)):
        loaded.optimizers += states
    else:
        loaded.extras[key] = value


def _is_optimizer(value: Any) -> bool:
    """Return whether this is an optimizer's ``state_dict`` as torch makes it."""
    if not isinstance(value, Mapping) or not isinstance(value.get("state"), Mapping):
        return False
    groups = value.get("param_groups")
    return isinstance(groups, (list, tuple)) and all(
        isinstance(group, Mapping)
        and all(isinstance(name, str) for name in group)
        and isinstance(group.get("params"), list)
        and isinstance(group.get("param_names", []), list)
        and all(isinstance(parameter, (int, str)) for parameter in group["params"])
        for group in groups
    )


def _step_of(metadata: Mapping[str, str]) -> int | None:
    """Return the step in a safetensors file's metadata, where `polstore export` writes it."""
    step = metadata.get("step", "")
    return int(step) if step.isascii() and step.isdigit() and len(step) <= MAX_DIGITS else None


def _step(content: Mapping[Any, Any]) -> int | None:
    for key in STEP_KEYS:
        value = content.get(key)
        if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_floating_point():
            value = value.item()
        if type(value) is int and value >= 0:
            return value
    return None
