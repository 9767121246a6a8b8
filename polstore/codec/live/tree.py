"""Nested state to canonical values and back.

What a ``state_dict`` or a sample may hold: None, booleans, integers, floats, text, bytes, lists, tuples, dictionaries
with text or integer keys, and tensors. Scalars stand for themselves; the rest is a tagged array, see
specs/state-digest.md, section "Scalars". Nothing is pickled and nothing else is accepted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from polstore.errors import MalformedError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from polstore.wire.canonical import Value

__all__ = ["flatten", "unflatten"]

LIST, TUPLE, DICT, TENSOR = 0, 1, 2, 3


def flatten(value: Any, path: str, on_tensor: Callable[[str, torch.Tensor], Value]) -> Value:
    """Turn nested state into a canonical value.

    Args:
        value: the state.
        path: where it stands, for tensor names and messages.
        on_tensor: called with the path of each tensor and the tensor; what it returns stands in the tensor's place.

    Raises:
        TrainingError: something that cannot be committed, named by its path.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise TrainingError(f"{path} cannot be committed", expected="an integer of 64 bits", got=value)
    if isinstance(value, str) and not value.isascii():
        _require_unicode(path, value)
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if isinstance(value, torch.Tensor):
        return (TENSOR, on_tensor(path, value))
    if isinstance(value, (list, tuple)):
        tag = LIST if isinstance(value, list) else TUPLE
        return (tag, *(flatten(item, f"{path}/{number}", on_tensor) for number, item in enumerate(value)))
    if isinstance(value, dict):
        if not all(type(key) in (str, int) for key in value):
            raise TrainingError(
                f"{path} has keys that cannot be committed", expected="text or integers", got=list(value)
            )
        keys = sorted(value, key=lambda key: (isinstance(key, str), key))
        return (DICT, *((key, flatten(value[key], f"{path}/{key}", on_tensor)) for key in keys))
    if hasattr(value, "__array__"):  # numpy arrays, and images that offer themselves as one
        try:
            tensor = torch.from_numpy(np.array(value, order="C"))  # a copy: images offer memory that is not writable
        except TypeError as error:
            raise TrainingError(f"{path} cannot be committed: {error}") from error
        return flatten(tensor, path, on_tensor)
    raise TrainingError(
        f"{path} cannot be committed",
        expected="tensors, numbers, text, bytes, lists, tuples or dictionaries",
        got=f"{type(value).__module__}.{type(value).__qualname__}",
    )


def _require_unicode(path: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TrainingError(f"{path} cannot be committed: {error}") from error


def unflatten(value: Value, on_tensor: Callable[[Value], torch.Tensor]) -> Any:
    """Turn a canonical value back into nested state; ``on_tensor`` returns the tensor for what `flatten` put there.

    Raises:
        MalformedError: not a value that `flatten` makes.
    """
    if not isinstance(value, tuple):
        return value
    if not value or type(value[0]) is not int:
        raise MalformedError("state tree", expected="a tagged array", got=value)
    tag, items = value[0], value[1:]
    if tag == LIST:
        return [unflatten(item, on_tensor) for item in items]
    if tag == TUPLE:
        return tuple(unflatten(item, on_tensor) for item in items)
    if tag == DICT:
        result: dict[str | int, Any] = {}
        last: tuple[bool, Any] | None = None
        for item in items:
            key = item[0] if isinstance(item, tuple) and len(item) == 2 else None
            if not isinstance(item, tuple) or not isinstance(key, (str, int)) or isinstance(key, bool):
                raise MalformedError("state tree, entry of a dictionary", expected="(key, value)", got=item)
            place = (isinstance(key, str), key)
            if last is not None and not last < place:
                raise MalformedError("state tree, keys of a dictionary", expected=f"one after {last[1]!r}", got=key)
            last = place
            result[key] = unflatten(item[1], on_tensor)
        return result
    if tag == TENSOR and len(items) == 1:
        return on_tensor(items[0])
    raise MalformedError("state tree, tag", expected="0 to 3", got=tag)
